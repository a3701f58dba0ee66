"""Report what a load did: which weights a file holds and what became of its tensors."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from backbones.architectures import ARCHITECTURES

from .recognition import architecture
from .zoo import LICENCES as ZOO_LICENCES
from .zoo import licence_of

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
    """Record what became of a checkpoint's tensors and a model's parameters.

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
            parts.append(f"not needed: {modules(self.ignored)}")
        if self.initial:
            parts.append(f"not in it, left at their initial value: {modules(self.initial)}")
        return "; ".join(parts)


def describe(tensors: Mapping[str, Tensor], source: str | os.PathLike, wrapper: str) -> str:
    """Describe which weights these are: version and size by the tensors, the rest by names.

    Args:
        tensors: tensors by official names.
        source: file, URL or hub name; its last part is read.
        wrapper: what `wrapper_of` returned.
    """
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


def modules(reasons: Mapping[str, str]) -> str:
    """List the modules of parameters, each once, by reason: norm, head (a classifier's)."""
    grouped: dict[str, dict[str, None]] = {}
    for name, reason in reasons.items():
        match = re.match(r"[^.]+(\.\d+)?", name)
        grouped.setdefault(reason, {})[match[0] if match else name] = None
    return ", ".join(f"{', '.join(modules)} ({why})" for why, modules in grouped.items())


def trained_on_maps(source: str | os.PathLike) -> bool:
    """Return whether a source's name shows that its final norm was trained on maps."""
    return bool(re.search(r"dinov3|eupe", "/".join(os.fspath(source).lower().split("/")[-2:])))
