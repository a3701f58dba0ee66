"""Put ConvNeXt-Atto into the configs of mmdet's and mmseg's wheels, narrow them, and make batches.

A model keeps its published structure; widths, repeated layers, queries and proposals are cut.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from backbones.openmmlab import detection, segmentation  # noqa: F401

ARCH, WIDTHS = "atto", (40, 80, 160, 320)
NARROW = dict(
    embed_dims=32, feat_channels=32, feedforward_channels=32, num_feats=16, fc_out_channels=32,
    conv_out_channels=32, output_channels=32, inter_channels=32, stacked_convs=1, num_layers=1,
    num_blocks=1, num_queries=20, num_proposals=20, num_dn_queries=4, deform_fc_channels=16,
    cls_in_channels=32, reg_in_channels=32, proposal_feature_channel=32,
)  # fmt: skip


def fixed(node: dict, key: str) -> bool:
    """Return whether other keys depend on this one: CondInst's num_params on num_layers."""
    return key == "num_layers" and "mask_feature_head" in node


def narrow(node: Any) -> Any:
    """Cut the widths and depths of necks and heads, and fit them to the backbone's maps."""
    if isinstance(node, list | tuple):
        return type(node)(narrow(child) for child in node)
    if not isinstance(node, dict):
        return node
    for key, value in node.items():
        if key == "in_channels" and isinstance(value, list | tuple):
            node[key] = list(WIDTHS[4 - len(value) :])
        elif key in ("in_channels", "out_channels") and value == 256:
            node[key] = 32
        elif key == "type" and value == "SyncBN":
            node[key] = "BN"
        elif key in NARROW and isinstance(value, int) and not fixed(node, key):
            node[key] = min(value, NARROW[key])
        else:
            node[key] = narrow(value)
    return node


def fit_neck(model: dict) -> dict:
    """Fit a model's neck to the backbone's maps."""
    theirs = model["neck"]["in_channels"]
    widths = type(theirs)(WIDTHS[4 - len(theirs) :])  # JPU takes a tuple, others a list
    return model | dict(neck=model["neck"] | dict(in_channels=widths))


def fit_decode_heads(node: Any) -> Any:
    """Fit the heads of a segmentor without a neck to the backbone's maps."""
    if isinstance(node, list):
        return [fit_decode_heads(child) for child in node]
    if not isinstance(node, dict):
        return node
    for key, value in node.items():
        node[key] = fit_decode_heads(value)
    if "channels" in node and "in_channels" in node:
        index = node.get("in_index", -1)
        several = isinstance(index, list | tuple)
        node["in_channels"] = [WIDTHS[i] for i in index] if several else WIDTHS[index]
    if "c1_in_channels" in node:
        node["c1_in_channels"] = WIDTHS[0]
    if node.get("input_transform") == "resize_concat":
        node["channels"] = sum(WIDTHS) if node["type"] == "FCNHead" else node["channels"]
    return node


def stock_config(library: str, name: str) -> Config:
    """Return a config of a library's wheel by its path below `configs`, without the suffix."""
    package = Path(str(files(library)))
    return Config.fromfile(package / ".mim" / "configs" / f"{name}.py")


def convnext(theirs: dict, **arguments: Any) -> dict:
    """Return the config of a ConvNeXt-Atto with the output maps of a config's own backbone.

    Args:
        theirs: the config's own backbone.
        arguments: arguments of ConvNeXt that replace those derived from `theirs`.
    """
    indices = tuple(theirs.get("out_indices", (0, 1, 2, 3)))
    if max(indices) > 3:  # a network that counts blocks or layers, not stages
        indices = tuple(range(4 - len(indices), 4))
    strides = tuple(theirs.get("strides", (1, 2, 2, 2)))
    ours: dict[str, Any] = dict(type="ConvNeXt", arch=ARCH, out_indices=indices)
    if len(strides) == 4 and strides != (1, 2, 2, 2):
        ours["output_stride"] = 4 * int(np.prod(strides))
    return ours | arguments


