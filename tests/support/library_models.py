"""Build the libraries' own ConvNeXts at a small size, with weights that matter."""

import re

import pytest
import torch
from support.oracles import import_mmpretrain, randomise
from torch import nn

DEPTHS, DIMS = (1, 1, 2, 1), (8, 12, 16, 20)
NARROW = dict(depths=DEPTHS, dims=DIMS)
V1 = dict(arch=NARROW, layer_scale_init_value=1.0)
V2 = dict(arch=NARROW, use_grn=True)
VERSIONS = pytest.mark.parametrize("arguments", [V1, V2], ids=["v1", "v2"])


def randomised(theirs: nn.Module) -> nn.Module:
    """Draw weights without zero GRN, identity norm, or a layer scale that hides a block."""
    randomise(theirs)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "grn" in name:
                parameter.normal_(0, 0.5)
            elif re.search(r"conv_dw|depthwise|dwconv|block\.0\.", name) and parameter.ndim == 4:
                parameter.mul_(2)
    theirs.eval()
    return theirs


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96)


def timm_model(arguments: dict, **more) -> nn.Module:
    from timm.models.convnext import ConvNeXt as TimmConvNeXt

    grn = arguments.get("use_grn", False)
    more = dict(num_classes=5, depths=DEPTHS, dims=DIMS) | more
    return randomised(TimmConvNeXt(use_grn=grn, ls_init_value=None if grn else 1.0, **more))


def torchvision_model(depths=DEPTHS, dims=DIMS) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

    following = [*dims[1:], None]
    blocks = [CNBlockConfig(*each) for each in zip(dims, following, depths, strict=True)]
    return randomised(TorchvisionConvNeXt(blocks, num_classes=5))


def transformers_model(name: str, **more) -> nn.Module:
    import transformers

    model = getattr(transformers, name)
    sizes = dict(hidden_sizes=list(DIMS), depths=list(DEPTHS), num_labels=5) | more
    if "out_features" not in more and name.endswith("Backbone"):
        sizes["out_features"] = ["stage1", "stage2", "stage3", "stage4"]
    return randomised(model(model.config_class(**sizes)))


def mmpretrain_model(arguments: dict, **more) -> nn.Module:
    grn = arguments.get("use_grn", False)
    arch = dict(depths=list(DEPTHS), channels=list(DIMS))
    return randomised(
        import_mmpretrain().ConvNeXt(
            **(dict(arch=arch, use_grn=grn, layer_scale_init_value=1.0 - grn) | more)
        )
    )
