"""Build narrow detectors with our RoI heads and with mmdet's own, with images and detections."""

from copy import deepcopy

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from support.running import REPOSITORY

from backbones.openmmlab import detection  # noqa: F401  before anything of mmdet
from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.machine import fit_to_machine

METHODS = ("mask_rcnn", "cascade")
CLASSES = 6
STOCK = dict(
    FloatRoIExtractor="SingleRoIExtractor",
    FloatRPNHead="RPNHead",
    FloatBBoxHead="ConvFCBBoxHead",
    ClassMaskHead="FCNMaskHead",
    MaskRoIHead="StandardRoIHead",
    CascadeMaskRoIHead="CascadeRoIHead",
)


def narrow(method: str, **mask_head) -> Config:
    """Return the config with a small backbone, narrow heads and few proposals."""
    config = load_config(REPOSITORY / "configs" / "detection" / f"{method}_convnext_t.py")
    config.launcher = "none"
    fit_to_machine(config)
    dims = (8, 12, 16, 20)
    model = config.model
    model.backbone.update(arch=dict(depths=(1, 1, 1, 1), dims=dims), drop_path_rate=0.0)
    model.backbone.init_cfg = None
    model.neck.update(in_channels=list(dims), out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(in_channels=16, conv_out_channels=16, fc_out_channels=32, num_classes=CLASSES)
    model.roi_head.mask_head.update(
        in_channels=16, conv_out_channels=16, num_classes=CLASSES, **mask_head
    )
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.out_channels = 16
    model.test_cfg.rpn.max_per_img = 300  # more than a chunk
    model.train_cfg.rpn_proposal.max_per_img = 200
    model.test_cfg.rcnn.update(max_per_img=150, score_thr=0.01)
    return config


def stock(node):
    """Return the same config with mmdet's own classes."""
    if isinstance(node, dict):
        node = {key: stock(value) for key, value in node.items()}
        return {**node, "type": STOCK.get(node["type"], node["type"])} if "type" in node else node
    return [stock(value) for value in node] if isinstance(node, list | tuple) else node


def pair(method: str, dtype: torch.dtype = torch.float32, **mask_head):
    """Build ours and mmdet's with equal weights that give detections of every class."""
    config = narrow(method, **mask_head)
    with DefaultScope.overwrite_default_scope("mmdet"):
        ours = MODELS.build(config.model)
        theirs = MODELS.build(Config(stock(config.model.to_dict()))._cfg_dict)
    # Whether they find many classes depends on the draw, and PyTorch's changes between versions.
    rng = np.random.RandomState(0)
    for name, tensor in ours.state_dict().items():
        if tensor.is_floating_point():
            wide = 2.0 if "fc_cls" in name else 0.1 if "reg" in name else 1.0
            if "running" in name or "norm" in name or name.endswith("bn.weight"):
                drawn = rng.uniform(0.5, 1.5, tensor.shape)
            elif tensor.ndim > 1:
                drawn = rng.normal(0, wide * (2 / tensor[0].numel()) ** 0.5, tensor.shape)
            else:
                drawn = rng.normal(0, 0.1, tensor.shape)
            tensor.copy_(torch.from_numpy(np.asarray(drawn)))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def batch(dtype: torch.dtype = torch.float32, truth: bool = False, sizes=((96, 128), (128, 112))):
    """Return images padded to one size, and samples of originals 1.5 and 1.25 times smaller."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    images = torch.from_numpy(np.random.RandomState(1).normal(size=(len(sizes), 3, 128, 128)))
    samples = []
    for (height, width), factor in zip(sizes, (1.5, 1.25), strict=False):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(int(height / factor), int(width / factor)),
                scale_factor=(width / int(width / factor), height / int(height / factor)),
                batch_input_shape=(128, 128),
                pad_shape=(128, 128),
            )
        )
        if truth:
            boxes = torch.tensor([[10.0, 12, 50, 60], [40, 30, 90, 80], [5, 50, 100, 90]])
            masks = np.zeros((3, 128, 128), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y1:y2, x1 : (x1 + x2) // 2] = 1
            sample.gt_instances = InstanceData(
                bboxes=boxes.to(dtype),
                labels=torch.tensor([0, 3, 5]),
                masks=BitmapMasks(masks, 128, 128),
            )
            sample.ignored_instances = InstanceData(
                bboxes=boxes[:0].to(dtype), labels=torch.zeros(0, dtype=torch.long)
            )
        samples.append(sample)
    return images.to(dtype), samples


def predict(model, images, samples, **kwargs):
    model.eval()
    with torch.no_grad():
        return [s.pred_instances for s in model.predict(images, deepcopy(samples), **kwargs)]


def assert_same_detections(ours, theirs, boxes: float, share: float) -> None:
    """Compare detections; `share` of the masks' pixels may differ: ties at the threshold."""
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(mine.bboxes, expected.bboxes, rtol=0, atol=boxes)
        torch.testing.assert_close(mine.scores, expected.scores, rtol=0, atol=boxes)
        assert mine.masks.shape == expected.masks.shape and mine.masks.dtype == expected.masks.dtype
        assert (mine.masks != expected.masks).sum() <= share * mine.masks.numel()
