"""Check that the imports in backbones/ form no cycle of files and none of packages."""

import ast
import subprocess
import sys
from collections.abc import Iterable

import pytest
from support.running import REPOSITORY

PACKAGE = REPOSITORY / "backbones"
# Its packages count separately, and each module directly in it counts as a package.
OPENMMLAB = ("backbones", "openmmlab")


def modules() -> dict[str, ast.Module]:
    """Return every module of backbones by its dotted name, without `__init__`, parsed."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def imported(name: str, tree: ast.Module, known: Iterable[str], packages: set[str]) -> set[str]:
    """Return the modules of backbones that a module imports, also in functions and conditions.

    `from package import name` counts for the module `package.name` if there is one, else for the
    package itself, whose `__init__` defines the name.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")
            if node.level:
                base = base[: len(base) - node.level + (name in packages)]
                base += node.module.split(".") if node.module else []
            else:
                base = node.module.split(".") if node.module else []
            whole = ".".join(base)
            for alias in node.names:
                inner = f"{whole}.{alias.name}"
                found.add(inner if inner in known else whole)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(node.args[0].value)
    return {module for module in found if module in known and module != name}


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of several nodes, sorted (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def file_arrows() -> dict[str, set[str]]:
    trees = modules()
    packages = {name for name in trees if (REPOSITORY / name.replace(".", "/")).is_dir()}
    return {name: imported(name, tree, trees, packages) for name, tree in trees.items()}


def package_of(module: str) -> str:
    """Return the package backbones.openmmlab.X or backbones.X; a single module counts as one."""
    parts = tuple(module.split("."))
    depth = 3 if parts[:2] == OPENMMLAB else 2
    return ".".join(parts[:depth])


def package_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    packages: dict[str, set[str]] = {}
    for module, others in arrows.items():
        # These two contain the others and import them.
        if module in ("backbones", "backbones.openmmlab"):
            continue
        packages.setdefault(package_of(module), set()).update(
            package_of(other) for other in others if package_of(other) != package_of(module)
        )
    return packages


def test_no_cycle_of_files():
    assert cycles(file_arrows()) == []


def test_no_cycle_of_packages():
    assert cycles(package_arrows(file_arrows())) == []


def test_the_walk_sees_what_it_should(tmp_path):
    """Check lazy, relative, conditional and dynamic imports, and the search for cycles."""
    arrows = file_arrows()
    assert "backbones.backbone" in arrows["backbones.convnext"]
    assert "backbones.weights" in arrows["backbones.convnext"]
    assert "backbones.weights.dialects" in arrows["backbones.weights.fitting"]
    assert len(arrows) > 80 and sum(map(len, arrows.values())) > 150
    known = {"p", "p.a", "p.b", "p.c", "p.d"}
    source = """
from . import a
def lazy():
    from p.b import thing
if True:
    import p.c
import_module("p.d")
"""
    assert imported("p.x", ast.parse(source), known, {"p"}) == {"p.a", "p.b", "p.c", "p.d"}
    assert imported("p", ast.parse("from .a import b"), known, {"p"}) == {"p.a"}
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b"}, "b": set()}) == []


def run(code: str, *blocked: str) -> subprocess.CompletedProcess:
    """Python in a process of its own in which some packages cannot be found."""
    block = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda n, *a: None if n in {blocked!r} else found(n, *a)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, cwd=REPOSITORY
    )


def test_operators_need_torch_alone():
    others = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "torchvision", "timm")
    code = (
        "import pkgutil, importlib, backbones.ops\n"
        "for module in pkgutil.iter_modules(backbones.ops.__path__):\n"
        "    importlib.import_module(f'backbones.ops.{module.name}')\n"
        "from backbones import ops\n"
    )
    done = run(code, *others)
    assert done.returncode == 0, done.stderr


def test_without_mmengine_a_name_says_what_it_needs():
    done = run("from backbones import ConvNeXt", "mmengine")
    assert done.stderr.splitlines()[-1].startswith("ImportError: ")
    assert "ConvNeXt" in done.stderr and "pip install mmengine" in done.stderr
    done = run("import backbones; print(hasattr(backbones, 'nothing'))", "mmengine")
    assert done.stdout.strip() == "False", done.stderr


# What a config's custom_imports and default_scope make mmengine import, in either order.
ORDERS = [
    "backbones mmpretrain.models",
    "mmpretrain backbones mmpretrain.models",
    "mmpretrain.utils.dependency backbones mmdet.models",
    "transformers mmpretrain backbones mmseg.models",
    "backbones mmseg.models mmdet.models mmpretrain.models",
]
ORDERS[1:] = [pytest.param(order, marks=pytest.mark.slow) for order in ORDERS[1:]]


@pytest.mark.parametrize("order", ORDERS)
def test_beside_mmpretrain_and_transformers(order):
    """Three ConvNeXts in one process, whatever was imported first."""
    code = "".join(f"import {name}\n" for name in order.split()) + (
        "import mmpretrain.models, torch\n"
        "from mmengine.registry import MODELS\n"
        "import backbones\n"
        "x = torch.randn(1, 3, 64, 64)\n"
        "arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])\n"
        "theirs = MODELS.build(dict(type='mmpretrain.ConvNeXt', arch=arch))\n"
        "timms = MODELS.build(dict(type='mmpretrain.TIMMBackbone', model_name='convnext_atto',"
        " features_only=True, pretrained=False))\n"
        "ours = MODELS.build(dict(type='ConvNeXt', arch='atto'))\n"
        "assert type(ours) is backbones.ConvNeXt and type(theirs) is mmpretrain.models.ConvNeXt\n"
        "print(len(ours(x)), len(theirs(x)), len(timms(x)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-3:] == ["4", "1", "4"]
