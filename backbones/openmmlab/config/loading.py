"""Read a config and check that every key in it is read by something."""

import os
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import import_modules_from_strings, is_installed

from backbones.errors import InputError
from backbones.openmmlab.tasks import task_of_scope

from .overrides import apply_overrides
from .validation import scope_of, suggest, validate
from .widths import follow_backbone, may_change_widths

# What `inference_dtype` may be; weights stay float32.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RunConfig(Config):
    """Format a config as text once: that takes a second, and each checkpoint holds the text."""

    @classmethod
    def of(cls, config: Config) -> "RunConfig":
        """Return a config of the same keys, without copying them."""
        made = cls.__new__(cls)
        made.__setstate__(config.__getstate__())
        return made

    @property
    def pretty_text(self) -> str:
        """Return the config as Python text, formatted again after a value has changed."""
        state = repr(self._cfg_dict)
        known, text = self.__dict__.get("_laid_out", (None, ""))
        if state != known:
            text = super().pretty_text
            object.__setattr__(self, "_laid_out", (state, text))
        return text


def load_config(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a config with its bases, apply `--cfg-options` and check every key.

    Its `default_scope` decides whose classes are registered, so a config of mmdet's or mmseg's own
    needs no `custom_imports` of ours. Where an override changes the backbone, the widths of necks
    and heads follow it.

    Args:
        path: config file.
        overrides: dotted key to value; a key must exist or be an argument of the class it is for.

    Raises:
        InputError: the file is missing or broken, or a key or class name means nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such config file{_suggest_file(path)}", code="not-found", where=path
        )
    _find_libraries()
    try:
        # Importing mmpretrain, as a config may ask, works only after its task's package.
        config = RunConfig.of(Config.fromfile(path, import_custom_modules=False))
    except Exception as error:  # a config is code: it may fail in any way
        raise _broken(path, error) from error
    task_of_scope(scope_of(config))
    try:
        if imports := config.get("custom_imports"):
            import_modules_from_strings(**imports)
    except Exception as error:  # and so may what it imports
        raise _broken(path, error) from error
    overrides = overrides or {}
    follows = any(may_change_widths(key) for key in overrides)
    before = deepcopy(config) if follows else config
    apply_overrides(config, overrides)
    validate(config)
    inference_dtype(config)
    if follows:
        follow_backbone(config, before, overrides)
    return config


def inference_dtype(config: Config) -> torch.dtype:
    """Return the dtype of validation, testing and prediction: the config's `inference_dtype`.

    Anything but float32 is automatic mixed precision: weights stay float32.

    Raises:
        InputError: it is not one of `DTYPES`.
    """
    name = config.get("inference_dtype", "float32")
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(
            f"config key inference_dtype: {name!r} is none of {', '.join(DTYPES)}"
            f"{suggest(name, DTYPES)}",
            code="bad-value",
            where="inference_dtype",
        )
    return DTYPES[name]


def leave_training_out(config: Config) -> None:
    """Remove what only training needs from the config."""
    for split in ("train", "val"):
        config[f"{split}_dataloader"] = config[f"{split}_cfg"] = None
    config.val_evaluator = config.optim_wrapper = config.param_scheduler = None


def _find_libraries() -> None:
    """Make mmengine find the configs behind `mmseg::` whatever the distribution's name is.

    It asks for `mmsegmentation`; the wheels of today are called `onedl-mmsegmentation`.
    """
    for module, package in MODULE2PACKAGE.items():
        if not is_installed(package) and is_installed(module):
            MODULE2PACKAGE[module] = module


def _broken(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else ""
    return InputError(f"{path}: {type(error).__name__}: {reason}", code="bad-config", where=path)


def _suggest_file(path: Path) -> str:
    near = path.parent if path.parent.is_dir() else Path()
    close = get_close_matches(path.name, [p.name for p in near.glob("*.py")], n=1)
    return f"; did you mean {near / close[0]}?" if close else ""
