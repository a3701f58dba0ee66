"""The documentation: its commands are accepted, its code imports, its messages are ours."""

import argparse
import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import setuptools  # noqa: F401 - replaces distutils, which it refuses once that is imported
import torch
from mmengine.registry import MODELS, DefaultScope
from support.forked import run_forked
from support.oracles import randomise
from support.running import REPOSITORY

from backbones import ConvNeXt
from backbones.errors import InputError
from backbones.openmmlab.config import load_config, use_tta
from backbones.openmmlab.config.names import find_config
from backbones.openmmlab.prediction.exported import is_exported
from backbones.openmmlab.training.layer_decay import LayerDecayConstructor
from backbones.weights import TARGETS, from_official, load_pretrained

PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A command of ours, after what Slurm may have in front of it.
STARTS = re.compile(r"^(?:srun (?:--\S+ )*)?((?:python|torchrun|make|pip|convnext) )")
# What stands for the reader's own: words in capitals, and files that only a run makes.
CONFIG = "configs/detection/cascade_convnext_t.py"
STANDS_FOR = {"CONFIG": CONFIG, "STEP": "depthwise"}
MADE_BY_RUNS = ("work_dirs/", "published/")
LEAST_MESSAGE = 12  # characters, without which a quotation says nothing


class Parsed(BaseException):
    """Carries a tool's arguments out of it, past everything it would do with them."""


def fences(page: Path) -> list[tuple[str, str, int]]:
    """Language, text and line of each fenced block."""
    text = page.read_text()
    blocks = []
    for match in FENCE.finditer(text):
        body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        blocks.append((match[2], body, text[: match.start()].count("\n") + 1))
    return blocks


def commands() -> list:
    """Every command of ours in a fenced block, as pytest's parameters."""
    found = []
    for page in PAGES:
        for language, body, line in fences(page):
            if language in ("python", "text"):
                continue
            for command in body.replace("\\\n", " ").splitlines():
                if not STARTS.match(command):
                    continue
                words = shlex.split(STARTS.sub(r"\1", command), comments=True)
                for argv in split(words, "&&"):
                    name = f"{page.name}:{line}:{' '.join(argv)}"
                    found.append(pytest.param(argv, id=name))
    return found


