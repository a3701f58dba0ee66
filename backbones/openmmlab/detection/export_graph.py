"""Express a detector as a function of one image.

What mmdet does with data samples, lists of boxes and branches on their number is written again here
on tensors, so that one graph serves images of every size and any number of boxes.
"""

from math import log
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor, nn
from torchvision.ops.boxes import nms
from torchvision.ops.roi_align import roi_align

from backbones.errors import InputError

from .roi_heads import CascadeMaskRoIHead, MaskRoIHead


class DetectorGraph(nn.Module):
    """Compute the detections of one image, best first: boxes with scores, labels, box masks.

    dets (1, n, 5): x1, y1, x2, y2 in pixels of the input, and the score. labels (1, n) int64.
    masks (1, n, 28, 28): probability of each cell of a box to be of the object, for its label.
    Names and shapes are mmdeploy's.
    """

    inputs = {"input": {2: "height", 3: "width"}}

    def __init__(self, preprocessing: nn.Module, model: Any):
        super().__init__()
        _check(model)
        self.preprocessing = preprocessing
        self.model: Any = model
        roi_head = model.roi_head
        self.outputs = ("dets", "labels", "masks") if roi_head.with_mask else ("dets", "labels")
        cascade = isinstance(roi_head, CascadeMaskRoIHead)
        self.boxes = list(roi_head.bbox_head) if cascade else [roi_head.bbox_head]
        self.masks = []
        if roi_head.with_mask:
            self.masks = list(roi_head.mask_head) if cascade else [roi_head.mask_head]
        self.box_extractors, self.mask_extractors = (
            list(extractors) if cascade else [extractors]
            for extractors in (
                roi_head.bbox_roi_extractor,
                roi_head.mask_roi_extractor if roi_head.with_mask else [],
            )
        )

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        height, width = input.shape[2:]
        size = (height, width)
        maps = self.model.extract_feat(self.preprocessing(input))
        rois = _with_image(self.propose(maps, size))
        boxes, scores, labels = self.detect(maps, rois, size)
        found = (torch.cat([boxes, scores[:, None]], 1)[None], labels[None])
        if not self.masks:
            return found
        rois = _with_image(boxes)
        masks = [
            head.probabilities(_extract(extractor, maps, rois), labels)
            for extractor, head in zip(self.mask_extractors, self.masks, strict=True)
        ]
        return *found, torch.stack(masks).mean(0)[None]

    def propose(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return the RPN's boxes (n, 4) by descending score (mmdet: `_predict_by_feat_single`).

        Args:
            maps: (1, C, H, W), finest first.
            size: height and width of the image, without padding.
        """
        head, config = self.model.rpn_head, self.model.rpn_head.test_cfg
        boxes, scores, levels = [], [], []
        for level, (score, delta) in enumerate(zip(*head(maps), strict=True)):
            priors = head.prior_generator.single_level_grid_priors(
                tuple(score.shape[2:]), level, torch.float32, score.device
            )
            score = exact_sigmoid(score[0].float().permute(1, 2, 0).reshape(-1))
            delta = delta[0].float().permute(1, 2, 0).reshape(-1, 4)
            if config.nms_pre > 0:
                # Places without a score, so that there are always as many as are taken: a graph
                # would keep whether the traced image's level had more or fewer.
                none = config.nms_pre
                score = F.pad(score, (0, none), value=-1.0)
                delta, priors = F.pad(delta, (0, 0, 0, none)), F.pad(priors, (0, 0, 0, none))
                # Sorted as mmdet does and not topk: of equal scores, 1.0 above all, the first.
                score, best = score.sort(descending=True)
                score, best = score[: config.nms_pre], best[: config.nms_pre]
                delta, priors = delta[best], priors[best]
            boxes.append(_decode(head.bbox_coder, priors, delta, size))
            scores.append(score)
            levels.append(torch.full_like(score, level))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        there = scores >= 0
        if config.get("min_bbox_size", -1) >= 0:
            there &= (boxes[:, 2:] - boxes[:, :2] > config.min_bbox_size).all(1)
        there = there.nonzero().squeeze(1)
        boxes, scores, levels = boxes[there], scores[there], levels[there]
        return boxes[_keep(boxes, scores, levels, config)]

    def detect(
        self, maps: tuple[Tensor, ...], rois: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (n, 4), scores and labels (n,) of RoIs (m, 5), by descending score."""
        config = self.model.roi_head.test_cfg
        total: Any = 0
        for stage, (extractor, head) in enumerate(
            zip(self.box_extractors, self.boxes, strict=True), start=1
        ):
            score, delta = (x.float() for x in head(_extract(extractor, maps, rois)))
            total = total + score
            if stage < len(self.boxes):
                if not head.reg_class_agnostic:
                    label = score[:, :-1].argmax(1)
                    delta = delta.view(delta.shape[0], -1, 4)
                    delta = delta.gather(1, label[:, None, None].expand(-1, 1, 4)).squeeze(1)
                rois = _with_image(_decode(head.bbox_coder, rois[:, 1:], delta, size))
        scores = (total / len(self.boxes)).softmax(-1)[:, :-1]
        row, label = (scores > config.score_thr).nonzero(as_tuple=True)
        delta = delta[row]
        if not self.boxes[-1].reg_class_agnostic:
            delta = delta.view(delta.shape[0], -1, 4)
            delta = delta.gather(1, label[:, None, None].expand(-1, 1, 4)).squeeze(1)
        boxes = _decode(self.boxes[-1].bbox_coder, rois[row, 1:], delta, size)
        scores = scores[row, label]
        kept = _keep(boxes, scores, label.to(scores), config)
        return boxes[kept], scores[kept], label[kept]


def exact_sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid, exact to rounding in every runtime.

    onnxruntime's own Sigmoid is a quotient of polynomials, exact to 1e-7 of 1 and not of its value:
    of a logit of -10 it is 0.4 % off, below -17 several times too large, and larger logits have
    smaller scores in many places. A detector trained for a short time gives nearly all anchors such
    scores, and the order of proposals and what suppression keeps of them would be another.
    """
    return 1 / (1 + (-x).exp())


def _with_image(boxes: Tensor) -> Tensor:
    """Return RoIs (n, 5) of boxes (n, 4) in the only image."""
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)


def _extract(extractor: Any, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """Extract features (n, C, h, w) of RoIs (n, 5), level by level, in float32."""
    maps = maps[: extractor.num_inputs]
    levels = extractor.map_roi_levels(rois, len(maps))
    layer = extractor.roi_layers[0]
    # A box without samples is one without area; negative sizes fail in torchvision on a CPU.
    rois = torch.cat([rois[:, :3], torch.maximum(rois[:, 3:], rois[:, 1:3])], 1)
    features = maps[0].new_zeros(
        rois.shape[0], maps[0].shape[1], *layer.output_size, dtype=torch.float32
    )
    for level, (x, layer) in enumerate(zip(maps, extractor.roi_layers, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        part: Tensor = cast(Any, roi_align)(  # whose decorator hides that it is a function
            x.float(),
            rois[chosen],
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        features = features.index_copy(0, chosen, part)
    return features.to(maps[0].dtype)


def _decode(coder: Any, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
    """Move and scale boxes (n, 4) by deltas (n, 4) and clip them (mmdet's delta2bbox)."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    limit = abs(log(16 / 1000))
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + sides * deltas[:, :2]
    halves = sides * deltas[:, 2:].clamp(-limit, limit).exp() * 0.5
    corners = torch.cat([centres - halves, centres + halves], 1)
    height, width = size
    return torch.stack([corners[:, i].clamp(0, height if i % 2 else width) for i in range(4)], 1)


def _keep(boxes: Tensor, scores: Tensor, groups: Tensor, config: Any) -> Tensor:
    """Return the indices of the boxes that NMS within each group keeps, best first.

    mmcv's batched_nms: groups are moved apart by more than the largest coordinate.
    """
    edge = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    apart = boxes + (groups * (edge + 1))[:, None]
    # As mmcv_ops.nms: a box whose IoU is the threshold itself, in float32, stays.
    threshold = float(np.float32(config.nms.iou_threshold))
    return nms(apart, scores, threshold)[: config.max_per_img]


def _check(model: Any) -> None:
    """Reject models that the graph would compute differently."""
    roi_head = getattr(model, "roi_head", None)
    if not isinstance(roi_head, CascadeMaskRoIHead | MaskRoIHead):
        name = type(model).__name__
        raise InputError(
            f"{name}: only detectors with a roi_head of type MaskRoIHead or CascadeMaskRoIHead can "
            "be exported; --part backbone exports the backbone alone",
            code="unsupported",
            where=name,
        )
    rpn: Any = model.rpn_head
    if not isinstance(rpn, RPNHead) or not rpn.use_sigmoid_cls:
        raise InputError(
            f"rpn_head: a {type(rpn).__name__} without sigmoid scores cannot be exported",
            code="unsupported",
            where="rpn_head",
        )
    heads = list(roi_head.bbox_head) if isinstance(roi_head.bbox_head, nn.ModuleList) else []
    heads = heads or [roi_head.bbox_head]
    checks: list[tuple[bool, str]] = [
        (isinstance(head.bbox_coder, DeltaXYWHBBoxCoder), "bbox_coder") for head in [rpn, *heads]
    ]
    checks += [(not head.custom_cls_channels, "loss_cls with an activation") for head in heads]
    checks.append((not roi_head.with_shared_head, "roi_head.shared_head"))
    settings: list[tuple[Any, str]] = [(rpn.test_cfg, "rpn"), (roi_head.test_cfg, "rcnn")]
    for config, name in settings:
        kind = config.nms.get("type", "nms")
        if kind != "nms":
            raise InputError(
                f"model.test_cfg.{name}.nms.type={kind!r}: cannot be exported; "
                f"--cfg-options model.test_cfg.{name}.nms.type=nms uses plain NMS",
                code="unsupported",
                where=f"model.test_cfg.{name}.nms.type",
            )
        known = {"type", "iou_threshold", "split_thr"}  # the last changes nothing but memory
        checks += [(key in known, f"model.test_cfg.{name}.nms.{key}") for key in config.nms]
    for holds, name in checks:
        if not holds:
            raise InputError(
                f"{name}: cannot be expressed in an exported graph", code="unsupported", where=name
            )
