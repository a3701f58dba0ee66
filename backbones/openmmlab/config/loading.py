"""Reading a config so that every key in it means something.

mmengine merges a misspelled key without a word and most classes of the stack read untyped dicts
with `.get`, so a typo trains another model. Here each typed dict is held against the signature of
the class it names, and each untyped one that the stack reads against the keys it reads.
"""

import inspect
import os
from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from math import isnan
from pathlib import Path
from typing import Any

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, Registry

from backbones.errors import InputError
from backbones.openmmlab.training.layer_decay import PARAMWISE_KEYS
from backbones.roadmap import Design

DATALOADER_KEYS = {
    "batch_size", "num_workers", "persistent_workers", "pin_memory", "drop_last", "sampler",
    "batch_sampler", "dataset", "collate_fn", "prefetch_factor", "timeout", "worker_init_fn",
    "num_batch_per_epoch",
}  # fmt: skip
PROPOSAL_KEYS = {"nms_pre", "max_per_img", "nms", "min_bbox_size"}
RCNN_KEYS = {"assigner", "sampler", "mask_size", "pos_weight", "debug"}

# What the runner and our tools read at the top of a config.
TOP_KEYS = {
    "model", "work_dir", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg",
    "val_cfg", "test_cfg", "auto_scale_lr", "optim_wrapper", "param_scheduler", "val_evaluator",
    "test_evaluator", "default_hooks", "custom_hooks", "data_preprocessor", "load_from", "resume",
    "launcher", "env_cfg", "log_processor", "log_level", "visualizer", "vis_backends",
    "default_scope", "randomness", "experiment_name", "custom_imports", "model_wrapper_cfg",
    "compile", "activation_checkpointing", "efficient_conv_bn_eval", "runner_type", "tta",
    "tta_model", "inference_dtype", "init_from", "strategy",
}  # fmt: skip

# What the constructor of the optimizer wrapper reads from its paramwise_cfg.
CONSTRUCTOR_KEYS = {
    "LayerDecayConstructor": set(PARAMWISE_KEYS),
    "DefaultOptimWrapperConstructor": {
        "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult",
        "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys",
    },
}  # fmt: skip

# Untyped dicts by the end of their path; a list's index is written [].
UNTYPED_KEYS = {
    "": TOP_KEYS,
    "train_dataloader": DATALOADER_KEYS,
    "val_dataloader": DATALOADER_KEYS,
    "test_dataloader": DATALOADER_KEYS,
    "model.train_cfg.rpn": {"assigner", "sampler", "allowed_border", "pos_weight", "debug"},
    "model.train_cfg.rpn_proposal": PROPOSAL_KEYS,
    "model.train_cfg.rcnn": RCNN_KEYS,
    "model.train_cfg.rcnn.[]": RCNN_KEYS,
    "model.train_cfg": {"rpn", "rpn_proposal", "rcnn"},
    "model.test_cfg.rpn": PROPOSAL_KEYS,
    "model.test_cfg.rcnn": {"score_thr", "nms", "max_per_img", "mask_thr_binary"},
    "model.test_cfg": {"rpn", "rcnn", "mode", "crop_size", "stride"},
    "data_prefix": {"img", "seg", "img_path", "seg_map_path"},
    "filter_cfg": {"filter_empty_gt", "min_size"},
    "metainfo": {"classes", "palette", "label_map", "reduce_zero_label"},
    "auto_scale_lr": {"enable", "base_batch_size"},
    "randomness": {"seed", "diff_rank_seed", "deterministic"},
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "dist_cfg": {"backend", "timeout", "init_backend"},
    "custom_imports": {"imports", "allow_failed_imports"},
    "arch": {"depths", "dims"},
    "design": {field.name for field in fields(Design)},  # of a step of the roadmap
    "paramwise_cfg": set().union(*CONSTRUCTOR_KEYS.values()),
    "compile": {"fullgraph", "dynamic", "backend", "mode"},
    "clip_grad": {"max_norm", "norm_type", "error_if_nonfinite", "foreach"},
    "tta.[].test_cfg": {"mode", "crop_size", "stride"},
    "tta.[]": {"pipeline", "test_cfg"},
    "default_hooks": {
        "timer", "logger", "param_scheduler", "checkpoint", "sampler_seed", "visualization",
        "runtime_info", "progress", "report",
    },
}  # fmt: skip

