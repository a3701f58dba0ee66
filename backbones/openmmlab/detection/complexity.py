"""Run the parts of a detector on one image to count multiply-adds."""

from typing import Any

import torch
from mmdet.models.dense_heads import YOLACTHead
from mmdet.models.detectors import (
    YOLACT,
    BoxInst,
    CondInst,
    DeformableDETR,
    DetectionTransformer,
    MaskFormer,
    SingleStageDetector,
    TwoStageDetector,
)
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from backbones.errors import InputError
from backbones.openmmlab.tasks import PartRunner, ValuesNeeded

# What the papers count a detector at: width and height, and the regions of each head. Grid R-CNN
# and the mask heads that follow boxes see as many as detections are kept.
SIZE = (1280, 800)
MASKS = 100
HEADS = dict(bbox_head=1000, grid_head=MASKS, mask_head=MASKS)


def default_size(config: Config) -> tuple[int, int]:
    """Return the (width, height) used in the papers."""
    return SIZE


def run_parts(model: Any, image: Tensor, run: PartRunner) -> None:
    """Run backbone, neck and heads; RoI heads run on regions of their extractor's size.

    Args:
        model: a two-stage, a one-stage or a DETR-like detector.
        image: (1, 3, H, W).
        run: called with each part.

    Raises:
        InputError: what the heads compute depends on what is in the image.
        ValuesNeeded: the heads need values, not sizes alone.
    """
    maps = run("backbone", model.backbone, image)
    if model.with_neck:
        maps = run("neck", model.neck, maps)
    if isinstance(model, BoxInst | CondInst | YOLACT):
        box_head: Any = model.bbox_head
        run("bbox_head", box_head, maps)
        run("mask_head", model.mask_head, maps, [_instances(box_head, image)])
        return
    if not has_regions(model):
        run_dense_heads(model, maps, image, run)
        return
    _refuse_other_heads(model)
    if model.with_rpn:
        run("rpn_head", model.rpn_head, maps)
    if getattr(model, "semantic_head", None) is not None:
        run("semantic_head", model.semantic_head, maps)
    for name, regions in HEADS.items():
        for head, extractor in region_heads(model, name):
            features = region_features(extractor, regions, image)
            if model.roi_head.with_shared_head:
                features = run("shared_head", model.roi_head.shared_head, features)
            run(name, head, features)


def has_regions(model: Any) -> bool:
    """Return whether a detector has RoI heads."""
    return isinstance(model, TwoStageDetector)


def _refuse_other_heads(model: Any) -> None:
    """Reject a two-stage detector if a count would leave out some of its heads."""
    known = {"data_preprocessor", "backbone", "neck", "rpn_head", "semantic_head", "roi_head"}
    known |= {f"roi_head.{part}_head" for part in ("bbox", "mask", "grid", "shared")}
    children = [(name, child) for name, child in model.named_children()]
    children += [(f"roi_head.{name}", child) for name, child in model.roi_head.named_children()]
    for name, child in children:
        if name not in known and any(True for _ in child.parameters()):
            raise InputError(
                f"{type(model).__name__}: what {name} computes depends on the image's content",
                code="unsupported",
                where=name,
            )


def run_dense_heads(model: Any, maps: tuple[Tensor, ...], image: Tensor, run: PartRunner) -> Any:
    """Run the heads of a single-stage detector on its feature maps; return their outputs.

    Raises:
        InputError: what the heads compute depends on what is in the image.
        ValuesNeeded: the heads need values, not sizes alone.
    """
    name = type(model).__name__
    if isinstance(model, DeformableDETR) and (image.is_meta or isinstance(image, FakeTensor)):
        raise ValuesNeeded(
            f"{name}: deformable attention reads the sizes of its maps from tensors, which have no "
            "values here",
            code="unsupported",
            where=name,
        )
    if isinstance(model, DetectionTransformer):
        inputs = run("transformer", model.forward_transformer, maps, blank_samples(image))
        return run("bbox_head", model.bbox_head, **inputs)
    if isinstance(model, MaskFormer):
        return run("panoptic_head", model.panoptic_head, maps, blank_samples(image))
    heads = {name: getattr(model, name, None) for name in ("bbox_head", "mask_head")}
    kinds = SingleStageDetector | SingleStageInstanceSegmentor
    # Where there are both, the mask head follows the boxes that the other one found.
    if not isinstance(model, kinds) or (heads["bbox_head"] and heads["mask_head"]):
        raise InputError(
            f"{name}: what its heads compute depends on the image's content; "
            "two-stage, one-stage and DETR-like detectors have no such heads",
            code="unsupported",
            where=name,
        )
    return [run(part, head, maps) for part, head in heads.items() if head is not None]


def _instances(box_head: Any, like: Tensor) -> InstanceData:
    """Return what the mask head of CondInst or YOLACT reads of what its box head found."""

    def ones(*width: int) -> Tensor:
        return torch.ones(MASKS, *width, device=like.device)

    if isinstance(box_head, YOLACTHead):
        return InstanceData(coeffs=ones(box_head.num_protos))
    parameters = ones(box_head.num_params)
    return InstanceData(param_preds=parameters, points=ones(2), strides=ones())


def blank_samples(images: Tensor) -> list[DetDataSample]:
    """Return samples without annotations for images (N, 3, H, W) without padding."""
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, batch_input_shape=size, pad_shape=size, ori_shape=size)
    return [DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)}) for _ in images]


def region_heads(model: Any, name: str) -> list[tuple[Any, Any]]:
    """Return the heads of a two-stage detector's stages, each with its RoI extractor.

    Args:
        name: a key of `HEADS`.
    """
    heads = getattr(model.roi_head, name, None)
    extractors = getattr(model.roi_head, name.replace("_head", "_roi_extractor"), None)
    if heads is None:
        return []
    if extractors is None:  # a mask head that shares the box head's features
        extractors = model.roi_head.bbox_roi_extractor
    heads, extractors = (
        list(modules) if isinstance(modules, nn.ModuleList) else [modules]
        for modules in (heads, extractors)
    )
    if len(extractors) == 1:
        extractors = extractors * len(heads)
    return list(zip(heads, extractors, strict=True))


def region_features(extractor: Any, number: int, like: Tensor) -> Tensor:
    """Return valueless features (number, C, h, w) of the extractor's size."""
    height, width = extractor.roi_layers[0].output_size
    return torch.empty(number, extractor.out_channels, height, width, device=like.device)
