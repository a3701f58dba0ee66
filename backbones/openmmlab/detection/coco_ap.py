"""COCO box, mask and boundary AP; masks are encoded while the network works on the next images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from mmdet.evaluation.metrics import FasterCocoMetric
from mmdet.structures.mask import encode_mask_results
from mmengine.fileio import dump, load
from mmengine.registry import METRICS

from backbones.errors import InputError

# Images whose masks wait for encoding; the network waits before it gets further ahead.
AHEAD = 8


@METRICS.register_module()
class CocoAP(FasterCocoMetric):
    """mmdet's COCO box and mask AP by faster-coco-eval; no detections at all score 0.

    mmdet gives no figure then, and whatever waits for one (the best checkpoint, a metrics file)
    fails or stays silent. Masks are run-length encoded in a thread, while the network computes
    outside Python's lock.

    Args:
        boundary: measure boundary AP too (arXiv:2103.16562), the AP of masks whose overlap is the
            lesser of their IoU and that of their boundaries. It costs time.
        args, kwargs: as for mmdet's.

    Raises:
        InputError: boundaries are asked for, but no masks are measured.
    """

    def __init__(self, *args, boundary: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        if boundary and "segm" not in self.metrics:
            raise InputError(f"CocoAP: boundary=True needs 'segm' in metric, not {self.metrics}")
        if boundary:
            self.metrics = [*self.metrics, "boundary"]  # an iouType of faster-coco-eval
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode masks")
        self._waiting: list = []

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Take over a batch's predictions; `masks` (n, H, W) are encoded later."""
        for sample in data_samples:
            instances = sample["pred_instances"]
            if isinstance(instances.get("masks"), torch.Tensor):
                masks = instances["masks"].detach().cpu().numpy()
                codes: list = []
                sample = {**sample, "pred_instances": {**instances, "masks": codes}}
                self._waiting.append(self._encoder.submit(_encode, masks, codes))
            super().process(data_batch, [sample])
        while len(self._waiting) > AHEAD:
            self._waiting.pop(0).result()

    def evaluate(self, size: int) -> dict:
        """Figures over all processes' results, once every mask is encoded."""
        waiting, self._waiting = self._waiting, []
        for encoded in waiting:
            encoded.result()
        return super().evaluate(size)

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict[str, str]:
        """Write predictions as COCO's files; those for boundaries have no box, as mmdet takes it
        out of those for masks: sizes are then the masks' own."""
        files = super().results2json(results, outfile_prefix)
        if "boundary" in self.metrics:
            rows = [{k: v for k, v in row.items() if k != "bbox"} for row in load(files["segm"])]
            files["boundary"] = f"{outfile_prefix}.boundary.json"
            dump(rows, files["boundary"])
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        """AP, AP50, AP75 and AP by size, in [0, 1], or -1 where there is no such object."""
        figures = super().compute_metrics(results)
        if all(len(prediction["bboxes"]) == 0 for _, prediction in results):
            for kind in self.metrics:
                for item in ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"):
                    figures.setdefault(f"{kind}_{item}", 0.0)
        return figures


def _encode(masks, codes: list) -> None:
    codes.extend(encode_mask_results(masks))