def split(words: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def filled_in(word: str) -> str:
    """The word with a stand-in in place of the reader's own."""
    for placeholder, value in STANDS_FOR.items():
        word = re.sub(rf"(?<![A-Z]){placeholder}(?![A-Z])", value, word)
    return word


def arguments_of(tool: Path, argv: list[str]) -> argparse.Namespace:
    """What the tool's own parser makes of these arguments; the tool does nothing else."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        raise Parsed(parse(parser, args, namespace))

    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        patch.object(sys, "argv", [str(tool), *argv]),
        patch.object(sys, "path", [str(tool.parent), *sys.path]),
        pytest.raises(Parsed) as stopped,
    ):
        runpy.run_path(str(tool), run_name="__main__")
    return stopped.value.args[0]


def accept_tool(name: str, argv: list[str]) -> None:
    tool = REPOSITORY / name
    assert tool.is_file(), f"no such tool: {name}"
    args = arguments_of(tool, [filled_in(word) for word in argv])
    given = getattr(args, "config", None) or []
    configs = [Path(path) for path in (given if isinstance(given, list) else [given])]
    for path in configs:
        if str(path).startswith(MADE_BY_RUNS):
            recipes = [*REPOSITORY.glob(f"configs/*/{path.name}")]
            assert recipes or path.name == "config.py", f"no config leaves {path}"
            path = recipes[0] if recipes else Path(CONFIG)
        # An exported file takes its config's name where `--out` gives none.
        path = find_config(path.stem if is_exported(path) else path)
        overrides, protocol = getattr(args, "cfg_options", None), getattr(args, "tta", None)
        if overrides or protocol:
            if isinstance(overrides, list):
                overrides = dict(one.split("=", 1) for one in overrides)
            config = load_config(REPOSITORY / path, overrides)
            if protocol:
                use_tta(config, protocol)


def accept_torchrun(argv: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(argv)
    accept_tool(args.training_script, args.training_script_args)


def accept_make(argv: list[str]) -> None:
    dry = subprocess.run(
        ["make", "--dry-run", *argv], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert dry.returncode == 0, dry.stderr
    started = re.findall(r"^\.venv/bin/python (tools/\S+)(.*)$", dry.stdout, re.MULTILINE)
    for tool, rest in started:
        accept_tool(tool, shlex.split(rest))


def accept_pip(argv: list[str]) -> None:
    from pip._internal.commands import create_command

    options, targets = create_command(argv[0]).parse_args(argv[1:])
    targets += getattr(options, "editables", [])
    assert targets
    for target in targets:
        for extras in re.findall(r"^(?:\.|convnext-dense-prediction)\[(.*)\]$", target):
            assert set(extras.split(",")) <= declared_extras(), target


def declared_extras() -> set[str]:
    tree = ast.parse((REPOSITORY / "setup.py").read_text())
    (extras,) = (
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "extras_require"
    )
    return {key.value for key in extras.keys}


@pytest.mark.parametrize("argv", commands())
def test_commands_are_accepted(argv, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    first, *rest = argv
    if first == "torchrun":
        accept_torchrun(rest)
    elif first == "make":
        accept_make(rest)
    elif first == "pip":
        accept_pip(rest)
    elif first == "convnext":
        accept_tool(f"tools/{rest[0].replace('-', '_')}.py", rest[1:])
    elif rest[0].startswith("tools/"):
        accept_tool(rest[0], rest[1:])
    elif rest[0] == "-m":
        source = Path(REPOSITORY, *rest[1].split(".")).with_suffix(".py").read_text()
        for option in (word for word in rest[2:] if word.startswith("--")):
            assert f'"{option}"' in source
    else:
        assert (REPOSITORY / rest[0]).is_file()


def test_commands_of_every_page_are_seen():
    seen = {parameter.id.partition(":")[0] for parameter in commands()}
    assert {"README.md", "quick-start.md", "recipes.md", "many-gpus.md"} <= seen
    assert len(commands()) > 60


@pytest.mark.parametrize(
    "argv",
    [
        ["train.py", "configs/detection/cascade_convnext_t.py", "--no-such-option"],
        ["train.py"],
        ["export.py", CONFIG, "checkpoint.pth", "--to", "nothing"],
        ["prepare_data.py", "imagenet"],
        ["train.py", CONFIG, "--cfg-options", "model.backbone.no_such_key=1"],
        ["test.py", CONFIG, "checkpoint.pth", "--tta", "paper"],
        ["train.py", "configs/detection/no_such_config.py"],
    ],
)
def test_wrong_commands_are_noticed(argv):
    with pytest.raises((SystemExit, InputError, AssertionError)):
        accept_tool(f"tools/{argv[0]}", argv[1:])


PYTHON = [
    pytest.param(body, id=f"{page.name}:{line}")
    for page in PAGES
    for language, body, line in fences(page)
    if language == "python"
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_compiles_and_its_imports_work(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert find_spec(name.name), name.name
        elif isinstance(node, ast.ImportFrom):
            module = import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), node.module


def messages_of_sources() -> set[str]:
    """Every text in our code that is no docstring, with … where a value is put in."""
    found = set()
    for folder in ("backbones", "tools"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            spoken = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                if id(node) in spoken:
                    continue
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(normal(node.value))
                elif isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    found.add(normal("".join(parts)))
    return found


def normal(text: str) -> str:
    return re.sub(r"…+", "…", " ".join(text.split()))


def quoted_messages() -> list[str]:
    """What stands in backquotes in the first column of troubleshooting's tables."""
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and "---" not in row]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_messages_are_ours():
    sources = messages_of_sources()
    quoted = quoted_messages()
    assert len(quoted) > 30
    for message in quoted:
        fragment = normal(message).strip("… ")
        assert len(fragment.replace("…", "")) >= LEAST_MESSAGE, message
        assert any(fragment in source for source in sources), f"nothing prints: {message}"


LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), target


def test_every_page_is_linked():
    index = (REPOSITORY / "docs" / "README.md").read_text()
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"`{page.name}`" in index or f"]({page.name})" in index


