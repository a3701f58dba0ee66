"""Run the programs in tools/ as the console command `convnext VERB`.

This module imports only the standard library, not even `backbones`, whose import takes seconds, so
that help and misspelt verbs are answered at once.
"""

import ast
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
# In a wheel the tools are inside the package, in a checkout beside it.
TOOLS = next(folder for folder in (HERE / "backbones" / "tools", HERE / "tools") if folder.is_dir())
NO_OPENCV = (
    "pip uninstall -y opencv-python opencv-python-headless, then "
    "pip install opencv-python-headless, or install the library (Debian, Ubuntu: libgl1)"
)


def main() -> None:
    """Run the tool of the verb on the command line, as `python tools/VERB.py` does."""
    verbs = {path.stem.replace("_", "-"): path for path in sorted(TOOLS.glob("*.py"))}
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(overview(verbs))
    elif verb == "--version":
        print(version())
    elif verb not in verbs:
        close = get_close_matches(verb, verbs, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see convnext --help"
        print(f"error: {verb}: no such verb; {hint} [unknown-name]", file=sys.stderr)
        sys.exit(2)
    else:
        run(verb, verbs[verb], arguments)


def run(verb: str, tool: Path, arguments: list[str]) -> None:
    """Run a tool in this process; its usage line names the command."""
    sys.argv = [f"convnext {verb}", *arguments]
    # Not runpy.run_path, which would replace argv[0] with the tool's path. Processes that the tool
    # spawns find it as their main module.
    module = ModuleType("__main__")
    module.__file__ = str(tool)
    sys.modules["__main__"] = module
    try:
        exec(compile(tool.read_bytes(), str(tool), "exec"), vars(module))
    except ImportError as error:
        # Servers often lack what opencv-python, which mmcv asks for, links to.
        if not re.match(r"lib(GL|gthread|X|SM|xcb)\S*:", str(error)):
            raise
        print(f"error: OpenCV: {error}; {NO_OPENCV} [missing-package]", file=sys.stderr)
        sys.exit(2)


def overview(verbs: dict[str, Path]) -> str:
    """Return the help text: every verb with the first line of its tool's docstring."""
    width = max(map(len, verbs))
    lines = [f"  {verb:{width}}  {summary(path)}" for verb, path in verbs.items()]
    return "\n".join(
        [
            "usage: convnext VERB ...\n",
            "Train, evaluate and use ConvNeXt detectors, segmentors and classifiers.\n",
            *lines,
            "\nconvnext VERB --help describes a verb. CONFIG is the path of a config, or a name",
            "that convnext configs lists.",
        ]
    )


def summary(tool: Path) -> str:
    """Return the first line of a program's docstring."""
    text = ast.get_docstring(ast.parse(tool.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def version() -> str:
    """Return the version of the package without importing it."""
    text = (HERE / "backbones" / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'__version__ = "(.+)"', text)[0]


if __name__ == "__main__":
    main()
