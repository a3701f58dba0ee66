"""Place the bins of RoIs and their bilinear samples, as mmcv's kernels do."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoIBins:
    """Hold the grid of bins of each RoI, in pixels of the map; every tensor is (K,)."""

    image: Tensor
    start_y: Tensor
    start_x: Tensor
    height: Tensor  # of a RoI
    width: Tensor
    count_y: Tensor  # samples per bin and axis, int64; 0 or less: none
    count_x: Tensor
    pooled_height: int
    pooled_width: int

    @classmethod
    def of(
        cls,
        rois: Tensor,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        sampling_ratio: int,
        aligned: bool,
    ) -> "RoIBins":
        """Return the bins of rois (K, 5), image index, x1, y1, x2, y2."""
        corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
        sizes = corners[:, 2:] - corners[:, :2]
        if not aligned:
            sizes = sizes.clamp(min=1)
        width, height = sizes.unbind(1)
        if sampling_ratio > 0:
            count_x = count_y = torch.full_like(rois[:, 0], sampling_ratio, dtype=torch.long)
        else:
            # mmcv rounds up in float32 whatever the dtype.
            count_y = (height / pooled_height).float().ceil().long()
            count_x = (width / pooled_width).float().ceil().long()
        return cls(
            rois[:, 0].long(), corners[:, 1], corners[:, 0], height, width,
            count_y, count_x, pooled_height, pooled_width,
        )  # fmt: skip

    def __getitem__(self, chosen: Tensor) -> "RoIBins":
        return RoIBins(
            self.image[chosen], self.start_y[chosen], self.start_x[chosen], self.height[chosen],
            self.width[chosen], self.count_y[chosen], self.count_x[chosen],
            self.pooled_height, self.pooled_width,
        )  # fmt: skip

    def groups(self) -> Iterator[tuple[Tensor, int, int]]:
        """Yield (indices of RoIs, samples in y, samples in x) for RoIs with as many samples."""
        counts = torch.stack([self.count_y, self.count_x], dim=1)
        for count_y, count_x in counts.unique(dim=0).tolist():
            if count_y > 0 and count_x > 0:
                alike = (self.count_y == count_y) & (self.count_x == count_x)
                yield alike.nonzero()[:, 0], count_y, count_x

    def samples(self, row: Tensor | int, column: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return y and x of each bin's sample (row, column), broadcastable to (K, ..., PH, PW).

        row, column: an int, or one for each RoI and bin (K, C, PH, PW).
        """
        between = (slice(None), *[None] * (row.ndim - 1 if isinstance(row, Tensor) else 2))
        y_of_bin = torch.arange(self.pooled_height, device=self.start_y.device)[:, None]
        x_of_bin = torch.arange(self.pooled_width, device=self.start_x.device)
        bin_height = (self.height / self.pooled_height)[between]
        bin_width = (self.width / self.pooled_width)[between]
        y = self.start_y[between] + y_of_bin * bin_height
        x = self.start_x[between] + x_of_bin * bin_width
        y = y + (row + 0.5) * bin_height / self.count_y[between]
        x = x + (column + 0.5) * bin_width / self.count_x[between]
        return y, x


@dataclass(frozen=True)
class BilinearSamples:
    """Hold the pixels around points of a map and their weights; a point far outside has none."""

    inside: Tensor  # bool, within a pixel of the map
    y_low: Tensor
    y_high: Tensor
    x_low: Tensor
    x_high: Tensor
    weight_y: Tensor  # of y_high; 1 - weight_y is that of y_low
    weight_x: Tensor

    @classmethod
    def at(cls, y: Tensor, x: Tensor, height: int, width: int) -> "BilinearSamples":
        """Return the samples of points y and x, of the same shape once broadcast."""
        inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
        y_low, y_high, weight_y = _neighbours(y, height)
        x_low, x_high, weight_x = _neighbours(x, width)
        return cls(inside, y_low, y_high, x_low, x_high, weight_y, weight_x)

    def corners(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (row, column, weight) of the four pixels, the weight 0 for a point outside."""
        for row, weight_y in ((self.y_low, 1 - self.weight_y), (self.y_high, self.weight_y)):
            for column, weight_x in ((self.x_low, 1 - self.weight_x), (self.x_high, self.weight_x)):
                yield row, column, weight_y * weight_x * self.inside


def _neighbours(points: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    # A coordinate that is not finite is outside, but its index must exist.
    points = torch.nan_to_num(points).clamp(0, size - 1)
    low = points.floor()
    return low.long(), (low.long() + 1).clamp(max=size - 1), points - low
