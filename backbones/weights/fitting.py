"""Load ConvNeXt weights into a network, all of them or none.

Loading never ends half done: what does not fit is an `InputError` that names it, GRN and layer
scale included.
"""

import os
import re
from collections.abc import Mapping, Sequence
from math import ceil

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.errors import InputError

from .conversion import to_official
from .description import Coverage, describe, trained_on_maps
from .dialects import DIALECTS, OFFICIAL, Dialect
from .reading import read_checkpoint
from .recognition import architecture, first_names, recognise, state_dict, wrapper_of

STEM_BANDS = ("red", "green", "blue")


def load_pretrained(
    model: Backbone,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    wrapper: str | None = None,
    sha256: str | None = None,
    replace_head: bool = False,
    stem_bands: Sequence[str | None] | None = None,
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
        stem_bands: the pretrained band that stands for each channel; see `stand_in_stem`. None
            repeats them as `adapt_stem` does.

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
        official, outside, model, checkpoint, dialect, origin, replace_head, stem_bands
    )
    model.load_state_dict(fitting, strict=False)
    print_log(str(coverage), logger="current")
    return coverage


def load_strictly(
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
        source: its name in messages.
        free: layers that need not fit; they keep their initial values, which the line states.
        keep_fitting: load those of them that do fit.

    Returns:
        One line that states what was loaded.

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
            raise _mismatch(
                source,
                f"does not fit {name}: holds a backbone alone; give it to "
                "model.backbone.init_cfg as dict(type='Pretrained', checkpoint=...)",
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
            for key in target.keys() & tensors.keys()
            if key.startswith(f"{layer}.")
        )
    ]
    inside = tuple(f"{layer}." for layer in left)
    initial = {key for key in tensors.keys() | target.keys() if key.startswith(inside)}
    loaded = {key: tensor for key, tensor in tensors.items() if key not in initial}
    filled = {key: tensor for key, tensor in target.items() if key not in initial}
    if problem := mismatches(loaded, filled):
        raise _mismatch(source, f"does not fit {name}: {problem}")
    model.load_state_dict(loaded, strict=not left)
    found = ", ".join(f"{where[:-1]} in the {layout} layout" for where, layout in layouts.items())
    line = f"{source}: {len(loaded)} tensors loaded" + (f" ({found})" if found else "")
    return line + (f"; left at their initial value: {', '.join(left)}" if left else "")


def mismatches(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """Describe in one phrase what keeps tensors from filling a target exactly; empty if nothing."""
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
    return first_names(tuple(problems))


def stand_in_stem(weight: Tensor, stem_bands: Sequence[str | None]) -> Tensor:
    """Make a stem (C, len(stem_bands), 4, 4) of one (C, 3, 4, 4) for red, green and blue.

    A pretrained band that stands for several is divided by their number, so that activations keep
    their size; a band that none stands for starts at zero.

    Args:
        weight: the pretrained stem.
        stem_bands: the pretrained band, `red`, `green` or `blue`, that stands for each channel, or
            None.

    Raises:
        InputError: it names another band.
    """
    out = weight.new_zeros(len(weight), len(stem_bands), *weight.shape[2:])
    for i, name in enumerate(stem_bands):
        if name is None:
            continue
        if name not in STEM_BANDS:
            raise InputError(
                f"stem_bands: {name!r} is none of red, green, blue and None",
                code="bad-value",
                where="stem_bands",
            )
        out[:, i] = weight[:, STEM_BANDS.index(name)] / stem_bands.count(name)
    return out


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt a stem (C, 3, 4, 4) to another number of channels: (C, in_channels, 4, 4).

    One channel gets the sum over RGB; others repeat R, G, B, R, ..., scaled by 3 / in_channels so
    that activations keep their size. timm's rule (`timm.models.adapt_input_conv`).
    """
    if in_channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, ceil(in_channels / 3), 1, 1)[:, :in_channels]
    return (repeated * (3 / in_channels)).to(weight.dtype)


def _fit(
    tensors: dict[str, Tensor],
    outside: dict[str, str],
    model: Backbone,
    source: str | os.PathLike,
    dialect: Dialect,
    origin: str,
    replace_head: bool,
    stem_bands: Sequence[str | None] | None,
) -> tuple[Coverage, dict[str, Tensor]]:
    """Match official names with the model's parameters; raise an error on any mismatch."""
    depths, dims = architecture(tensors)
    built = model.built
    if (depths[:built], dims[:built]) != (model.depths[:built], model.dims[:built]):
        raise _mismatch(
            source,
            f"holds a ConvNeXt with depths {depths} and dims {dims}, "
            f"the model has depths {model.depths} and dims {model.dims}",
        )
    target = model.state_dict()
    has_grn = any(".grn." in name for name in tensors)
    if has_grn != any(".grn." in name for name in target):
        version = ("V1", "V2")[has_grn]
        raise _mismatch(source, f"holds ConvNeXt {version} weights; set use_grn={has_grn}")

    changed = []
    stem, wanted = "downsample_layers.0.0.weight", target["downsample_layers.0.0.weight"]
    is_rgb = stem in tensors and tensors[stem].shape[1:2] == (3,)
    if stem_bands is not None and is_rgb:
        if len(stem_bands) != wanted.shape[1]:
            raise InputError(
                f"stem_bands: names {len(stem_bands)} bands, the network has {wanted.shape[1]} "
                "channels",
                code="bad-value",
                where="stem_bands",
            )
        tensors = tensors | {stem: stand_in_stem(tensors[stem], list(stem_bands))}
        changed.append(f"stem of {', '.join(map(str, stem_bands))}")
    elif is_rgb and wanted.shape[1] != 3:
        tensors = tensors | {stem: adapt_stem(tensors[stem], wanted.shape[1])}
        changed.append(f"stem adapted from 3 to {wanted.shape[1]} channels")

    # A file without a head has one norm. DINOv3 and EUPE trained it on maps, so it is used; the
    # official files hold it twice. Elsewhere it was a classifier's, trained on pooled features.
    last = f"norm{len(model.depths) - 1}"
    headless = not any(re.search(r"(^|\.)head\.", name) for name in (*tensors, *outside))
    twice = any(re.search(r"(^|\.)norms\.\d+\.", name) for name in outside)
    of_maps = dialect.norm_of_maps or twice or trained_on_maps(source)
    if headless and of_maps and f"{last}.weight" in target and f"{last}.weight" not in tensors:
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
            ignored[name] = "trained on pooled features" if headless else "a classifier's"
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
            raise InputError(
                "replace_head: the model has no head; only a classifier has one",
                where="replace_head",
            )
        head = ("head.weight", "head.bias")
        ignored |= {name: "replaced" for name in head if name in tensors}
        initial |= {name: "replace_head" for name in head}
    fitting = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    wanted = {name: tensor for name, tensor in target.items() if name not in initial}
    if problem := mismatches(fitting, wanted):
        hint = "; replace_head=True keeps the model's own head" if "head.weight" in problem else ""
        raise _mismatch(source, f"does not fit the model: {problem}{hint}")
    coverage = Coverage(
        str(source), dialect.name, origin, tuple(fitting), ignored | outside, initial, (*changed,)
    )
    return coverage, fitting


def _mismatch(source: str | os.PathLike, problem: str) -> InputError:
    return InputError(f"{source}: {problem}", code="checkpoint-mismatch", where=source)
