"""Importing mmdet or mmseg where their optional dependencies would stop them; their scopes."""

import io
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count

from mmengine.registry import DefaultScope

from . import mmcv_ops

_NUMBERS = count()


def register(library: str) -> None:
    """Put everything in `mmdet` or `mmseg` into the registries.

    mmcv's compiled operators are replaced where they are missing. mmpretrain, which both libraries
    import if it is installed, leaves its multimodal models out beside transformers 5: its import
    would end in a TypeError (mmpretrain/models/multimodal/blip/language_model.py).
    """
    mmcv_ops.install()
    try:
        broken = find_spec("mmpretrain") and int(version("transformers").split(".")[0]) >= 5
    except PackageNotFoundError:
        broken = False
    if broken:
        import_module("mmpretrain.utils.dependency").WITH_MULTIMODAL = False
    with redirect_stdout(io.StringIO()):  # they print which optional packages are missing
        import_module(f"{library}.utils").register_all_modules(init_default_scope=False)


def enter_scope(scope: str) -> None:
    """Have types be looked up in a library's registry first from here on.

    mmengine's current scope is the one that was made last, and one of a name is made once only: so
    each has a name of its own.
    """
    DefaultScope.get_instance(f"scope-{next(_NUMBERS)}", scope_name=scope)
