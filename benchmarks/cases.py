"""Define the benchmark cases: models, image sizes and precisions, and the images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """Describe a model, an image size and a precision to time.

    Attributes:
        network: a size of ConvNeXt, `UperNet` or `Cascade Mask R-CNN`.
        task: `inference` or `train`, a training step without the optimizer's.
        size: (N, H, W) of the images.
        dtype: `fp32`, or `bf16` by autocast; candidates in bf16 are compared with one in fp32 too.
        grn: V2.
        window: whether a segmentor predicts in sliding windows.
        quick: whether `--quick` runs it.
        compiled: whether torch.compile is timed by default; it takes a minute for each candidate.
        every_way: whether other libraries are timed in channels-last layout too.
        drop_path_rate: stochastic depth rate of training, the same for all candidates.
    """

    network: str
    task: str
    size: tuple[int, int, int]
    dtype: str = "fp32"
    grn: bool = False
    window: bool = False
    quick: bool = False
    compiled: bool = False
    every_way: bool = False
    drop_path_rate: float = 0.4

    @property
    def name(self) -> str:
        kind = f"ConvNeXt{'V2' * self.grn}-{self.network}" if self.is_backbone else self.network
        how = " slide" if self.window else ""
        return f"{kind} {self.task} {'x'.join(map(str, self.size))}{how} {self.dtype}"

    @property
    def is_backbone(self) -> bool:
        return self.network not in ("UperNet", "Cascade Mask R-CNN")


CASES = (
    Case("tiny", "inference", (1, 512, 512), quick=True, compiled=True, every_way=True),
    Case("tiny", "inference", (1, 512, 512), "bf16", quick=True, every_way=True),
    Case("tiny", "inference", (1, 800, 1216), compiled=True),
    Case("tiny", "inference", (1, 512, 512), grn=True, compiled=True),
    Case("tiny", "inference", (1, 800, 1216), grn=True, compiled=True),
    Case("base", "inference", (1, 512, 512), compiled=True),
    Case("base", "inference", (1, 800, 1216), compiled=True),
    Case("small", "inference", (1, 512, 512)),
    Case("tiny", "train", (2, 256, 256), quick=True, every_way=True),
    Case("tiny", "train", (2, 256, 256), "bf16", every_way=True),
    Case("tiny", "train", (16, 256, 256)),
    Case("tiny", "train", (2, 256, 256), grn=True, every_way=True),
    Case("base", "train", (2, 256, 256)),
    Case("small", "train", (2, 256, 256)),
    Case("UperNet", "inference", (1, 512, 512), quick=True),
    Case("UperNet", "inference", (1, 512, 2048)),
    Case("UperNet", "inference", (1, 1024, 2048), window=True),
    Case("UperNet", "train", (2, 512, 512)),
    Case("UperNet", "inference", (1, 512, 512), "bf16"),
    Case("UperNet", "inference", (1, 512, 2048), "bf16"),
    Case("UperNet", "inference", (1, 1024, 2048), "bf16", window=True),
    Case("UperNet", "train", (2, 512, 512), "bf16"),
    Case("Cascade Mask R-CNN", "inference", (1, 480, 640), quick=True),
    Case("Cascade Mask R-CNN", "train", (1, 480, 640)),
    Case("Cascade Mask R-CNN", "inference", (1, 480, 640), "bf16"),
    Case("Cascade Mask R-CNN", "train", (1, 480, 640), "bf16"),
)

# Of a GPU: what the recipes train on one at a time, and batches that fill it.
GPU_CASES = (
    Case("tiny", "inference", (32, 512, 512), "bf16", quick=True, compiled=True),
    Case("tiny", "train", (8, 512, 512), "bf16", compiled=True),
    Case("UperNet", "inference", (4, 512, 512), "bf16"),
    Case("UperNet", "train", (2, 512, 512), "bf16"),
    Case("Cascade Mask R-CNN", "inference", (2, 800, 1216), "bf16"),
    Case("Cascade Mask R-CNN", "train", (2, 800, 1216), "bf16"),
)


def segmentation_batch(case: Case) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    n, height, width = case.size
    shape = dict(ori_shape=(height, width), img_shape=(height, width), pad_shape=(height, width))
    samples = []
    for _ in range(n):
        labels = torch.randint(0, 150, (1, height, width))
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(shape)
        samples.append(sample)
    return dict(inputs=pictures(case.size), data_samples=samples)


def detection_batch(case: Case) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    n, height, width = case.size
    meta = dict(
        ori_shape=(height, width), img_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0
    )
    samples = []
    for _ in range(n):
        corners = torch.rand(8, 2) * torch.tensor([width * 0.6, height * 0.6])
        sides = 30 + torch.rand(8, 2) * torch.tensor([width * 0.35, height * 0.35])
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.randint(0, 80, (8,)),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        samples.append(sample)
    return dict(inputs=pictures(case.size), data_samples=samples)


def pictures(size: tuple[int, int, int]) -> list[Tensor]:
    """Draw smooth noise, uint8 (3, H, W), in which a detector finds objects."""
    n, height, width = size
    coarse = torch.rand(n, 3, height // 16, width // 16)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return list((smooth * 255).clamp(0, 255).to(torch.uint8))
