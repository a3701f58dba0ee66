"""ConvNeXt weights: recognised, renamed to the official layout, loaded whole or not at all.

Loading never ends half done: what does not fit is an `InputError` that names it, GRN and layer
scale included.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from backbones.errors import InputError

from .dialects import (
    DIALECTS,
    MMPRETRAIN,
    OFFICIAL,
    TARGETS,
    TIMM,
    Dialect,
    architecture,
    from_official,
    to_official,
)
from .reading import read_checkpoint, trusted
from .zoo import LICENCES as ZOO_LICENCES
from .zoo import licence_of

__all__ = [
    "Coverage",
    "adapt_stem",
    "architecture",
    "convert",
    "load_pretrained",
    "load_whole",
    "mismatches",
    "read_checkpoint",
    "recognise",
    "state_dict",
    "trusted",
]

# Where training scripts put the weights inside a checkpoint, the first one found wins.
WRAPPERS = ("state_dict", "model", "teacher", "model_ema", "module")
DEEPEST = 8  # wrappers in one another; a file may hold itself


# What publishers write into a file name about the training, and about the licence.
TRAINING = (
    (r"eupe", "EUPE"),
    (r"dinov3", "DINOv3"),
    (r"clip", "CLIP"),
    (r"fcmae", "FCMAE"),
    (r"(?<![a-z\d])(?:in|im)?2[12]k", "ImageNet-22k"),
    (r"(?<![a-z\d])(?:in|im)?12k", "ImageNet-12k"),
    (r"(?<![a-z\d])(?:in|im)?1k", "ImageNet-1k"),
)
LICENCES = (
    (r"convnext-?v2", "Meta's V2 weights are CC-BY-NC 4.0, not for commercial use"),
    (r"dinov3", "DINOv3's own licence"),
    (r"eupe", "EUPE's weights are not for commercial use"),
)


@dataclass(frozen=True)
class Coverage:
    """What became of a checkpoint's tensors and a model's parameters.

    Attributes:
        source: file, URL or hub name.
        dialect: name of the layout found.
        weights: which weights they are, as far as sizes, keys and the file's name tell.
        loaded: parameters filled from the checkpoint.
        ignored: checkpoint tensors without use here, and why.
        initial: output norms that keep their initial value, and why.
        changed: what was done to tensors beyond renaming and reshaping.
    """

    source: str
    dialect: str
    weights: str
    loaded: tuple[str, ...]
    ignored: Mapping[str, str]
    initial: Mapping[str, str]
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{self.source}: {len(self.loaded)} tensors loaded ({self.dialect} layout)",
            self.weights,
            *self.changed,
        ]
        if self.ignored:
            parts.append(f"not needed: {_modules(self.ignored)}")
        if self.initial:
            parts.append(f"not in it, left at their initial value: {_modules(self.initial)}")
        return "; ".join(parts)


def load_pretrained(
    model: nn.Module,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    wrapper: str | None = None,
    sha256: str | None = None,
    replace_head: bool = False,
) -> Coverage:
    """Load ConvNeXt weights of any known dialect into a `ConvNeXt` or `ConvNeXtClassifier`.

    A stem made for RGB is adapted to other `in_channels` (see `adapt_stem`).

    Args:
        model: the backbone to fill; untouched if anything is wrong.
        checkpoint: anything `read_checkpoint` reads; of a classifier, a backbone, a whole detector
            or segmentor.
        prefix: where the backbone's names start in the checkpoint, if it holds several backbones.
        wrapper: key of the weights, if the checkpoint holds several sets of them.
        sha256: the file's checksum, or the first 8 or more of its digits.
        replace_head: a classifier keeps the head it was built with, for other classes; without it
            the checkpoint's has to fit.

    Raises:
        InputError: the file cannot be read, holds no ConvNeXt, another architecture, a tensor of
            another shape or a name the model does not know, or leaves a parameter of the backbone
            without a value.
    """
    content = read_checkpoint(checkpoint, sha256=sha256)
    tensors = state_dict(content, checkpoint, wrapper)
    dialect, prefix = recognise(tensors, checkpoint, prefix)
    official, outside = to_official(tensors, dialect, prefix, checkpoint)
    origin = describe(official, checkpoint, wrapper_of(content, wrapper))
    coverage, fitting = _fit(
        official, outside, model, str(checkpoint), dialect.name, origin, replace_head
    )
    model.load_state_dict(fitting, strict=False)
    print_log(str(coverage), logger="current")
    return coverage


def load_whole(
    model: nn.Module,
    checkpoint: object,
    source: str | os.PathLike,
    free: Sequence[str] = (),
    keep_fitting: bool = True,
) -> str:
    """Load a whole detector's, segmentor's or classifier's weights, its ConvNeXt in any dialect.

    Heads and necks of mmdet, mmseg and the official repositories have the same names as ours.

    Args:
        model: filled exactly, or untouched.
        checkpoint: what `read_checkpoint` returned.
        source: what to call it in messages.
        free: layers that need not fit; they keep their initial values, which the line says.
        keep_fitting: load those of them that do fit.

    Returns:
        One line that says what was loaded.

    Raises:
        InputError: a tensor is missing, unknown or shaped otherwise.
    """
    tensors = state_dict(checkpoint, source)
    target = model.state_dict()
    name = type(model).__name__
    backbones = [k[: -len(OFFICIAL.marker)] for k in target if k.endswith(OFFICIAL.marker)]
    if len(backbones) == 1 and target.keys().isdisjoint(tensors):
        _, prefix = recognise(tensors, source)
        before = prefix.removesuffix(backbones[0])
        if all(name.startswith(backbones[0]) for name in target):  # a classifier is its network
            tensors = {
                backbones[0] + name.removeprefix(prefix): tensor for name, tensor in tensors.items()
            }
            before = ""
        elif before == prefix:
            raise InputError(
                f"{source}: does not fit {name}: holds a backbone alone; give it to "
                "model.backbone.init_cfg as dict(type='Pretrained', checkpoint=...)"
            )
        tensors = {key.removeprefix(before): tensor for key, tensor in tensors.items()}
    layouts = {}
    for backbone in backbones:
        for dialect in DIALECTS:
            if backbone + dialect.marker in tensors:
                inside = {k: v for k, v in tensors.items() if k.startswith(backbone)}
                official, rest = to_official(inside, dialect, backbone, source)
                tensors = {k: v for k, v in tensors.items() if k not in inside or k in rest}
                tensors |= {backbone + key: tensor for key, tensor in official.items()}
                layouts[backbone] = dialect.name
    left = [
        layer
        for layer in free
        if not keep_fitting
        or any(
            tensors[key].shape != target[key].shape
            for key in (f"{layer}.weight", f"{layer}.bias")
            if key in tensors and key in target
        )
    ]
    initial = {key for layer in left for key in (f"{layer}.weight", f"{layer}.bias")}
    loaded = {key: tensor for key, tensor in tensors.items() if key not in initial}
    filled = {key: tensor for key, tensor in target.items() if key not in initial}
    if problem := mismatches(loaded, filled):
        raise InputError(f"{source}: does not fit {name}: {problem}")
    model.load_state_dict(loaded, strict=not left)
    found = ", ".join(f"{where[:-1]} in the {layout} layout" for where, layout in layouts.items())
    line = f"{source}: {len(loaded)} tensors loaded" + (f" ({found})" if found else "")
    return line + (f"; left at their initial value: {', '.join(left)}" if left else "")


def recognise(
    tensors: Mapping[str, Tensor], source: str | os.PathLike, prefix: str | None = None
) -> tuple[Dialect, str]:
    """The dialect of a state dict and the prefix before its names, found from the keys alone."""
    found = [
        (dialect, key[: -len(dialect.marker)])
        for key in tensors
        for dialect in DIALECTS
        if key.endswith(dialect.marker)
    ]
    if prefix is not None:
        found = [(dialect, start) for dialect, start in found if start == prefix]
    if not found:
        under = f" under {prefix!r}" if prefix else ""
        raise InputError(
            f"{source}: no ConvNeXt weights{under}; its names: {_first(tuple(tensors), 3)}"
        )
    if len(found) > 1:
        prefixes = ", ".join(repr(start) for _, start in found)
        raise InputError(f"{source}: holds several backbones; choose one by prefix=: {prefixes}")
    return found[0]


def convert(
    source: str | os.PathLike,
    target: str,
    *,
    prefix: str | None = None,
    wrapper: str | None = None,
) -> tuple[dict[str, Tensor], str]:
    """A checkpoint's backbone and classifier in another library's layout.

    Args:
        source: anything `read_checkpoint` reads.
        target: a name in `TARGETS`.
        prefix, wrapper: as for `load_pretrained`.

    Returns:
        Tensors by the library's names, each with memory of its own, and one line on what was done.

    Raises:
        InputError: as `load_pretrained`; the library has no place for a tensor; the file's tensors
            are not those of a whole ConvNeXt.
    """
    content = read_checkpoint(source)
    tensors = state_dict(content, source, wrapper)
    dialect, prefix = recognise(tensors, source, prefix)
    official, rest = to_official(tensors, dialect, prefix, source)
    depths, dims = architecture(official)
    last = f"norm{len(depths) - 1}."
    norms = {name[: len(last)] for name in official if re.match(r"norm\d\.", name)}
    if dialect is MMPRETRAIN and "head.weight" in official and norms == {last}:
        # Its classifiers call the norm of the pooled features after the last stage.
        official = {re.sub(rf"^{last}", "norm.", k): v for k, v in official.items()}
        norms = set()
    if "head.weight" in official and norms and TARGETS[target] is not TIMM:
        raise InputError(
            f"{source}: its classifier normalises before it pools ({last}weight), which only "
            "timm's can"
        )
    try:
        converted = from_official(official, TARGETS[target])
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    line = f"{source}: {len(converted)} tensors, {dialect.name} to {target}"
    line += f"; {describe(official, source, wrapper_of(content, wrapper))}"
    if "head.weight" not in official:
        line += "; no classifier in it"
    if rest:
        line += f"; left out: {_modules(rest)}"
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in converted.items()}, line


def mismatches(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """What keeps `tensors` from filling `target` exactly, in one phrase; empty if nothing does."""
    problems = [f"{n} is unknown" for n in tensors if n not in target]
    for name, wanted in target.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != wanted.shape:
            problems.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted.shape)}")
        elif wanted.is_floating_point() and not tensors[name].is_floating_point():
            problems.append(f"{name} is of {str(tensors[name].dtype).removeprefix('torch.')}")
        elif wanted.is_floating_point() and not bool(torch.isfinite(tensors[name].float()).all()):
            problems.append(f"{name} holds values that are not finite")
    return _first(tuple(problems))


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """The stem (C, 3, 4, 4) for images of other than three channels: (C, in_channels, 4, 4).

    One channel gets the sum over RGB; others repeat R, G, B, R, ..., scaled by 3 / in_channels so
    that activations keep their size. timm's rule (`timm.models.adapt_input_conv`).
    """
    if in_channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, ceil(in_channels / 3), 1, 1)[:, :in_channels]
    return (repeated * (3 / in_channels)).to(weight.dtype)


def describe(tensors: Mapping[str, Tensor], source: str | os.PathLike, wrapper: str) -> str:
    """Which weights these are: version and size from the tensors, the rest from names, where known.

    Args:
        tensors: by official names.
        source: file, URL or hub name; its last part is read.
        wrapper: what `wrapper_of` returned.
    """
    from backbones.convnext import ARCHITECTURES  # it imports this module

    depths, dims = architecture(tensors)
    known = (n for n, a in ARCHITECTURES.items() if (a["depths"], a["dims"]) == (depths, dims))
    version = "V2" if any(".grn." in name for name in tensors) else "V1"
    facts = [f"ConvNeXt {version} {next(known, f'with depths {depths} and dims {dims}')}"]
    name = os.fspath(source).rstrip("/").rsplit("/", 1)[-1].lower()
    facts += [label for pattern, label in TRAINING if re.search(pattern, name)]
    if match := re.search(r"(?<!\d)(224|256|288|320|384|512|640)(?!\d)", name):
        facts.append(f"{match[1]} px")
    if wrapper:
        facts.append(wrapper)
    elif match := re.search(r"(?<![a-z])(no)?ema(?![a-z])", name):
        facts.append("not EMA" if match[1] else "EMA")
    if licence := licence_of(os.fspath(source)):
        commercial = "" if ZOO_LICENCES.get(licence, True) else ", not for commercial use"
        facts.append(f"licence {licence}{commercial}")
    else:
        facts += [text for pattern, text in LICENCES if re.search(pattern, name)]
    return ", ".join(facts)


def _fit(
    tensors: dict[str, Tensor],
    outside: dict[str, str],
    model: nn.Module,
    source: str,
    dialect: str,
    origin: str,
    replace_head: bool,
) -> tuple[Coverage, dict[str, Tensor]]:
    """Match official names with the model's parameters; every mismatch is an error."""
    depths, dims = architecture(tensors)
    built = len(model.stages)
    if (depths[:built], dims[:built]) != (model.depths[:built], model.dims[:built]):
        raise InputError(
            f"{source}: holds a ConvNeXt with depths {depths} and dims {dims}, "
            f"the model has depths {model.depths} and dims {model.dims}"
        )
    target = model.state_dict()
    has_grn = any(".grn." in name for name in tensors)
    if has_grn != any(".grn." in name for name in target):
        version = ("V1", "V2")[has_grn]
        raise InputError(f"{source}: holds ConvNeXt {version} weights; set use_grn={has_grn}")

    changed = []
    stem, wanted = "downsample_layers.0.0.weight", target["downsample_layers.0.0.weight"]
    if stem in tensors and tensors[stem].shape[1:2] == (3,) and wanted.shape[1] != 3:
        tensors = tensors | {stem: adapt_stem(tensors[stem], wanted.shape[1])}
        changed.append(f"stem adapted from 3 to {wanted.shape[1]} channels")

    # Self-supervised backbones have no head; their one norm was trained on maps, so it is used.
    last = f"norm{len(model.depths) - 1}"
    heads = [name for name in (*tensors, *outside) if re.search(r"(^|\.)head\.", name)]
    if not heads and f"{last}.weight" in target and f"{last}.weight" not in tensors:
        renamed = {re.sub(r"^norm\.", f"{last}.", name): t for name, t in tensors.items()}
        if renamed.keys() != tensors.keys():
            tensors = renamed
            changed.append(f"its final norm is {last}")

    # Left over: a classifier's norm and head, output norms and stages that out_indices leaves out.
    classifier = re.compile(r"(norm|head)\.(weight|bias)")
    later = re.compile(r"(?:downsample_layers\.|stages\.|norm)(\d+)\..+")
    ignored = {}
    for name in tensors:
        if name not in target and classifier.fullmatch(name):
            ignored[name] = "a classifier's"
        elif name not in target and (match := later.fullmatch(name)):
            if name.startswith("norm") or built <= int(match[1]) < len(model.depths):
                ignored[name] = "not in out_indices"
    # Left at its initial value: an output norm, where the checkpoint is no dense backbone's.
    # mmpretrain's classifiers call their one norm after the last stage.
    output_norm = re.compile(r"(norm\d+)\.(?:weight|bias)")
    norms = {match[1] for name in tensors if (match := output_norm.fullmatch(name))}
    initial = {
        name: "a classifier has no output norms"
        for name in target
        if name not in tensors and output_norm.fullmatch(name) and norms <= {last}
    }
    if replace_head:
        if "head.weight" not in target:
            raise InputError("replace_head: the model has no head; only a classifier has one")
        head = ("head.weight", "head.bias")
        ignored |= {name: "replaced" for name in head if name in tensors}
        initial |= {name: "replace_head" for name in head}
    fitting = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    wanted = {name: tensor for name, tensor in target.items() if name not in initial}
    if problem := mismatches(fitting, wanted):
        hint = "; replace_head=True keeps the model's own head" if "head.weight" in problem else ""
        raise InputError(f"{source}: does not fit the model: {problem}{hint}")
    coverage = Coverage(
        source, dialect, origin, tuple(fitting), ignored | outside, initial, tuple(changed)
    )
    return coverage, fitting


