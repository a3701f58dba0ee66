"""Private names of mmengine and torch that training relies on: named once, and there."""

import ast
import inspect
from pathlib import Path

import pytest
from mmengine.runner import loops
from torch.utils.data import dataloader
from torch.utils.data._utils import signal_handling

from backbones.openmmlab import mmengine_internals, training
from backbones.openmmlab.mmengine_internals import PROTECTED

ROOM = Path(training.__file__).parent
# Files whose private names are torch's: signals of data workers, and the kernels over many tensors
# that its optimizers use and that have no public name.
TORCH = {"data_workers.py", "ema.py", "non_finite.py"}


@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind, names in PROTECTED.items() for name in names]
)
def test_mmengine_has_what_we_use_of_it(kind, name):
    """A new release that drops one fails here."""
    assert hasattr(kind, name) or f"self.{name}" in inspect.getsource(kind), name


def test_functions_of_mmengine_and_torch():
    parameters = inspect.signature(loops._update_losses).parameters
    assert list(parameters) == ["outputs", "losses"]
    assert callable(signal_handling._error_if_any_worker_fails)
    assert callable(signal_handling._set_SIGCHLD_handler)
    # Frames of this file are those that wait for data.
    assert dataloader.__file__ == inspect.getsourcefile(dataloader.DataLoader)


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.name)
def test_nobody_elses_private_names_are_used_elsewhere(path):
    if path.name in TORCH:
        return
    tree = ast.parse(path.read_text())
    named = {name for names in PROTECTED.values() for name in names}
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    own |= {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    own |= {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "super")
            ours |= isinstance(node.value, ast.Call)  # super()
            known = own | named if ours else own
            if node.attr not in known:
                foreign.add(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            foreign |= {alias.name for alias in node.names if private(alias.name)}
    assert not foreign


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_every_listed_name_is_used():
    files = [*ROOM.glob("*.py"), Path(mmengine_internals.__file__)]
    text = "".join(path.read_text() for path in files)
    for names in PROTECTED.values():
        for name in names:
            assert text.count(name) > 1, name
