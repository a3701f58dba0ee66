"""Build other libraries' ConvNeXt, and OpenMMLab's whole models on it, with our weights.

`benchmarks/speed.py` measures against them. They come with the project's test extras.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from backbones import ConvNeXt
from backbones.convnext import Block
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.registration import register
from backbones.weights import TARGETS, from_official

STOCK_CONFIGS = {
    "mmdet": "convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py",
    "mmseg": "convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py",
}


class Features(nn.Module):
    """Compute the maps of every stage of a network without output norms, each normalised.

    The norms are the library's, so that all peers do the same work.
    """

    def __init__(self, stem: nn.Module, stages: list[nn.Module], norms: list[nn.Module]):
        super().__init__()
        self.stem, self.stages, self.norms = stem, nn.ModuleList(stages), nn.ModuleList(norms)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.stem(x), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x))
        return tuple(maps)


class TransformersFeatures(nn.Module):
    """Run a transformers backbone that returns a tuple."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(x).feature_maps


def backbone_of(library: str, ours: ConvNeXt, drop_path_rate: float) -> nn.Module | None:
    """Return a library's ConvNeXt with the weights of `ours`; None if it has no such network."""
    first = next(m for m in ours.modules() if isinstance(m, Block))
    grn = first.grn is not None
    scale = 0.0 if first.gamma is None else 1.0
    state = ours.state_dict()
    layout = {k: v for k, v in state.items() if not k.startswith("norm")}
    if library == "mmpretrain":
        register("mmdet")  # mmpretrain needs mmcv's operators, and help beside transformers 5
        from mmpretrain.models import ConvNeXt as Theirs

        theirs = cast(Any, Theirs)(
            dict(depths=list(ours.depths), channels=list(ours.dims)),
            use_grn=grn,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=scale,
            out_indices=[0, 1, 2, 3],
            gap_before_final_norm=False,
        )
        converted = from_official(state, TARGETS["mmpretrain"])
        theirs.load_state_dict({k.removeprefix("backbone."): v for k, v in converted.items()})
        return theirs
    if library == "timm":
        from timm.layers import LayerNorm2d
        from timm.models.convnext import ConvNeXt as Theirs

        theirs = Theirs(
            depths=ours.depths,
            dims=ours.dims,
            use_grn=grn,
            ls_init_value=scale or None,
            drop_path_rate=drop_path_rate,
            num_classes=0,
        )
        converted = from_official(layout, TARGETS["timm"])
        theirs.load_state_dict(converted, strict=False)
        features = Features(
            theirs.stem,
            list(theirs.stages.children()),
            [LayerNorm2d(d, eps=1e-6) for d in ours.dims],
        )
    elif library == "torchvision":
        if grn:
            return None
        from torchvision.models.convnext import CNBlockConfig, LayerNorm2d
        from torchvision.models.convnext import ConvNeXt as Theirs

        following = (*ours.dims[1:], None)
        stages = [
            CNBlockConfig(*stage) for stage in zip(ours.dims, following, ours.depths, strict=True)
        ]
        theirs = Theirs(stages, stochastic_depth_prob=drop_path_rate, layer_scale=1.0)
        theirs.load_state_dict(from_official(layout, TARGETS["torchvision"]), strict=False)
        layers = list(theirs.features)
        stages = [layers[1], *(nn.Sequential(*layers[i : i + 2]) for i in range(2, len(layers), 2))]
        features = Features(layers[0], stages, [LayerNorm2d(d, eps=1e-6) for d in ours.dims])
    else:
        import transformers

        kind = "ConvNextV2" if grn else "ConvNext"
        config = getattr(transformers, f"{kind}Config")(
            hidden_sizes=list(ours.dims),
            depths=list(ours.depths),
            layer_scale_init_value=scale,
            drop_path_rate=drop_path_rate,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        theirs = getattr(transformers, f"{kind}Backbone")(config)
        theirs.load_state_dict(from_official(state, TARGETS["transformers"]))
        return TransformersFeatures(theirs)
    for i, norm in enumerate(features.norms):
        norm.load_state_dict(getattr(ours, f"norm{i}").state_dict())
    return features


def stock_config(library: str) -> Config:
    """Return OpenMMLab's published config of ConvNeXt-T as installed."""
    spec = find_spec(library)
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / ".mim" / "configs" / STOCK_CONFIGS[library]
    config = Config.fromfile(path, import_custom_modules=False)
    return config


def model_of(config: Config, drop_path_rate: float) -> BaseModel:
    """Build a config's detector or segmentor for one process, without pretrained weights."""
    register(config.default_scope)
    import mmpretrain.models  # noqa: F401

    config.launcher = "none"
    config.model.backbone.drop_path_rate = drop_path_rate
    config.model.backbone.pop("init_cfg", None)
    fit_to_machine(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def randomise(module: nn.Module) -> None:
    """Draw weights under which every layer matters and the activations keep their size."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "grn" not in name:
                continue
            parameter.normal_(0, 0.3 if "gamma" in name or "beta" in name else 0.05)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