def state_dict(
    checkpoint: object, source: str | os.PathLike, wrapper: str | None = None
) -> dict[str, Tensor]:
    """The tensors by name in what a training script saved.

    Args:
        checkpoint: what `read_checkpoint` returned.
        source: what to call it in messages.
        wrapper: key of the weights; without it the first of `WRAPPERS` that holds tensors.
    """
    if wrapper is not None:
        if not (isinstance(checkpoint, Mapping) and _holds_tensors(checkpoint.get(wrapper))):
            raise InputError(f"{source}: holds no weights under {wrapper!r}")
        checkpoint = checkpoint[wrapper]
    for _ in range(DEEPEST + 1):
        if not (keys := _wrappers(checkpoint)):
            break
        checkpoint = checkpoint[keys[0]]
    else:
        raise InputError(f"{source}: its weights are wrapped in {keys[0]!r} without end")
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{source}: holds a {type(checkpoint).__name__}, not weights by name")
    tensors = {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"{source}: holds no tensors; its keys are {_first(tuple(checkpoint), 5)}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(f"{source}: {name} is sparse, quantised or without values; save plain")
    if all(key.startswith("module.") for key in tensors):  # saved from DistributedDataParallel
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return tensors


def wrapper_of(checkpoint: object, wrapper: str | None = None) -> str:
    """Which of several sets of weights `state_dict` takes, in a phrase; empty if there is one."""
    keys = _wrappers(checkpoint)
    chosen = wrapper or (keys[0] if keys else "")
    others = ", ".join(key for key in keys if key != chosen)
    averaged = {"model_ema": "EMA, "}.get(chosen, "not EMA, " if "model_ema" in keys else "")
    if others:
        return f"{averaged}under {chosen!r} (also there: {others})"
    return averaged.removesuffix(", ")


def _wrappers(checkpoint: object, depth: int = DEEPEST) -> list[str]:
    if not isinstance(checkpoint, Mapping) or not depth:
        return []
    return [key for key in WRAPPERS if _holds_tensors(checkpoint.get(key), depth)]


def _holds_tensors(value: object, depth: int = DEEPEST) -> bool:
    return isinstance(value, Mapping) and (
        any(isinstance(v, Tensor) for v in value.values()) or bool(_wrappers(value, depth - 1))
    )


def _modules(reasons: Mapping[str, str]) -> str:
    """The modules that parameters belong to, each once, by reason: norm, head (a classifier's)."""
    grouped: dict[str, dict[str, None]] = {}
    for name, reason in reasons.items():
        module = re.match(r"[^.]+(\.\d+)?", name)[0]
        grouped.setdefault(reason, {})[module] = None
    return ", ".join(f"{', '.join(modules)} ({why})" for why, modules in grouped.items())


def _first(names: tuple, count: int = 4) -> str:
    shown = ", ".join(map(str, names[:count]))
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
