"""Decay learning rates layer by layer for ConvNeXt in any model, detector or segmentor.

The layers are those of the official `optim_factory.py` and of mmdet's and mmseg's
`LearningRateDecayOptimizerConstructor`; here their number follows from the backbone's own depths.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from backbones.convnext import GRN, ConvNeXt
from backbones.errors import Code, InputError
from backbones.roadmap import ModernizedResNet

# Whose parameters have the places that `locate` knows; a step of the roadmap has ConvNeXt's.
NETWORKS = (ConvNeXt, ModernizedResNet)
Network = ConvNeXt | ModernizedResNet
DECAY_TYPES = ("layer_wise", "stage_wise")
PARAMWISE_KEYS = ("decay_rate", "decay_type", "num_layers", "custom_keys")
CUSTOM_KEYS = ("lr_mult", "decay_mult")


def num_layers(depths: Sequence[int]) -> int:
    """Return how many layers above the stem a ConvNeXt of these depths is divided into.

    One each for stages 1, 2 and 4 and one for every three blocks of stage 3: 6 for T (9 blocks) and
    12 for S, B, L, XL and H (27 blocks), as published. Fewer than 9 blocks (A, F, P, N) count as 9,
    as in mmpretrain's `ConvNeXt.get_layer_depth`.

    Raises:
        InputError: other than four stages, for which nothing is published.
    """
    if len(depths) != 4:
        raise _refusal(
            "depths",
            f"layers are defined for a ConvNeXt of 4 stages, not for depths {tuple(depths)}; "
            "remove constructor and paramwise_cfg from optim_wrapper",
        )
    return max(6, 3 + math.ceil(depths[2] / 3))


def locate(name: str, depths: Sequence[int], decay_type: str) -> tuple[int, str]:
    """Return the layer id of a ConvNeXt parameter and its place, such as `stage 3 blocks 0-2`.

    The ids run from 0 (stem) to `num_layers(depths)` + 1 (output norms, and all outside).

    Args:
        name: the parameter's name inside the backbone, such as `stages.2.4.dwconv.weight`.
        depths: blocks of each of the four stages.
        decay_type: `layer_wise` or `stage_wise`.
    """
    last = num_layers(depths)
    kind, *rest = name.split(".")
    if kind == "downsample_layers":
        stage = int(rest[0])
        place = f"downsample {stage + 1}" if stage else "stem"
        # Stage-wise, every downsampling belongs to the stem's layer.
        return (0, 2, 3, last)[stage] if decay_type == "layer_wise" else 0, place
    if kind == "stages":
        stage, block = int(rest[0]), int(rest[1])
        place = f"stage {stage + 1}"
        if decay_type == "stage_wise":
            return stage + 1, place
        if stage == 2:
            first = block - block % 3
            final = min(first + 2, depths[2] - 1)
            blocks = f"blocks {first}-{final}" if final > first else f"block {first}"
            return 3 + block // 3, f"{place} {blocks}"
        return {0: 1, 1: 2, 3: last}[stage], place
    return last + 1, "norms" if kind.startswith("norm") else kind


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Build an optimizer wrapper: the learning rate falls by `decay_rate` per layer to the stem.

    Every ConvNeXt, and every step from ResNet to it, is found by its class, under any name or
    wrapper. A parameter of layer id i (see `locate`) trains at
    lr * decay_rate ** (num_layers + 1 - i); output norms, neck and heads train at lr. Biases,
    parameters with fewer than two dimensions and GRN's gamma and beta get no weight decay. Frozen
    parameters are left out, shared ones appear once. With backbones of different depths the ids are
    counted down from the heads, so that one id always means one scale.

    The groups, in the order of the ids, carry `lr`, `weight_decay`, `lr_scale` (lr over base lr),
    `group_name` (`layer_{id}_{decay|no_decay}`, and `_{key}` under a custom key) and `param_names`.
    Rank 0 logs them as a table.

    Args:
        optim_wrapper_cfg: mmengine's optimizer wrapper config; its optimizer needs `lr` and
            `weight_decay`.
        paramwise_cfg: `decay_rate` in (0, 1], required. `decay_type`, `layer_wise` (default) or
            `stage_wise`. `num_layers` may be left in from mmdet's and mmseg's configs and is only
            checked. `custom_keys` maps a part of parameters' full names to
            dict(lr_mult=..., decay_mult=...); as in mmengine the longest matching key counts, and
            among equally long ones the alphabetically first. Unlike there, its factors multiply the
            layer's learning rate and weight decay instead of replacing them: a head with
            lr_mult=10 trains at ten times lr, and decay_mult alone leaves every learning rate as it
            is and gives no decay to what has none.

    Raises:
        InputError: a missing, unknown or impossible setting; a num_layers that contradicts the
            depths; a custom key that is in no parameter's name; a model without ConvNeXt.
    """

    paramwise_keys = PARAMWISE_KEYS  # which `config.validation` reads

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        if not isinstance(cfg, dict) or "decay_rate" not in cfg:
            raise _refusal(
                "decay_rate",
                "paramwise_cfg has no decay_rate; "
                "write paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise')",
            )
        if unknown := [key for key in cfg if key not in PARAMWISE_KEYS]:
            raise _refusal(
                str(unknown[0]),
                f"unknown key {unknown[0]!r} in paramwise_cfg; "
                f"known are {', '.join(PARAMWISE_KEYS)}",
                "unknown-key",
            )
        rate = cfg["decay_rate"]
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise _refusal("decay_rate", f"decay_rate={rate!r}; give a number in (0, 1]")
        self.decay_type = cfg.get("decay_type", "layer_wise")
        if self.decay_type not in DECAY_TYPES:
            raise _refusal(
                "decay_type",
                f"unknown decay_type {self.decay_type!r}; known are {', '.join(DECAY_TYPES)}",
            )
        self._validate_custom_keys(cfg.get("custom_keys", {}))
        for key, value in (("lr", self.base_lr), ("weight_decay", self.base_wd)):
            if value is None:
                raise _refusal(key, f"optim_wrapper.optimizer has no {key}; add it")

    def _validate_custom_keys(self, custom_keys: dict) -> None:
        if not isinstance(custom_keys, dict):
            raise _refusal(
                "custom_keys",
                f"custom_keys={custom_keys!r}; "
                "give a dict such as {'decode_head': dict(lr_mult=10.0)}",
            )
        for key, factors in custom_keys.items():
            if not isinstance(factors, dict) or not set(factors) <= set(CUSTOM_KEYS):
                raise _refusal(
                    f"custom_keys[{key!r}]",
                    f"custom_keys[{key!r}] = {factors!r}; "
                    f"give a dict of {' and '.join(CUSTOM_KEYS)}",
                )
            for name, value in factors.items():
                if not isinstance(value, int | float) or not 0 <= value < math.inf:
                    raise _refusal(
                        f"custom_keys[{key!r}]",
                        f"custom_keys[{key!r}] has {name}={value!r}; give a number >= 0",
                    )

    def add_params(self, params: list[dict], module: nn.Module) -> None:
        """Append the parameter groups of the whole model `module` to `params` and log them."""
        names: dict[nn.Parameter, list[str]] = {}
        for name, param in module.named_parameters(remove_duplicate=False):
            names.setdefault(param, []).append(name)
        backbones = {name: m for name, m in module.named_modules() if isinstance(m, NETWORKS)}
        layers = self._check_layers(backbones, type(module).__name__)
        places = self._locate_parameters(backbones, layers)
        parents = {name.rpartition(".")[0] for name in backbones}
        grn = {p for m in module.modules() if isinstance(m, GRN) for p in m.parameters()}
        custom_keys = self.paramwise_cfg.get("custom_keys", {})
        _check_matches(custom_keys, [name for aliases in names.values() for name in aliases])
        by_length = sorted(sorted(custom_keys), key=len, reverse=True)

        groups: dict[tuple[int, bool, str], dict] = {}
        rows: dict[tuple[int, float], _Row] = {}
        frozen = 0
        for param, aliases in names.items():
            if not param.requires_grad:
                frozen += param.numel()
                continue
            name = aliases[0]
            layer, place = places.get(param) or (layers + 1, _sibling(name, parents))
            key = next((key for key in by_length if any(key in alias for alias in aliases)), "")
            factors = custom_keys.get(key, {})
            decay_mult = factors.get("decay_mult", 1.0)
            flat = param.ndim < 2 or name.split(".")[-1] == "bias" or param in grn
            decayed = not flat and decay_mult > 0
            weight_decay = self.base_wd * decay_mult if decayed else 0.0
            scale = self.paramwise_cfg["decay_rate"] ** (layers + 1 - layer)
            scale *= factors.get("lr_mult", 1.0)

            group_name = f"layer_{layer}_{'decay' if decayed else 'no_decay'}"
            group = groups.setdefault(
                (layer, not decayed, key),
                dict(
                    params=[],
                    param_names=[],
                    lr=scale * self.base_lr,
                    weight_decay=weight_decay,
                    lr_scale=scale,
                    group_name=f"{group_name}_{key}" if key else group_name,
                ),
            )
            group["params"].append(param)
            group["param_names"].append(name)
            row = rows.setdefault((layer, scale), _Row())
            row.places[place] = None
            row.parameters[weight_decay] += param.numel()
        params.extend(groups[key] for key in sorted(groups))

        if is_main_process():
            print_log(self._table(rows, frozen, backbones), logger="current")

    def _check_layers(self, backbones: dict[str, Network], model: str) -> int:
        """Return the number of layers of the model: the largest of its backbones'."""
        if not backbones:
            raise _refusal(
                model,
                f"{model} has no ConvNeXt in it; use a ConvNeXt backbone "
                "or remove constructor and paramwise_cfg from optim_wrapper",
            )
        for name, backbone in backbones.items():
            layers = num_layers(backbone.depths)
            given = self.paramwise_cfg.get("num_layers", layers)
            if given != layers:
                raise _refusal(
                    "num_layers",
                    f"num_layers={given} contradicts {name or model}, whose "
                    f"depths {tuple(backbone.depths)} make {layers} layers; remove num_layers",
                )
        return max(num_layers(backbone.depths) for backbone in backbones.values())

    def _locate_parameters(
        self, backbones: dict[str, Network], layers: int
    ) -> dict[nn.Parameter, tuple[int, str]]:
        places: dict[nn.Parameter, tuple[int, str]] = {}
        alike = len({backbone.depths for backbone in backbones.values()}) == 1
        for prefix, backbone in backbones.items():
            shift = layers - num_layers(backbone.depths)
            for name, param in backbone.named_parameters():
                layer, place = locate(name, backbone.depths, self.decay_type)
                place = place if alike else f"{prefix} {place}"
                places.setdefault(param, (layer + shift, place))
        return places

    def _table(
        self, rows: dict[tuple[int, float], "_Row"], frozen: int, backbones: dict[str, Network]
    ) -> str:
        cells = [("layer", "what", "parameters", "lr", "scale", "weight decay (parameters)")]
        for (layer, scale), row in sorted(rows.items()):
            decays = sorted(row.parameters.items(), reverse=True)
            cells.append(
                (
                    str(layer),
                    ", ".join(row.places),
                    f"{row.parameters.total():,}",
                    f"{scale * self.base_lr:.3g}",
                    f"{scale:.4f}",
                    ", ".join(f"{decay:g} ({count:,})" for decay, count in decays),
                )
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        # Text to the left, numbers to the right.
        aligns = ("rjust", "ljust", "rjust", "rjust", "rjust", "ljust")
        lines = [
            "  ".join(getattr(c, a)(w) for c, a, w in zip(line, aligns, widths, strict=True))
            for line in cells
        ]
        depths = ", ".join(
            f"{name or 'model'} {tuple(b.depths)} in {num_layers(b.depths)} layers"
            for name, b in backbones.items()
        )
        rate = self.paramwise_cfg["decay_rate"]
        title = f"Learning rate decay, {self.decay_type}, {rate:g}: {depths}"
        if frozen:
            lines.append(f"not trained: {frozen:,} frozen parameters")
        return "\n".join([title, *(line.rstrip() for line in lines)])


@dataclass
class _Row:
    """Hold a line of the table: places, as an ordered set, and parameters by weight decay."""

    places: dict[str, None] = field(default_factory=dict)
    parameters: Counter[float] = field(default_factory=Counter)


def _check_matches(custom_keys: Iterable[str], names: list[str]) -> None:
    for key in custom_keys:
        if not any(key in name for name in names):
            raise _refusal(
                f"custom_keys[{key!r}]",
                f"custom_keys[{key!r}] matches no parameter of the model; correct or remove it",
            )


def _sibling(name: str, parents: Iterable[str]) -> str:
    """Return the module beside a backbone (`neck`, `decode_head`, ...) that holds a parameter."""
    for parent in sorted(parents, key=len, reverse=True):
        if parent and name.startswith(f"{parent}."):
            name = name[len(parent) + 1 :]
            break
    return name.split(".")[0]


def _refusal(where: str, problem: str, code: Code = "bad-value") -> InputError:
    return InputError(f"LayerDecayConstructor: {problem}", code=code, where=where)
