"""Compute the RoI heads of Mask R-CNN and Cascade Mask R-CNN in fewer and faster steps than mmdet.

Weights, losses and detections are those of the mmdet classes they derive from.
"""

from typing import Any

import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.utils import empty_instances
from mmdet.structures.bbox import bbox2roi
from mmengine.registry import MODELS
from torch import Tensor, nn

from backbones.ops.cpu_path import cpu_path_applies
from backbones.ops.roi_align import roi_align

# Of 256 channels and 7x7 bins 12 MiB, which stay in cache from one convolution to the next.
CHUNK = 256
# mmcv's `Conv`, which mmdet's mask head builds, is PyTorch's but for empty inputs.
PLAIN_CONVOLUTIONS = (nn.Conv2d, wrappers.Conv2d)
PASTED = 2**30  # bytes of the images that masks are pasted into at once, on a GPU


@MODELS.register_module()
class FloatRoIExtractor(SingleRoIExtractor):
    """Extract RoI features as mmdet's SingleRoIExtractor, with boxes and sampling in float32.

    mmdet casts the boxes to the features' dtype; bf16 represents only every fourth pixel near 1000.
    On the CPU RoIAlign runs on all threads, and channels-last; in a deterministic run so does a
    GPU's.
    """

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Extract features (n, out_channels, h, w), in the dtype of `feats`, of boxes (n, 5).

        The result may be changed in place.

        Args:
            feats: maps (N, C, H, W), finest first; as many as there are strides, or fewer.
            rois: image index and x1, y1, x2, y2 in pixels of the image.
            roi_scale_factor: factor about the boxes' centres; as in mmdet, one map has none.
        """
        roi_layers: Any = self.roi_layers
        dtype = feats[0].dtype
        exact = torch.promote_types(dtype, torch.float32)
        feats = tuple(x.to(exact) for x in feats)
        rois = rois.to(exact)
        layer = roi_layers[0]
        averages = isinstance(layer, RoIAlign) and layer.pool_mode == "avg"
        # A GPU's own kernel adds gradients in no fixed order.
        ours = rois.is_cpu or torch.are_deterministic_algorithms_enabled()
        if not averages or not ours:
            maps: Any = feats
            return super().forward(maps, rois, roi_scale_factor).to(dtype)
        levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None and len(feats) > 1:
            rois = self.roi_rescale(rois, roi_scale_factor)
        return roi_align(
            feats,
            rois,
            levels,
            [layer.spatial_scale for layer in roi_layers[: len(feats)]],
            layer.output_size,
            sampling_ratio=layer.sampling_ratio,
            aligned=layer.aligned,
        ).to(dtype)


@MODELS.register_module()
class FloatRPNHead(RPNHead):
    """Predict proposals as mmdet's RPNHead, with scores and deltas in float32 for any features.

    bf16 has 128 values between 0.5 and 1: ties would decide which proposals are best.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return objectness (N, A, H, W) and deltas (N, 4A, H, W) of a level's map (N, C, H, W)."""
        scores, deltas = super().forward_single(x)
        return _exact(scores), _exact(deltas)


@MODELS.register_module()
class FloatBBoxHead(ConvFCBBoxHead):
    """Predict boxes as mmdet's ConvFCBBoxHead, with scores and deltas in float32 for any features.

    In inference on a CPU the RoIs go through the head in chunks that stay in cache.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (n, classes + 1) and deltas of RoI features (n, C, h, w)."""
        chunked = self.num_shared_convs and cpu_path_applies(x, gradients=False)
        parts: Any = x.split(CHUNK) if chunked else [x]
        outputs: list[Any] = [super(FloatBBoxHead, self).forward(part) for part in parts]
        scores, deltas = (torch.cat(part) for part in zip(*outputs, strict=True))
        return _exact(scores), _exact(deltas)


