"""What a detection config needs registered: mmdet, our loading of images, float32 RoIAlign."""

from .registration import register

register("mmdet")

import torch  # noqa: E402
from mmdet.evaluation.metrics import FasterCocoMetric  # noqa: E402
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor  # noqa: E402
from mmengine.registry import METRICS, MODELS  # noqa: E402
from torch import Tensor  # noqa: E402

from . import loading  # noqa: E402, F401


@MODELS.register_module()
class FloatRoIExtractor(SingleRoIExtractor):
    """mmdet's SingleRoIExtractor with boxes and sampling in float32 whatever the features' dtype.

    mmdet casts the boxes to the features' dtype; bf16 knows only every fourth pixel near 1000.
    """

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Features (n, out_channels, h, w), in the dtype of `feats`, of boxes (n, 5).

        Args:
            feats: maps (N, C, H, W), finest first.
            rois: image index and x1, y1, x2, y2 in pixels of the image.
            roi_scale_factor: enlarges the boxes about their centres.
        """
        dtype = feats[0].dtype
        exact = torch.promote_types(dtype, torch.float32)
        feats = tuple(x.to(exact) for x in feats)
        return super().forward(feats, rois.to(exact), roi_scale_factor).to(dtype)


@METRICS.register_module()
class CocoAP(FasterCocoMetric):
    """mmdet's COCO box and mask AP by faster-coco-eval; no detections at all score 0.

    mmdet gives no figure then, and whatever waits for one (the best checkpoint, a metrics file)
    fails or stays silent.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """AP, AP50, AP75 and AP by size, in [0, 1], or -1 where there is no such object."""
        figures = super().compute_metrics(results)
        if all(len(prediction["bboxes"]) == 0 for _, prediction in results):
            for kind in self.metrics:
                for item in ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"):
                    figures.setdefault(f"{kind}_{item}", 0.0)
        return figures
