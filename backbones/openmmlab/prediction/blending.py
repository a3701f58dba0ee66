"""Cover an image with tiles and blend what is predicted on them where they overlap."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def spread(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Cover a side with the fewest evenly spaced tiles of one size: (start, stop) of each."""
    if length <= tile:
        return [(0, length)]
    number = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (number - 1)) for i in range(number)]
    return [(start, start + tile) for start in starts]


def weights(spans: Sequence[tuple[int, int]], overlap: int) -> list[Tensor]:
    """Return each tile's weight (tile,) along one side; the weights at each pixel sum to one.

    A weight rises over the overlap's width from each end of the tile. Where there is one tile
    alone it is exactly one.
    """
    ramps = []
    for first, last in spans:
        middle = torch.arange(last - first, dtype=torch.float64) + 0.5
        ramps.append(torch.minimum(middle, last - first - middle).div(max(overlap, 1)).clamp(max=1))
    total = torch.zeros(spans[-1][1], dtype=torch.float64)
    for (first, last), ramp in zip(spans, ramps, strict=True):
        total[first:last] += ramp
    return [
        (ramp / total[first:last]).float() for (first, last), ramp in zip(spans, ramps, strict=True)
    ]


def blended(
    logits: Iterator[Tensor | None],
    rows: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, int]],
    overlap: int,
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Sum the weighted logits of overlapping tiles and yield each part as soon as it is complete.

    At any time only the sums of one tile and of the strip that a row of tiles shares with the next
    one exist; the strip is in the CPU's memory.

    Args:
        logits: (classes, height, width) of each tile, row by row; None for a tile whose pixels are
            of no interest, though a neighbour may cover some of them.
        rows, columns: (start, stop) pixels of the tiles; see `spread`.
        overlap: number of pixels over which weights rise.

    Yields:
        (rows, columns, sums (classes, h, w)); together they cover the image exactly once. The sums
        are None where the tile is.
    """
    row_weights, column_weights = weights(rows, overlap), weights(columns, overlap)
    width = columns[-1][1]
    ends = zip(rows, rows[1:], strict=False)
    deepest = max((above[1] - below[0] for above, below in ends), default=0)
    carried = None  # sums over the rows that the next row of tiles also sees
    for i, (top, bottom) in enumerate(rows):
        complete = (rows[i + 1][0] if i + 1 < len(rows) else bottom) - top
        above = rows[i - 1][1] - top if i else 0
        sums, seen = None, columns[0][0]  # `seen`: first column not yet taken from `carried`
        for j, (left, right) in enumerate(columns):
            x = next(logits)
            after = (columns[j + 1][0] if j + 1 < len(columns) else right) - left
            part = slice(top, top + complete), slice(left, left + after)
            if x is None:  # whatever is carried on of its pixels, nobody looks at them
                sums, seen = None, right
                yield *part, None
                continue
            if carried is None:
                carried = torch.zeros(len(x), deepest, width)
            weight = row_weights[i][:, None] * column_weights[j]
            x = x.float() * weight.to(x.device)
            x[:, :above, seen - left :] += carried[:, :above, seen:right].to(x.device)
            if sums is not None:
                x[:, :, : sums.shape[2]] += sums
            seen = right
            yield *part, x[:, :complete, :after]
            carried[:, : bottom - top - complete, left : left + after] = x[:, complete:, :after]
            sums = x[:, :, after:]
