"""Turn models into functions of an image tensor, in operators that every exporter supports."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.convnext import GRN
from backbones.errors import InputError
from backbones.openmmlab.tasks import task_of_model

PARTS = ("model", "backbone")


class Preprocessing(nn.Module):
    """Apply the channel order, mean, std and padding of a model's data preprocessor.

    Images (N, C, H, W) in float32, as they are decoded (0 to 255 in OpenCV's order, BGR, where they
    are 8-bit colour) become normalised ones, padded right and below to a multiple of `divisor`.
    """

    def __init__(self, preprocessor: Any, dtype: torch.dtype, channels: int = 3):
        super().__init__()
        # A classifier's batches are only moved: its pipeline has normalised them.
        self.swaps: bool = getattr(preprocessor, "_channel_conversion", False)
        self.normalises = hasattr(preprocessor, "mean")
        mean = getattr(preprocessor, "mean", torch.zeros(channels, 1, 1))
        std = getattr(preprocessor, "std", torch.ones(channels, 1, 1))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())
        self.channels = mean.numel()
        self.divisor: int = getattr(preprocessor, "pad_size_divisor", 1)
        self.value = float(getattr(preprocessor, "pad_value", 0))
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        if self.swaps:
            images = images.flip(1)
        if self.normalises:
            images = (images - self.mean) / self.std
        if self.divisor > 1:
            height, width = images.shape[2:]
            below, right = -height % self.divisor, -width % self.divisor
            images = F.pad(images, (0, right, 0, below), value=self.value)
        return images.to(self.dtype)


class BackboneGraph(nn.Module):
    """Compute the feature maps of the backbone from images, in float32."""

    inputs = {"input": {0: "batch", 2: "height", 3: "width"}}

    def __init__(self, preprocessing: Preprocessing, backbone: Any):
        super().__init__()
        self.preprocessing = preprocessing
        self.backbone = backbone
        self.outputs = tuple(f"map{i}" for i in backbone.out_indices)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(self.preprocessing(input))
        if isinstance(maps, Tensor):  # a classifier's logits
            maps = (maps,)
        return tuple(x.float() for x in maps)


def build_graph(
    model: Any, part: str = "model", *, logits: bool = False, fp16: bool = False
) -> Any:
    """Copy a model, or its backbone, as a function of images that can be exported.

    Args:
        model: model of a task that can be exported; it is not changed.
        part: one of `PARTS`.
        logits: return a segmentor's logits instead of labels.
        fp16: weights and activations in half precision; statistics of norms, boxes, scores and
            sampling in float32. Inputs and outputs are float32 in any case.

    Returns:
        A module with `inputs`, the dynamic axes of its argument, and `outputs`, their names.

    Raises:
        InputError: something in the model has no counterpart in an exported graph.
    """
    export, name = task_of_model(model).export, type(model).__name__
    if export is None:
        raise InputError(
            f"{name}: models of this task cannot be exported", code="unsupported", where=name
        )
    if logits and (part == "backbone" or not export.has_logits):
        raise InputError(
            "--logits: only a whole segmentor has logits", code="bad-argument", where="--logits"
        )
    if part == "backbone" and not hasattr(model, "backbone"):
        raise InputError(
            f"--part backbone: the head of {name} belongs to its network; export the model",
            code="bad-argument",
            where="--part",
        )
    dtype = torch.float16 if fp16 else torch.float32
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    preprocessing = Preprocessing(model.data_preprocessor, dtype, first.in_channels)
    model = deepcopy(model).cpu().float().eval().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, ConvModule):
            fuse_conv_bn(module)  # variances of large activations do not fit fp16
    if part == "backbone":
        graph = BackboneGraph(preprocessing, model.backbone)
    else:
        graph = export.graph(preprocessing, model, logits)
    if fp16:
        halve(graph)
    return graph.eval()


def halve(graph: Any) -> None:
    """Convert a graph to half precision except its norms, whose statistics overflow fp16.

    The casts stand in the graph by themselves, as not every runtime takes the statistics in float32
    of its own accord. GRN takes its sums of squares in float32 anyway.
    """
    preprocessing = graph.preprocessing
    graph.half()
    preprocessing.float()
    for module in graph.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | _BatchNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
            module.register_forward_hook(lambda _, inputs, output: output.half())
        elif isinstance(module, GRN):
            module.float()


def enlarge_activations(backbone: Any, factor: float) -> Any:
    """Copy a ConvNeXt with activations `factor` times as large before every norm and GRN.

    Layer norm takes the factor out again: the residual stream and what the depthwise convolutions
    make of it carry it, and within the blocks the hidden map does.
    """
    backbone = deepcopy(backbone)
    with torch.no_grad():
        for layers in backbone.downsample_layers:  # the stem ends in its norm
            layers[-1].weight *= factor
            layers[-1].bias *= factor
        for block in backbone.stages.modules():
            if isinstance(getattr(block, "grn", None), GRN):
                block.pwconv1.weight *= factor
                block.pwconv1.bias *= factor
                block.pwconv2.weight /= factor
    return backbone
