"""Find faults in the label maps of a segmentation data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .decoding import Header, read_label_map
from .files import one_line
from .issues import Issue, first_of, with_code

IGNORED = 255


class LabelMaps:
    """Hold the label maps of one split.

    Args:
        pairs: (image, label map) files.
        classes: the config's, in the order of their labels.
        reduce_zero_label: label 0 of the files is ignored and the others move down by one.
        key: config key of the data set.
        complete: these are all of the split's, not a sample.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        classes: Sequence[str],
        reduce_zero_label: bool,
        key: str,
        complete: bool,
    ):
        self.pairs, self.classes, self.key = pairs, classes, key
        self.reduces, self.complete = reduce_zero_label, complete

    def check(self, headers: dict[Path, Header], training: bool) -> Iterator[Issue]:
        """Check all label maps.

        Args:
            headers: headers of the images.
            training: the split is trained on; in others a class may well be missing.
        """
        yield from with_code(self._check(headers, training), "bad-labels")

    def _check(self, headers: dict[Path, Header], training: bool) -> Iterator[Issue]:
        pixels = np.zeros(256, np.int64)  # of every value
        beyond: list[tuple[Path, int]] = []
        unlike: list[tuple[Path, tuple[int, ...], Header]] = []
        missing: list[Path] = []
        broken: list[Path] = []
        coloured: list[Path] = []
        odd: list[Path] = []
        deep: list[Path] = []
        for image, path in self.pairs:
            try:
                labels = read_label_map(path)
            except FileNotFoundError:
                missing.append(path)
                continue
            except OSError:
                broken.append(path)
                continue
            if labels.ndim > 2:
                coloured.append(path)
                continue
            if labels.dtype.kind not in "bui" or labels.min(initial=0) < 0:
                odd.append(path)
                continue
            if labels.max(initial=0) > IGNORED:
                deep.append(path)
                continue
            counts = np.bincount(labels.ravel(), minlength=256)[:256]
            pixels += counts
            if counts[self._lowest_beyond : IGNORED].any():
                beyond.append((path, int(np.flatnonzero(counts[:IGNORED])[-1])))
            header = headers.get(image)
            if header is not None and labels.shape[::-1] != header.upright:
                unlike.append((path, labels.shape[::-1], header))
        for paths, what, advice in (
            (missing, "no such label map", "its name is the image's with seg_map_suffix"),
            (broken, "label map is empty, cut off or not an image", "copy it again"),
            (
                coloured,
                "label map has colours, not labels",
                "write each pixel's label, one channel",
            ),
            (odd, "labels are not non-negative integers", "write 8 bits per pixel"),
            (deep, "label above 255", "mmseg reads 8 bits: 256 would become 0"),
        ):
            if paths:
                yield Issue("error", one_line(paths[0]), _of(what, paths, self.pairs), advice)
        if unlike:
            path, size, header = unlike[0]
            turned = size == header.size
            yield Issue(
                "error", one_line(path),
                f"label map is {size[0]}x{size[1]}, its image {header.upright[0]}x"
                f"{header.upright[1]}{' as rotated by EXIF' if turned else ''} "
                f"({len(unlike)} of {len(self.pairs)})",
                "store the image upright, without EXIF orientation" if turned
                else "they must match pixel by pixel",
            )  # fmt: skip
        if pixels.any():
            yield from self._check_values(pixels, beyond, training)

    @property
    def _lowest_beyond(self) -> int:
        return min(len(self.classes) + self.reduces, IGNORED)

    def _check_values(
        self, pixels: np.ndarray, beyond: list[tuple[Path, int]], training: bool
    ) -> Iterator[Issue]:
        number = len(self.classes)
        seen = np.flatnonzero(pixels[:IGNORED])
        key = f"{self.key}.reduce_zero_label"
        if pixels[IGNORED] and set(seen) <= {0}:
            yield Issue(
                "error", one_line(self.pairs[0][1]),
                "holds only the labels 0 and 255, and 255 is ignored: only label 0 is left",
                "write the foreground as 1, not 255",
            )  # fmt: skip
            return
        if beyond:
            path, value = beyond[0]
            starts_at_one = not self.reduces and value == number
            yield Issue(
                "error", one_line(path),
                f"label {value} is none of {number} classes ({len(beyond)} of {len(self.pairs)} "
                f"label maps; labels are {int(self.reduces)} to {number - 1 + self.reduces}, 255 "
                "is ignored)",
                f"set {key}=True, here and in LoadAnnotations, if label 0 means unlabelled"
                if starts_at_one else "correct num_classes and metainfo.classes, or the map",
            )  # fmt: skip
            if starts_at_one:
                return
        counts = pixels[self.reduces : number + self.reduces]
        if self.reduces and counts[-1] == 0 and pixels[0] and number > 1 and counts[:-1].all():
            yield Issue(
                "error" if self.complete else "warning", key,
                f"True, but the files hold labels 0 to {number - 1} for {number} classes: "
                f"{self.classes[0]} would be ignored, {self.classes[-1]} never occur",
                "set it to False, here and in LoadAnnotations"
                + (f", unless 255 is written for {self.classes[-1]}" if pixels[IGNORED] else ""),
            )  # fmt: skip
            return
        unseen = [self.classes[i] for i in np.flatnonzero(counts == 0)]
        if unseen and counts.any():
            last = self.classes[-1] in unseen and training and self.complete
            among = "" if self.complete else f" in {len(self.pairs)} label maps inspected"
            what = f"last class {self.classes[-1]} is" if last else f"{first_of(unseen)}:"
            yield Issue(
                "warning" if last else "note", self.key,
                f"{what} never used{among}",
                "is there one class too many, or is a label written as 255? IoU will be NaN"
                if last else "IoU is NaN for a class that is in no label map",
            )  # fmt: skip
        share = pixels[IGNORED] + (pixels[0] if self.reduces else 0)
        if share > 0.5 * pixels.sum():
            yield Issue(
                "warning", self.key,
                f"{share / pixels.sum():.0%} of all pixels are ignored "
                f"(255{' and 0' if self.reduces else ''})",
                "is a class written as 255, or reduce_zero_label set by mistake?",
            )  # fmt: skip


def _of(what: str, paths: Sequence[Path], pairs: Sequence) -> str:
    return f"{what} ({len(paths)} of {len(pairs)})"
