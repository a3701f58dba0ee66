"""The Dockerfiles: linted, and their context holds what the package is installed from."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import REPOSITORY

DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_what_is_wrong(tmp_path):
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /tmp && pip install torch\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, wrong], capture_output=True, text=True)
    assert done.returncode == 1 and {"DL3006", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


def test_the_context_is_what_pip_installs_from():
    """Files of git in the context: the package's sources, and nothing of tests and docs."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    taken = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines and all((REPOSITORY / name).exists() for name in taken)
    listing = ["git", "ls-files"]
    files = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    sent = {name.split("/")[0] for name in files.stdout.split()} & set(taken)
    setup = (REPOSITORY / "setup.py").read_text()
    packages = re.findall(r'"backbones\.\w+": "(\w+)"', setup)
    modules = re.findall(r'py_modules=\["(\w+)"\]', setup)
    read = re.findall(r'Path\("([\w./]+)"\)', setup)
    assert len(packages) == 2 and len(modules) == 1 and len(read) == 2
    needed = {"setup.py", "pyproject.toml", "LICENSE", "backbones", *packages}
    needed |= {f"{name}.py" for name in modules} | {name.split("/")[0] for name in read}
    assert sent == needed | {"constraints.txt"}
    for path in DOCKERFILES:
        copied = re.findall(r"^COPY (\S+)", path.read_text(), re.M)
        assert copied == ["."]
