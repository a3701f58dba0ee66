"""Load weights into a step of the roadmap, all of them or none."""

import re
from collections.abc import Callable

from mmengine.logging import print_log
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.weights import mismatches, read_checkpoint, recognise, state_dict, to_official

# (theirs, ours): torchvision's ResNet by our names, and ConvNeXt's blocks by ours.
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]
TORCHVISION_RESNET: Rules = (
    (r"^conv1\.", "downsample_layers.0.0."),
    (r"^bn1\.", "downsample_layers.0.1."),
    (r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.", ".shortcut."),
    (r"^fc\.", "head."),
)
CONVNEXT: Rules = (
    (r"\.dwconv\.", ".conv1."),
    (r"(stages\.\d+\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.pwconv1\.", ".conv2."),
    (r"\.pwconv2\.", ".conv3."),
)


def load_step(
    model: nn.Module,
    source: str,
    network: str,
    *,
    built: int,
    prefix: str | None = None,
    wrapper: str | None = None,
    sha256: str | None = None,
    replace_head: bool = False,
) -> None:
    """Load weights into a step of the roadmap, all or none, and log where they come from.

    Args:
        model: the backbone or classifier to fill; untouched if anything is wrong.
        source: anything `read_checkpoint` reads: a file of this network (its classifier, a whole
            detector or segmentor), of torchvision's ResNet, or of a ConvNeXt in any known layout.
        network: what messages call the model.
        built: stages that the model has.
        prefix, wrapper, sha256, replace_head: as for `load_pretrained`.

    Raises:
        InputError: the file cannot be read, or its tensors are not this step's.
    """
    tensors = state_dict(read_checkpoint(source, sha256=sha256), source, wrapper)
    layout, tensors = _to_our_names(tensors, source, prefix)
    target = model.state_dict()
    ignored = [name for name in tensors if name not in target and _spare(name, built)]
    # torchvision's older files have no counters of batches; a classifier has no norms of maps.
    initial = [
        name
        for name in target
        if name not in tensors
        and (name.endswith("num_batches_tracked") or re.match(r"norm\d\.", name))
    ]
    if replace_head:
        initial += [name for name in target if name.startswith("head.")]
        ignored += [name for name in tensors if name.startswith("head.")]
    fitting = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    wanted = {name: tensor for name, tensor in target.items() if name not in initial}
    if problem := mismatches(fitting, wanted):
        raise InputError(
            f"{source}: does not fit {network}: {problem}",
            code="checkpoint-mismatch",
            where=source,
        )
    model.load_state_dict(fitting, strict=False)
    line = f"{source}: {len(fitting)} tensors loaded ({layout}) into {network}"
    if norms := sorted({n.split(".")[0] for n in initial if re.match(r"norm\d\.", n)}):
        line += f"; not in it, left at their initial value: {', '.join(norms)}"
    print_log(line, logger="current")


def _to_our_names(
    tensors: dict[str, Tensor], source: str, prefix: str | None
) -> tuple[str, dict[str, Tensor]]:
    """Return the layout of a state dict, and its tensors with our names and shapes."""
    ours = "stages.0.0.conv1.weight"
    if "layer1.0.conv1.weight" in tensors:
        return "torchvision's ResNet", _renamed(tensors, TORCHVISION_RESNET)
    prefixes = [key.removesuffix(ours) for key in tensors if key.endswith(ours)]
    if prefixes and prefix in (None, *prefixes):
        prefix = prefixes[0] if prefix is None else prefix
        return "its own layout", {
            key.removeprefix(prefix): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
    dialect, prefix = recognise(tensors, source, prefix)
    official, _ = to_official(tensors, dialect, prefix, source)
    pointwise = re.compile(r"\.pwconv\d\.weight$")
    shaped = {k: v[:, :, None, None] if pointwise.search(k) else v for k, v in official.items()}
    return f"ConvNeXt, {dialect.name} layout", _renamed(shaped, CONVNEXT)


def _renamed(tensors: dict[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _spare(name: str, built: int) -> bool:
    """Return whether a network of fewer stages, or without a head, may ignore a tensor."""
    if re.fullmatch(r"(norm\d*|head)\.\w+", name):
        return True
    match = re.match(r"(?:downsample_layers|stages)\.(\d+)\.", name)
    return bool(match) and int(match[1]) >= built
