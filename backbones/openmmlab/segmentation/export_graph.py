"""Express a segmentor as a function of images."""

from typing import Any

import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.ops.average_pool import average_pool


class SegmentorGraph(nn.Module):
    """Compute label maps (N, 1, H, W) int64 or logits (N, classes, H, W) from images.

    The whole image goes through the network at once, whatever `test_cfg` says.
    """

    inputs = {"input": {0: "batch", 2: "height", 3: "width"}}

    def __init__(self, preprocessing: nn.Module, model: Any, logits: bool):
        super().__init__()
        _check_head(model.decode_head)
        if model.data_preprocessor.test_cfg:
            raise InputError(
                "data_preprocessor.test_cfg: padding of test images cannot be exported; remove it",
                code="unsupported",
                where="data_preprocessor.test_cfg",
            )
        for module in list(model.modules()):
            if hasattr(module, "factorize"):  # UperNet's head as mmseg writes it
                module.factorize = False
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(module, name, AveragePool(child.output_size))
        self.preprocessing = preprocessing
        self.model = model
        self.outputs = ("logits",) if logits else ("output",)

    def forward(self, input: Tensor) -> tuple[Tensor]:
        height, width = input.shape[2:]
        logits = self.model.decode_head(self.model.extract_feat(self.preprocessing(input))).float()
        logits = F.interpolate(
            logits,
            (height, width),
            mode="bilinear",
            align_corners=self.model.align_corners,
        )
        if self.outputs == ("logits",):
            return (logits,)
        if logits.shape[1] == 1:
            threshold = self.model.decode_head.threshold
            return ((logits.sigmoid() > threshold).long(),)
        return (logits.argmax(1, keepdim=True),)


def _check_head(head: nn.Module) -> None:
    """Reject heads whose prediction is more than their resized output: Mask2Former, cascades."""
    kind = type(head)
    if not isinstance(head, BaseDecodeHead) or any(
        getattr(kind, name) is not getattr(BaseDecodeHead, name)
        for name in ("predict", "predict_by_feat")
    ):
        raise InputError(
            f"decode_head: a {kind.__name__} cannot be expressed in an exported graph; "
            "--part backbone exports the backbone alone",
            code="unsupported",
            where="decode_head",
        )


class AveragePool(nn.Module):
    """Compute `nn.AdaptiveAvgPool2d` of maps of dynamic size, as two matrix products."""

    def __init__(self, output_size: Any):
        super().__init__()
        self.size = output_size if isinstance(output_size, tuple) else (output_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, self.size)
