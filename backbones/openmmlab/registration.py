"""Import mmdet or mmseg where missing optional dependencies would prevent it."""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from importlib.util import spec_from_file_location
from itertools import count
from types import ModuleType

from mmengine.registry import DefaultScope

from . import mmcv_ops, panoptic_quality

# Where mmpretrain settles whether it imports its multimodal models.
SWITCH = "mmpretrain.utils.dependency"

_NUMBERS = count()


def register(library: str) -> None:
    """Register everything in `mmdet` or `mmseg`."""
    mmcv_ops.install()
    panoptic_quality.install()
    switch_off_multimodal()
    with redirect_stdout(io.StringIO()):  # they print which optional packages are missing
        import_module(f"{library}.utils").register_all_modules(init_default_scope=False)


def enter_scope(scope: str) -> None:
    """Look types up in a library's registry first from here on.

    mmengine's current scope is the one that was made last, and one of a name is made once only: so
    each has a name of its own.
    """
    DefaultScope.get_instance(f"scope-{next(_NUMBERS)}", scope_name=scope)


def switch_off_multimodal() -> None:
    """Leave out mmpretrain's multimodal models, which do not import beside transformers 5.

    mmdet and mmseg import mmpretrain if it is installed, and it imports those models if
    transformers is: that ends in a TypeError (mmpretrain/models/multimodal/blip/language_model.py).
    mmpretrain itself is not imported here.
    """
    if SWITCH in sys.modules:
        _switch_off(sys.modules[SWITCH])
    elif not any(isinstance(finder, _SwitchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SwitchFinder())


def _switch_off(module: ModuleType) -> None:
    try:
        broken = int(version("transformers").split(".")[0]) >= 5
    except PackageNotFoundError:
        broken = False
    if broken:
        module.WITH_MULTIMODAL = False  # pyright: ignore[reportAttributeAccessIssue]


class _SwitchFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != SWITCH:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return None
        return spec_from_file_location(
            fullname, found.origin, loader=_SwitchLoader(fullname, found.origin)
        )


class _SwitchLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _switch_off(module)