# Dicts whose keys are the user's own, and what may stand in the dict under each.
FREE_KEYS = {"custom_keys": {"lr_mult", "decay_mult"}}
NAMED = {"tta"}  # dicts whose keys are the user's own and whose values are not: protocols

# What `inference_dtype` may be; weights stay float32.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Keys whose value may be of several kinds.
EITHER = {"arch", "compile", "loss_scale"}

# Keys that a builder takes out before it calls the class, by the root registry of the class.
BUILDER_KEYS = {
    "model": {"requires_grad"},  # build_norm_layer
    "optim_wrapper": {"constructor", "paramwise_cfg", "optimizer"},
    "parameter scheduler": {"convert_to_iter_based"},
    "hook": {"priority"},
    "weight initializer": {"wrapper", "sha256", "replace_head"},  # ConvNeXt.init_weights
    "mmcv.ops": {"class_agnostic", "split_thr"},  # batched_nms
}


class RunConfig(Config):
    """A config whose text is laid out once: that takes a second, and each checkpoint holds it."""

    @classmethod
    def of(cls, config: Config) -> "RunConfig":
        """The same keys, not copied."""
        made = cls.__new__(cls)
        made.__setstate__(config.__getstate__())
        return made

    @property
    def pretty_text(self) -> str:
        """The config as Python; laid out anew where a value has changed."""
        state = repr(self._cfg_dict)
        known, text = self.__dict__.get("_laid_out", (None, ""))
        if state != known:
            text = super().pretty_text
            object.__setattr__(self, "_laid_out", (state, text))
        return text