def narrowed(library: str, name: str, wide: bool = False, **backbone: Any) -> dict:
    """Return the model of a stock config with ConvNeXt-Atto and narrow heads, as a dict.

    Args:
        library: `mmdet` or `mmseg`.
        name: the config's path, as in `stock_config`.
        wide: whether its heads keep their widths.
        backbone: arguments of ConvNeXt other than its size.
    """
    model = stock_config(library, name).model.to_dict()
    theirs = model.pop("backbone")
    if library == "mmdet":
        model = fit_neck(shorten(model)) if wide else narrow(model)
        for part in ("train_cfg", "test_cfg"):
            thin_out(model.get(part) or {})
        preprocessor = model["data_preprocessor"]
        preprocessor.pop("batch_augments", None)
        preprocessor.update(mean=[120.0] * 3, std=[60.0] * 3, pad_mask=True, pad_size_divisor=32)
        if preprocessor["type"] == "DetDataPreprocessor":
            preprocessor.update(pad_seg=True, seg_pad_value=255)
        if "teacher_config" in model:
            teacher = model["teacher_config"].removeprefix("configs/").removesuffix(".py")
            model.update(teacher_config=dict(model=narrowed(library, teacher)), teacher_ckpt=None)
    else:
        transformer = "MaskFormer" in str(model) or "Mask2Former" in str(model)
        model = narrow(model) if transformer else shorten(model)
        if "neck" in model:
            model = fit_neck(model)
        elif "backbone_cfg" not in theirs and not transformer:
            for part in ("decode_head", "auxiliary_head"):
                model[part] = fit_decode_heads(model.get(part))
        model.update(pretrained=None, test_cfg=dict(model["test_cfg"], mode="whole"))
        model["data_preprocessor"] = dict(
            type="SegDataPreProcessor", mean=[120.0] * 3, std=[60.0] * 3, size_divisor=32,
            seg_pad_val=255, test_cfg=dict(size_divisor=32),
        )  # fmt: skip
    if "backbone_cfg" in theirs:
        inner = convnext(theirs["backbone_cfg"], **backbone)
        return model | dict(backbone=shorten({**theirs, "backbone_cfg": inner}))
    return model | dict(backbone=convnext(theirs, **backbone))


def build(library: str, name: str, changes: dict | None = None, **options: Any) -> Any:
    """Build the model that `narrowed` returns, with seeded weights.

    Args:
        library, name, options: as in `narrowed`.
        changes: new values of keys below `model`.
    """
    config = Config(dict(model=narrowed(library, name, **options)))
    config.merge_from_dict({f"model.{key}": value for key, value in (changes or {}).items()})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(config.model)
    model.init_weights()  # DETRs leave embeddings uninitialised until then
    return model


def shorten(node: Any) -> Any:
    """Cut repeated layers, and replace SyncBN, which needs several processes, by BN."""
    if isinstance(node, list | tuple):
        return type(node)(shorten(child) for child in node)
    if not isinstance(node, dict):
        return node
    if node.get("type") == "SyncBN":
        node["type"] = "BN"
    return {
        key: 1 if key == "num_layers" and not fixed(node, key) else shorten(value)
        for key, value in node.items()
    }


def thin_out(node: Any) -> None:
    """Cut the numbers of proposals, of regions sampled from them and of predictions, in place."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list | tuple):
            thin_out(value)
    if isinstance(node, dict):
        for key in {"max_per_img", "num"} & node.keys():
            if isinstance(node[key], int) and node[key] > 0:
                node[key] = min(node[key], 50)


def detection_batch(
    images: int,
    size: tuple[int, int] = (128, 160),
    stuff: int = 0,
    masks: bool = True,
    proposals: bool = False,
) -> dict:
    """Return a batch of images, each with two boxes and a map of things and stuff.

    Args:
        images: the number of images.
        size: (height, width) in pixels.
        stuff: the label of every pixel outside the two boxes.
        masks: whether the boxes have masks.
        proposals: whether the images have region proposals.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 255, (3, *size), generator=generator).byte() for _ in range(images)]
    samples = []
    for _ in inputs:
        boxes = torch.tensor([[4.0, 6, 50, 60], [40, 10, 90, 44]])
        labels = torch.tensor([3, 17])
        bitmaps = np.zeros((2, *size), np.uint8)
        labelled = torch.full((1, *size), stuff)
        for mask, label, (x1, y1, x2, y2) in zip(
            bitmaps, labels, boxes.int().tolist(), strict=True
        ):
            mask[y1:y2, x1:x2] = 1
            labelled[0, y1:y2, x1:x2] = label
        sample = DetDataSample(
            metainfo=dict(
                img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
                scale_factor=(1.0, 1.0), img_id=0, border=(0, size[0], 0, size[1]),
            )
        )  # fmt: skip
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        if masks:
            sample.gt_instances.masks = BitmapMasks(bitmaps, *size)
        sample.ignored_instances = InstanceData(
            bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long)
        )
        if proposals:
            shifted = torch.cat([boxes + 3, boxes - 4])
            sample.proposals = InstanceData(bboxes=shifted, scores=torch.ones(4))
        sample.gt_sem_seg = PixelData(sem_seg=labelled)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def segmentation_batch(images: int, size: tuple[int, int] = (64, 64)) -> dict:
    """Return a batch of images with label maps of 19 classes.

    Args:
        images: the number of images.
        size: (height, width) in pixels.
    """
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(1)
    inputs, samples = [], []
    for _ in range(images):
        inputs.append(torch.randint(0, 255, (3, *size), generator=generator).byte())
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, *size), generator=generator))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
