"""Augment detectors with masks at test time, which mmdet 3 leaves out."""

from typing import Any

import torch
from mmdet.models.layers import multiclass_nms
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from backbones.errors import InputError

from .roi_heads import paste_masks

# Axes of a mask (n, H, W) that are flipped with the image.
FLIPPED_AXES = dict(horizontal=[2], vertical=[1], diagonal=[1, 2])


@MODELS.register_module()
class MaskTTAModel(BaseTTAModel):
    """Run Mask R-CNN or Cascade Mask R-CNN on several views of an image, scaled and flipped.

    The boxes of all views go through the model's own non-maximum suppression together. Each mask is
    the mean over the views of the mask heads' probabilities in the remaining box, as in mmdet 2
    (models/roi_heads/test_mixins.py, aug_test_mask). One view gives the model's own predictions.

    Args:
        module: the detector; its RoI head is a MaskRoIHead or a CascadeMaskRoIHead.

    Raises:
        InputError: it is another one.
    """

    def __init__(self, module: dict):
        super().__init__(module)
        self.module: Any
        if not hasattr(getattr(self.module, "roi_head", None), "mask_probabilities"):
            name = type(self.module).__name__
            raise InputError(
                f"{name}: test-time augmentation of masks needs a roi_head of type MaskRoIHead or "
                "CascadeMaskRoIHead",
                code="unsupported",
                where=name,
            )

    def test_step(self, data: dict) -> list[DetDataSample]:
        """Predict bboxes, scores, labels and masks of each image, in pixels of the original.

        Args:
            data: for each view `inputs`, its images (3, H, W), and `data_samples` with `ori_shape`,
                `img_shape`, `scale_factor` and, where flipped, `flip` and `flip_direction`.
        """
        detector, head = self.module, self.module.roi_head
        maps, views = [], []
        for inputs, samples in zip(data["inputs"], data["data_samples"], strict=True):
            view = detector.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)
            images, samples = view["inputs"], view["data_samples"]
            x = detector.extract_feat(images)
            proposals = detector.rpn_head.predict(x, samples, rescale=False)
            metas = [sample.metainfo for sample in samples]
            # Without a test_cfg: every class of every RoI, before non-maximum suppression.
            boxes = head.predict_bbox(x, metas, proposals, None, rescale=True)
            maps.append(x)
            views.append(detector.add_pred_to_datasample(samples, boxes))
        merged = self.merge_preds(list(zip(*views, strict=True)))
        if head.with_mask:
            metas = [[sample.metainfo for sample in samples] for samples in views]
            self._add_masks([sample.pred_instances for sample in merged], maps, metas)
        return merged

    def merge_preds(self, data_samples_list: list[tuple[Any, ...]]) -> list[DetDataSample]:
        """Merge each image's views into one sample, with boxes in pixels of the original image.

        Args:
            data_samples_list: views whose `pred_instances` hold bboxes (n, 4) or (n, 4 * classes)
                in the unflipped original's scale and scores (n, classes + 1).
        """
        settings = self.module.roi_head.test_cfg
        merged = []
        for views in data_samples_list:
            found = [view for view in views if len(view.pred_instances.bboxes)]
            sample = views[0].new()
            if found:
                boxes, labels, *_ = multiclass_nms(
                    torch.cat([_flip(v.pred_instances.bboxes, v.metainfo) for v in found]),
                    torch.cat([v.pred_instances.scores for v in found]),
                    settings.score_thr,
                    settings.nms,
                    settings.max_per_img,
                )
            else:
                empty = views[0].pred_instances
                boxes, labels = empty.bboxes.new_zeros(0, 5), empty.labels
            sample.pred_instances = InstanceData(
                bboxes=boxes[:, :4], scores=boxes[:, 4], labels=labels
            )
            merged.append(sample)
        return merged

    def _add_masks(
        self, results: list[Any], maps: list[tuple[Tensor, ...]], metas: list[list[dict]]
    ) -> None:
        head = self.module.roi_head
        counts = [len(instances) for instances in results]
        labels = torch.cat([instances.labels for instances in results])
        probabilities: Any = 0
        for x, view in zip(maps, metas, strict=True):
            boxes = [
                _flip(instances.bboxes, meta)
                * instances.bboxes.new_tensor(meta["scale_factor"] * 2)
                for instances, meta in zip(results, view, strict=True)
            ]
            if sum(counts):
                seen = head.mask_probabilities(x, bbox2roi(boxes), labels).split(counts)
            else:
                seen = [boxes[0].new_zeros(0, 1, 1)] * len(results)
            turned = [
                part.flip(FLIPPED_AXES[meta["flip_direction"]]) if meta.get("flip") else part
                for part, meta in zip(seen, view, strict=True)
            ]
            probabilities = probabilities + torch.cat(turned) / len(maps)  # (n, h, w)
        for instances, part, meta in zip(
            results, probabilities.split(counts), metas[0], strict=True
        ):
            instances.masks = paste_masks(
                part, instances.bboxes, meta["ori_shape"][:2], head.test_cfg.mask_thr_binary
            )


def _flip(boxes: Tensor, meta: dict) -> Tensor:
    """Flip boxes (n, 4 k) between a flipped view and the original image."""
    if not meta.get("flip"):
        return boxes
    return bbox_flip(boxes, meta["ori_shape"][:2], meta["flip_direction"])