def load_config(path: str | os.PathLike, overrides: dict[str, Any] | None = None) -> Config:
    """Read a config with its bases, apply `--cfg-options`, check every key and fill in widths.

    `in_channels="backbone"` of a neck or head becomes the widths of the backbone's maps.

    Args:
        path: config file.
        overrides: dotted key to value; a key must exist or be an argument of the class it is for.

    Raises:
        InputError: the file is missing or broken, or a key or class name means nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file{_suggest_file(path)}")
    try:
        config = RunConfig.of(Config.fromfile(path))
    except Exception as error:  # a config is code: it may fail in any way
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        raise InputError(f"{path}: {type(error).__name__}: {reason}") from error
    for key, value in (overrides or {}).items():
        _override(config, key, value)
    validate(config)
    inference_dtype(config)
    _fill_widths(config)
    return config


def inference_dtype(config: Config) -> torch.dtype:
    """What validation, testing and prediction compute in, the config's `inference_dtype`.

    Anything but float32 is automatic mixed precision: weights stay as they are.

    Raises:
        InputError: it is not one of `DTYPES`.
    """
    name = config.get("inference_dtype", "float32")
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(
            f"config key inference_dtype: {name!r} is none of {', '.join(DTYPES)}"
            f"{_suggest(name, DTYPES)}"
        )
    return DTYPES[name]


def leave_training_out(config: Config) -> None:
    """Make it a config of an evaluation alone."""
    for split in ("train", "val"):
        config[f"{split}_dataloader"] = config[f"{split}_cfg"] = None
    config.val_evaluator = config.optim_wrapper = config.param_scheduler = None


def use_tta(config: Config, protocol: str) -> None:
    """Evaluate with multi-scale and flip test-time augmentation.

    Args:
        config: with the protocol under `tta`.
        protocol: for a segmentor `paper`, whole images at ratios of the base scale, or `mmseg`,
            sliding windows at ratios of the original image; for a detector `flip` or `multi_scale`.

    Raises:
        InputError: the config has no such protocol.
    """
    protocols = config.get("tta") or {}
    if protocol not in protocols:
        known = f"it has {', '.join(protocols)}" if protocols else "it has no tta"
        raise InputError(f"--tta {protocol}: not in {config.filename}; {known}")
    config.test_dataloader.dataset.pipeline = protocols[protocol].pipeline
    if "test_cfg" in protocols[protocol]:
        config.model.test_cfg = protocols[protocol].test_cfg
    if "keep_logits" in config.model:
        config.model.keep_logits = True  # the mean over augmentations is taken of them
    config.tta_model.module = config.model
    config.model = config.tta_model


def validate(config: Config) -> None:
    """Refuse a config with a key that nothing reads or a class that nothing registers.

    Raises:
        InputError: names the first such key by its full path and the nearest known one.
    """
    scope = config.get("default_scope") or "mmengine"
    if not isinstance(scope, str):
        raise InputError(f"config key default_scope: {scope!r:.40} is no library's name")
    if not isinstance(config.get("model", {}), dict):
        raise InputError(f"config key model: {config.model!r:.40} is no dict")
    for path, node in _dicts(config._cfg_dict):
        known = _known_keys(path, node, scope)
        if path == "optim_wrapper.paramwise_cfg":
            name = config.optim_wrapper.get("constructor", "DefaultOptimWrapperConstructor")
            known = CONSTRUCTOR_KEYS.get(name) if isinstance(name, str) else set()
        if known is None:
            continue
        if not known and node:
            key = next(iter(get_close_matches("type", map(str, node), n=1)), next(iter(node)))
            raise InputError(f"config key {path}.{key}: nothing reads a dict here without a type")
        for key in node:
            if key not in known and not str(key).startswith("_"):
                where = f"{path}.{key}" if path else key
                owner = f"{node['type']} takes no such argument" if "type" in node else "unknown"
                raise InputError(f"config key {where}: {owner}{_suggest(key, known)}")


def _known_keys(path: str, node: dict, scope: str) -> set[str] | None:
    """Keys that may stand in this dict; None where anything may."""
    if "type" not in node:
        generic = _with_list_marks(path)
        if generic in NAMED:
            return None
        ends = [end for end in UNTYPED_KEYS if generic == end or generic.endswith(f".{end}")]
        for name, inside in FREE_KEYS.items():
            if f".{generic}".endswith(f".{name}"):
                return None
            if f".{name}." in f".{generic}":
                return inside
        return UNTYPED_KEYS[max(ends, key=len)] if ends else set()
    name = node["type"]
    if not isinstance(name, str) and not callable(name):
        raise InputError(f"config key {path}.type: {name!r} is no class's name")
    found = [(None, name)] if callable(name) else list(_registered(name, scope))
    if not found:
        everything = {k for root in _root_registries() for k in _names(root, scope)}
        raise InputError(
            f"config key {path}.type: nothing called {name!r} is registered"
            f"{_suggest(name, everything)}"
        )
    known = {"type", "_scope_"}
    for root, built in found:
        arguments = _arguments(built)
        if arguments is None:
            return None
        known |= arguments | BUILDER_KEYS.get(root, set())
    return known


def _arguments(built: Any) -> set[str] | None:
    """Names a class or function can be called with; None if it takes any."""
    names: set[str] = set()
    chain = built.__mro__ if inspect.isclass(built) else (built,)
    for link in chain:
        function = link.__dict__.get("__init__") if inspect.isclass(link) else link
        if function is None or function is object.__init__:
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {"self"}
    if inspect.isclass(built) and "resize_type" in names:  # RandomResize hands its rest to Resize
        names |= {"keep_ratio", "clip_object_border", "backend", "interpolation"}
    if inspect.isclass(built) and "ema_type" in names:  # EMAHook hands its rest to the average
        names |= {"momentum", "gamma", "interval", "device", "update_buffers"}
    # Every class in the chain hands its **kwargs on; nn.Module and object end it.
    return names - {"self"} if inspect.isclass(built) else None


def _root_registries() -> list[Registry]:
    return [r for r in vars(mmengine.registry).values() if isinstance(r, Registry)]


def _registered(name: str, scope: str) -> Iterator[tuple[str, Any]]:
    """(root registry, object) for everything a config's `type` may mean in this scope."""
    if "." in name:
        scope, name = name.split(".", 1)
    for root in _root_registries():
        registry = root.children.get(scope, root)
        if name in _names(root, scope):
            yield root.name, registry.get(name)
    if scope == "mmdet":  # RoI layers and nms are looked up in mmcv.ops, not in a registry
        import mmcv.ops

        if hasattr(mmcv.ops, name):
            yield "mmcv.ops", getattr(mmcv.ops, name)


