"""Find onnxruntime's C++ headers, which its Python package lacks.

Debian's libonnxruntime-dev has them. Where it is not installed, apt downloads it from the machine's
own Debian mirror, and it is unpacked into a folder; nothing is installed.
"""

import shutil
import subprocess
from pathlib import Path

SYSTEM = Path("/usr/include/onnxruntime")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGE = "libonnxruntime-dev"
RELEASE = "trixie"  # the first with the package; its headers are of onnxruntime 1.21


def onnxruntime_headers(folder: Path) -> Path | None:
    """Return the folder of onnxruntime's headers; None where there is no Debian mirror.

    Args:
        folder: an empty folder to unpack the package into, and for apt's lists.
    """
    if (SYSTEM / "onnxruntime_cxx_api.h").is_file():
        return SYSTEM
    if not shutil.which("apt-get") or not (source := _mirror()):
        return None
    (folder / "sources.list").write_text(source)
    for part in ("lists", "cache/archives"):
        (folder / part / "partial").mkdir(parents=True)
    options = [
        f"Dir::Etc::sourcelist={folder}/sources.list",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={folder}/lists",
        f"Dir::Cache={folder}/cache",
        "Acquire::http::Timeout=30",
    ]
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    for command in (["update"], ["download", PACKAGE]):
        try:
            subprocess.run(
                [*apt, *command], cwd=folder, capture_output=True, check=True, timeout=120
            )
        except subprocess.SubprocessError:
            return None
    (archive,) = folder.glob(f"{PACKAGE}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder / "unpacked"], check=True)
    return folder / "unpacked" / SYSTEM.relative_to("/")


def _mirror() -> str | None:
    """Return a line of apt's sources for `RELEASE`, from the mirror that this machine uses."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True
    )
    uris = [uri for uri in listed.stdout.split() if uri.rstrip("/").endswith("/debian")]
    signed = f"[signed-by={KEYS}] " if KEYS.is_file() else ""
    return f"deb {signed}{uris[0]} {RELEASE} main\n" if uris else None