@MODELS.register_module()
class ClassMaskHead(FCNMaskHead):
    """Predict masks as mmdet's FCNMaskHead, or the map of each RoI's own class alone."""

    convs: Any
    conv_logits: Any
    upsample: Any

    def probabilities(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return each RoI cell's object probability (n, h, w), in float32 or wider.

        Args:
            x: RoI features (n, C, h / 2, w / 2).
            labels: (n,) class of each RoI; a class-agnostic head has one map for all.
        """
        for conv in self.convs:
            x = conv(x)
        if self.upsample is not None:
            x = self.upsample(x)
            if self.upsample_method == "deconv":
                x = self.relu(x)
        if self.class_agnostic:
            labels = torch.zeros_like(labels)
        if type(self.conv_logits) in PLAIN_CONVOLUTIONS and self.conv_logits.kernel_size == (1, 1):
            # The row of the 1x1 convolution's weight that belongs to the class.
            weight = self.conv_logits.weight.flatten(1)[labels]  # (n, C)
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (n, h * w, C)
            logits = rows.bmm(weight[..., None]).view(x.shape[0], *x.shape[2:])
            logits = logits + self.conv_logits.bias[labels][:, None, None]
        else:
            # Not len(x), which an exported graph would take for a constant.
            logits = self.conv_logits(x)[torch.arange(x.shape[0]), labels]
        return _exact(logits).sigmoid()


def paste_masks(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> Tensor:
    """Paste masks (n, *size) into an image; bool, or uint8 where `threshold` is negative.

    In the boxes' dtype, also under autocast, whose products would move outlines.

    Args:
        probabilities: (n, h, w).
        boxes: (n, 4) in pixels of that image.
        size: (height, width) of the image.
        threshold: least probability inside the mask; negative for the probabilities, times 255.
    """
    height, width = size
    dtype = torch.bool if threshold >= 0 else torch.uint8
    masks = torch.zeros(len(boxes), height, width, dtype=dtype, device=boxes.device)
    # One at a time touches its box alone; on a GPU many at once into full images are faster.
    at_once = 1 if boxes.is_cpu else max(1, PASTED // (4 * height * width))
    for first in range(0, len(boxes), at_once):
        part = slice(first, first + at_once)
        left, top, right, bottom = 0, 0, width, height
        if boxes.is_cpu:
            left, top = (int(side) for side in (boxes[first, :2].floor() - 1).clamp(min=0))
            right = min(int(boxes[first, 2].ceil()) + 1, width)
            bottom = min(int(boxes[first, 3].ceil()) + 1, height)
        rows = _interpolation(boxes[part, 1::2], top, bottom, probabilities.shape[1])
        columns = _interpolation(boxes[part, ::2], left, right, probabilities.shape[2])
        with torch.autocast(boxes.device.type, enabled=False):
            pasted = rows @ probabilities[part].to(rows.dtype) @ columns.mT
        masks[part, top:bottom, left:right] = (
            pasted >= threshold if threshold >= 0 else pasted * 255
        )
    return masks


def _interpolation(sides: Tensor, first: int, last: int, cells: int) -> Tensor:
    """Return bilinear weights (n, last - first, cells) of a box's cells at pixels first to last.

    Those of mmdet's grid_sample; rows and columns are interpolated one after the other.

    Args:
        sides: (n, 2) lower and upper end of the box along this axis, in pixels.
    """
    pixels = torch.arange(first, last, dtype=sides.dtype, device=sides.device) + 0.5
    at = (pixels - sides[:, :1]) / (sides[:, 1:] - sides[:, :1])  # (n, pixels), in boxes
    at = torch.where(at.isinf(), 0.5, at) * cells - 0.5  # a box without width, as in mmdet
    distance = at[..., None] - torch.arange(cells, dtype=sides.dtype, device=sides.device)
    return (1 - distance.abs()).clamp(min=0).nan_to_num(0.0)


class _ClassMasks:
    """Predict masks with `mask_probabilities`, for both RoI heads."""

    test_cfg: Any
    mask_probabilities: Any

    def predict_mask(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict],
        results_list: list[Any],
        rescale: bool = False,
    ) -> list[Any]:
        """Add `masks` (n, H, W) to each image's instances; scale their boxes if `rescale`.

        Args:
            x: maps (N, C, H, W), finest first.
            batch_img_metas: `ori_shape` and `scale_factor` (x, y) of each image.
            results_list: each image's boxes in pixels of the network's input, scores and labels.
            rescale: whether to scale to boxes and masks of the original image.
        """
        threshold = self.test_cfg.mask_thr_binary
        rois = bbox2roi([results.bboxes for results in results_list])
        if not len(rois):
            return empty_instances(
                batch_img_metas,
                rois.device,
                task_type="mask",
                instance_results=results_list,
                mask_thr_binary=threshold,
            )
        labels = torch.cat([results.labels for results in results_list])
        probabilities = self.mask_probabilities(x, rois, labels)
        parts = probabilities.split([len(results) for results in results_list])
        for part, results, meta in zip(parts, results_list, batch_img_metas, strict=True):
            (height, width), (x_scale, y_scale) = meta["ori_shape"][:2], meta["scale_factor"]
            if rescale:
                scale = results.bboxes.new_tensor([x_scale, y_scale] * 2)
                results.bboxes = results.bboxes / scale
            else:
                height, width = round(height * y_scale), round(width * x_scale)
            results.masks = paste_masks(part, results.bboxes, (height, width), threshold)
        return results_list


@MODELS.register_module()
class MaskRoIHead(_ClassMasks, StandardRoIHead):
    """Run mmdet's StandardRoIHead; in inference compute the predicted class's mask alone."""

    mask_head: Any
    mask_roi_extractor: Any
    shared_head: Any

    def mask_probabilities(self, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor) -> Tensor:
        """Return probability maps (n, h, w) of RoIs (n, 5), each for its label (n,)."""
        features = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        if self.with_shared_head:
            features = self.shared_head(features)
        return self.mask_head.probabilities(features, labels)


@MODELS.register_module()
class CascadeMaskRoIHead(_ClassMasks, CascadeRoIHead):
    """Run mmdet's CascadeRoIHead; in inference compute the predicted class's mask alone."""

    mask_head: Any
    mask_roi_extractor: Any
    shared_head: Any

    def mask_probabilities(self, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor) -> Tensor:
        """Return the stages' mean probability maps (n, h, w) of RoIs (n, 5), for labels (n,)."""
        stages = [
            head.probabilities(extractor(x[: extractor.num_inputs], rois), labels)
            for extractor, head in zip(self.mask_roi_extractor, self.mask_head, strict=True)
        ]
        return torch.stack(stages).mean(dim=0)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