def _names(root: Registry, scope: str) -> set[str]:
    registry = root.children.get(scope, root)
    registry.import_from_location()
    return set(registry.module_dict) | set(root.module_dict)


def _dicts(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _dicts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _dicts(value, f"{path}.{i}")


def _with_list_marks(path: str) -> str:
    parts = path.split(".")
    named = len(parts) > 1 and parts[0] in NAMED
    return ".".join(
        "[]" if part.isdigit() or (named and i == 1) else part for i, part in enumerate(parts)
    )


def _fill_widths(config: Config) -> None:
    """Replace `in_channels="backbone"` of a neck or head by the widths of the backbone's maps.

    A head gets those of its `in_index`. With it a config changes its backbone by one key.
    """
    model = config.model
    parts = [model.get(name) for name in ("neck", "decode_head", "auxiliary_head")]
    parts = [part for part in parts if part and part.get("in_channels") == "backbone"]
    if not parts:
        return
    scope = config.get("default_scope") or "mmengine"
    try:
        with DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
            backbone = MODELS.build(dict(model.backbone))
    except InputError:
        raise
    except Exception as error:  # its arguments may be anything
        raise InputError(f"config key model.backbone: {_first_line(error)}") from error
    widths = [backbone.dims[i] for i in backbone.out_indices]
    for part in parts:
        index = part.get("in_index", range(len(widths)))
        try:
            single = isinstance(index, int)
            part.in_channels = widths[index] if single else [widths[i] for i in index]
        except (LookupError, TypeError):
            raise InputError(
                f"config key in_index: {index!r:.40}, but the backbone has {len(widths)} maps"
            ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _override(config: Config, dotted: str, value: Any) -> None:
    """Set a key that is there or that its parent is known to read; `validate` sees the rest."""
    node: Any = config._cfg_dict
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        known: Any
        if isinstance(node, list | tuple):
            known = [str(i) for i in range(len(node))]
        elif isinstance(node, dict):
            parent = ".".join(parts[:depth])
            scope = config.get("default_scope") or "mmengine"
            known = set(node) | (_known_keys(parent, node, scope) or set())
        else:
            known = ()
        if part not in known:
            where = ".".join(parts[: depth + 1])
            raise InputError(
                f"--cfg-options {dotted}: the config has no {where}{_suggest(part, known)}"
            )
        if isinstance(node, dict) and part not in node:
            break
        node = node[int(part)] if isinstance(node, list | tuple) else node[part]
    else:
        _check_kind(dotted, node, value)
    if isinstance(value, float) and isnan(value):
        raise InputError(f"--cfg-options {dotted}: nan is not a number")
    try:
        config.merge_from_dict({dotted: value})
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"--cfg-options {dotted}: {error}") from None


def _check_kind(dotted: str, former: Any, value: Any) -> None:
    """Refuse a value of a kind that nothing which reads the former one could read."""
    last = dotted.rpartition(".")[2]
    if isinstance(former, dict) and not isinstance(value, dict | None) and last not in EITHER:
        example = next(iter(former), "KEY")
        raise InputError(
            f"--cfg-options {dotted}: {value!r:.40} in place of a dict; set its keys, "
            f"as {dotted}.{example}=..."
        )
    dicts = isinstance(former, list | tuple) and any(isinstance(each, dict) for each in former)
    if dicts and value is not None:
        if not isinstance(value, list | tuple) or not all(isinstance(v, dict) for v in value):
            raise InputError(
                f"--cfg-options {dotted}: {value!r:.40} in place of a list of dicts; set their "
                f"keys, as {dotted}.0.type=..., or write a config"
            )
    number = isinstance(former, int | float)
    if number and isinstance(value, str) and last not in EITHER:
        raise InputError(f"--cfg-options {dotted}: {value!r:.40} in place of {former}")


def _suggest(name: str, known: Any) -> str:
    close = get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _suggest_file(path: Path) -> str:
    near = path.parent if path.parent.is_dir() else Path()
    close = get_close_matches(path.name, [p.name for p in near.glob("*.py")], n=1)
    return f"; did you mean {near / close[0]}?" if close else ""
