"""Measure top-k accuracy."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class TopAccuracy(BaseMetric):
    """Compute the percentage of images whose label is among the k highest-scoring classes.

    Args:
        topk: values of k; those not below the number of classes are left out.
        collect_device: where the results of several ranks are gathered.
        prefix: put before the names `top1`, `top5`, with a slash.
    """

    def __init__(
        self, topk: Sequence[int] = (1, 5), collect_device: str = "cpu", prefix: str | None = None
    ):
        super().__init__(collect_device, prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Record whether each image's label is among its k best classes."""
        scores = torch.stack([sample["scores"] for sample in data_samples])
        labels = torch.cat([sample["gt_label"] for sample in data_samples]).to(scores.device)
        kept = [k for k in self.topk if k < scores.shape[1]]
        best = scores.topk(max(kept, default=1)).indices == labels[:, None]  # (N, k)
        hits = {k: best[:, :k].any(dim=1).tolist() for k in kept}
        self.results += [{k: hits[k][i] for k in kept} for i in range(len(labels))]

    def compute_metrics(self, results: list[dict[int, bool]]) -> dict[str, float]:
        """Return the accuracies as `top1`, `top5` and so on."""
        return {f"top{k}": 100 * sum(r[k] for r in results) / len(results) for k in results[0]}