def test_configs_named_in_prose_exist():
    for page in PAGES:
        for name in re.findall(r"configs/[a-z_]+/[\w.]+\.py", page.read_text()):
            name = name.replace("STEP", STANDS_FOR["STEP"])
            if name.endswith("/mine.py"):
                continue
            assert (REPOSITORY / name).is_file(), f"{page.name}: {name}"


AFTER = [
    pytest.param(body, id=f"migrating.md:{line}")
    for language, body, line in fences(REPOSITORY / "docs" / "migrating.md")
    if language == "python" and "# after" in body
]


@pytest.mark.parametrize("code", AFTER)
def test_migrated_configs_are_the_recipes(code, tmp_path):
    """Built without values, their layers' learning rates set, and equal to the shipped recipe."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "_base_").symlink_to(REPOSITORY / "configs" / "_base_")
    name, recipe = re.findall(r"configs/\w+/\w+\.py", code.splitlines()[0])
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(code)
    config, shipped = load_config(path), load_config(REPOSITORY / recipe)
    assert config.model == shipped.model
    assert config.optim_wrapper == shipped.optim_wrapper
    scope = config.default_scope
    DefaultScope.get_instance(f"docs-{scope}", scope_name=scope)
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
        model = MODELS.build(config.model)
    wrapper = dict(config.optim_wrapper, type="OptimWrapper")
    paramwise = wrapper.pop("paramwise_cfg")
    del wrapper["constructor"], wrapper["dtype"]
    groups = LayerDecayConstructor(wrapper, paramwise)(model).optimizer.param_groups
    stem = "backbone.downsample_layers.0.0.weight"
    (scale,) = (group["lr_scale"] for group in groups if stem in group["param_names"])
    assert scale == pytest.approx({"mmdet": 0.7**7, "mmseg": 0.9**7}[scope])


def test_mmpretrains_converted_v2_is_read_whole(tmp_path):
    """Its converter leaves GRN as (1, 1, 1, 4C), which mmpretrain's (4C) skips."""
    small = dict(arch=dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), use_grn=True)
    source, ours = randomise(ConvNeXt(**small)), ConvNeXt(**small)
    theirs = from_official(source.state_dict(), TARGETS["mmpretrain"])
    theirs = {k: v.reshape(1, 1, 1, -1) if ".grn." in k else v for k, v in theirs.items()}
    torch.save(dict(state_dict=theirs), tmp_path / "converted.pth")
    load_pretrained(ours, tmp_path / "converted.pth")
    assert sum(".grn." in name for name in ours.state_dict()) == 10
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.slow
def test_quick_start_runs_in_order(tmp_path):
    """Every command of the quick start but the installation, on fewer and smaller pictures."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "tools").symlink_to(REPOSITORY / "tools")
    ran = []
    for language, body, _ in fences(REPOSITORY / "docs" / "quick-start.md"):
        lines = [shlex.split(line, comments=True) for line in body.splitlines() if language == "sh"]
        argvs = (
            [["-c", body]] if language == "python" else [w[1:] for w in lines if w[0] == "python"]
        )
        for argv in argvs:
            if argv[0] == "tools/prepare_data.py":
                argv += ["--train", "8", "--val", "4", "--size", "96"]
            if argv[0] == "-c":
                done = subprocess.run(
                    [sys.executable, *argv],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    capture_output=True,
                    text=True,
                )
                status, output = done.returncode, done.stdout + done.stderr
            else:
                done = run_forked(Path(argv[0]).name, *argv[1:], cwd=tmp_path)
                status, output = done.status, done.out + done.err
            # The doctor ends with 1 where it warns, of a full disk or little memory too.
            accepted = (0, 1) if argv[0] == "tools/doctor.py" else (0,)
            assert status in accepted, f"{argv}\n{output}"
            ran.append(Path(argv[0]).stem)
    order = ["prepare_data", "doctor", "train", "test", "train", "report", "predict", "-c"]
    assert ran == [*order, "export", "publish"]
    assert (tmp_path / "work_dirs/cascade_convnext_atto_demo/report.html").is_file()
    assert len([*(tmp_path / "predictions/pictures").iterdir()]) == 4
    for made in ("comparison.html", "shapes.onnx", "published/shapes/README.md"):
        assert (tmp_path / made).is_file(), made
