"""Segment by sliding windows in batches; labels and losses without large maps of logits."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from backbones.errors import InputError

from .decode_loss import decode_loss, enlarges_by_blocks, is_unlabelled, zero_loss
from .window_batches import WindowBatches

# Logits of a block of classes at the larger of its two sizes: what a cache holds, or a GPU likes.
CPU_BLOCK = 2**21
GPU_BLOCK = 2**26


@MODELS.register_module()
class SlidingWindowSegmentor(EncoderDecoder):
    """Run mmseg's EncoderDecoder with less memory and time; label maps and losses are the same.

    Sliding windows run in batches and their logits are added up in one map. Labels are found by
    blocks of classes: a block is resized to the input and to the original image as mmseg does, and
    compared with the best class so far, so that logits of all classes never exist at those sizes
    beyond the one map of sliding windows; where labels alone are wanted at the input's own size,
    that map is as high as one row of windows. On a CPU losses too are taken by blocks
    (`decode_loss`).

    Args:
        windows_per_batch: sliding windows computed at once, over all images of the batch; None is
            as many as half the free memory of a GPU holds, at most 16, and 1 on a CPU, where more
            save no time.
        keep_logits: put `seg_logits` (classes, H, W) at the original size into the results, as
            mmseg does and its test-time augmentation needs (`config.use_tta` sees to that). False
            leaves the label map alone.
        kwargs: as in mmseg's EncoderDecoder.

    Raises:
        InputError: windows_per_batch is below 1.
    """

    def __init__(self, *, windows_per_batch: int | None = None, keep_logits: bool = True, **kwargs):
        super().__init__(**kwargs)
        if windows_per_batch is not None and windows_per_batch < 1:
            raise InputError(
                f"windows_per_batch={windows_per_batch}: must be at least 1",
                code="bad-value",
                where="windows_per_batch",
            )
        self.test_cfg: Any
        self.decode_head: Any
        self.auxiliary_head: Any
        self.windows_per_batch = windows_per_batch
        self.keep_logits = keep_logits
        self._batches = WindowBatches()

    def takes_loss_by_blocks(self, head: nn.Module, inputs: Sequence[Tensor]) -> bool:
        """Return whether a head's loss on these maps is computed without logits at full size."""
        # mmseg's own loss has no deterministic form on a GPU.
        by_blocks = not inputs[0].is_cuda or torch.are_deterministic_algorithms_enabled()
        return by_blocks and inputs[0].device.type != "meta" and enlarges_by_blocks(head)

    def _decode_head_forward_train(
        self, inputs: tuple[Tensor, ...], data_samples: list[SegDataSample]
    ) -> dict[str, Tensor]:
        return add_prefix(self._head_loss(self.decode_head, inputs, data_samples), "decode")

    def _auxiliary_head_forward_train(
        self, inputs: tuple[Tensor, ...], data_samples: list[SegDataSample]
    ) -> dict[str, Tensor]:
        heads = self.auxiliary_head
        if not isinstance(heads, nn.ModuleList):
            return add_prefix(self._head_loss(heads, inputs, data_samples), "aux")
        losses = {}
        for i, head in enumerate(heads):
            losses |= add_prefix(self._head_loss(head, inputs, data_samples), f"aux_{i}")
        return losses

    def _head_loss(
        self, head: Any, inputs: tuple[Tensor, ...], data_samples: list[SegDataSample]
    ) -> dict[str, Tensor]:
        if self.takes_loss_by_blocks(head, inputs):
            return decode_loss(head, inputs, data_samples)
        # Mean cross entropy is 0 then by itself, and to ask a GPU for it makes the host wait.
        if not enlarges_by_blocks(head) and is_unlabelled(head, data_samples):
            return zero_loss(head, inputs)
        return head.loss(inputs, data_samples, self.train_cfg)

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict images (N, 3, H, W).

        With gradients enabled the kept logits have a graph; labels never have one.

        Args:
            inputs: normalised and padded images.
            data_samples: sizes, padding and flip of each image; None if unchanged.

        Returns:
            The samples with `pred_sem_seg` (1, height, width) of the original image, and
            `seg_logits` if they are kept.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.keep_logits):
            return self._predict(inputs, data_samples)

    def _predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None
    ) -> list[SegDataSample]:
        shape = _size(inputs)
        if data_samples is None:
            # mmseg asks whether the size is a torch.Size.
            whole = inputs.shape[2:]
            meta = dict(ori_shape=whole, img_shape=whole, pad_shape=whole, padding_size=[0] * 4)
            metas: list[dict] = [meta] * len(inputs)
        else:
            metas = [sample.metainfo for sample in data_samples]
        slides = self.test_cfg.get("mode", "whole") == "slide"
        if not slides and self._resizes_as_all_heads:
            logits = self.decode_head(self.extract_feat(inputs)).contiguous()
            size = metas[0].get("pad_shape", metas[0]["img_shape"])[:2]
        elif slides and not self.keep_logits and all(_is_unchanged(meta, shape) for meta in metas):
            results = data_samples or [SegDataSample() for _ in inputs]
            for labels, result in zip(self._slide_labels(inputs, metas), results, strict=True):
                result.set_data(dict(pred_sem_seg=PixelData(data=labels)))
            return results
        else:
            logits = self.inference(inputs, metas)
            size = _size(logits)
        return self._label(logits, size, data_samples)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return logits (N, classes, H, W) of images (N, 3, H, W): the mean of a pixel's windows.

        Raises:
            InputError: the stride leaves pixels that no window covers.
        """
        images, _, height, width = inputs.shape
        rows, columns, count = self._windows_over(height, width)
        logits = inputs.new_zeros(images, self.out_channels, height, width)
        windows = [(row, column) for row in rows for column in columns]
        self._add_windows(logits, inputs, windows, batch_img_metas)
        return logits.div_(count.to(logits, non_blocking=True))

    def _slide_labels(self, inputs: Tensor, metas: list[dict]) -> Tensor:
        """Return the labels (N, 1, H, W) of `slide_inference` with logits of one row of windows."""
        images, _, height, width = inputs.shape
        rows, columns, count = self._windows_over(height, width)
        count = count.to(inputs, non_blocking=True)
        windows = [(slice(0, rows[0].stop), column) for column in columns]
        band = inputs.new_zeros(images, self.out_channels, rows[0].stop, width)
        labels = []
        for row, end in zip(rows, [*(row.start for row in rows[1:]), height], strict=True):
            self._add_windows(band, inputs[:, :, row], windows, metas)
            done = end - row.start  # rows that no window below covers
            finished = band[:, :, :done].div_(count[row.start : end])
            found = self._label(finished, _size(finished), None)
            labels.append(torch.stack([_labels(one) for one in found]))
            for classes in _class_blocks(band, band.shape[2:].numel()):
                band[:, classes, :-done] = band[:, classes, done:].clone()
            band[:, :, -done:] = 0
        return torch.cat(labels, dim=2)

    def _windows_over(self, height: int, width: int) -> tuple[list[slice], list[slice], Tensor]:
        """Return rows and columns of windows, and how many (H, W) cover each pixel."""
        crop_size, stride = self.test_cfg.crop_size, self.test_cfg.stride
        rows = _windows(height, crop_size[0], stride[0])
        columns = _windows(width, crop_size[1], stride[1])
        count = _count(rows, height)[:, None] * _count(columns, width)
        if not count.all():
            raise InputError(
                f"test_cfg: windows of {tuple(crop_size)} at a stride of {tuple(stride)} leave "
                f"pixels of a {height}x{width} image uncovered; make the stride smaller",
                code="bad-value",
                where="test_cfg",
            )
        return rows, columns, count

    def _add_windows(
        self, logits: Tensor, inputs: Tensor, windows: list[tuple[slice, slice]], metas: list[dict]
    ) -> None:
        """Compute windows in batches and add their logits, at the windows' size, to the map."""
        done = 0
        while done < len(windows):
            part = windows[done : done + self._windows_at_once(inputs, windows[0])]
            done += len(part)
            crops = torch.cat([inputs[:, :, row, column] for row, column in part])
            size = _size(crops)
            with self._batches.noted(crops):
                results = self._window_logits(crops, metas)
            for result, (row, column) in zip(results.chunk(len(part)), part, strict=True):
                for classes in _class_blocks(result, size[0] * size[1]):
                    block = self._resize(result[:, classes], size)
                    logits[:, classes, row, column] += block

    def _windows_at_once(self, inputs: Tensor, window: tuple[slice, slice]) -> int:
        """Return how many windows of each image to compute at once."""
        number = self.windows_per_batch or 1
        if inputs.is_cuda and self.windows_per_batch is None:
            pixels = inputs[0, 0, window[0], window[1]].numel()
            number = self._batches.size(inputs, pixels)
        return max(1, number // len(inputs))

    def _window_logits(self, crops: Tensor, metas: list[dict]) -> Tensor:
        if self._resizes_as_all_heads:
            return self.decode_head(self.extract_feat(crops)).contiguous()
        # A torch.Size: mmseg takes any other for a padded image's and looks for pad_shape.
        return self.encode_decode(crops, [{**metas[0], "img_shape": crops.shape[2:]}])

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Make results of logits (N, classes, H, W) at the size of the input."""
        return self._label(seg_logits, _size(seg_logits), data_samples)

    def _label(
        self, logits: Tensor, size: tuple[int, int], data_samples: list[SegDataSample] | None
    ) -> list[SegDataSample]:
        """Make results of logits that are not yet resized to the input's `size`."""
        metas = [None] * len(logits) if data_samples is None else data_samples
        results = data_samples or [SegDataSample() for _ in logits]
        if logits.stride(3) != 1:  # channels-last; blocks are of planes
            logits = logits.contiguous()
        count = logits.shape[1]
        for image, sample, result in zip(logits.split(1), metas, results, strict=True):
            meta = None if sample is None else sample.metainfo
            best = labels = kept = None
            for classes, block in self._at_original_size(image, size, meta):
                if count == 1:
                    block = block.sigmoid()
                    labels = (block > self.decode_head.threshold).to(block)[0]
                else:
                    values = block.detach()
                    if best is None or labels is None:
                        best = values[0].clone()
                        labels = torch.zeros_like(best, dtype=torch.int32)
                    _update_best(best, labels, values, classes.start)
                if self.keep_logits:
                    if kept is None:
                        kept = block.new_empty(count, *block.shape[1:])
                    kept[classes] = block
            assert labels is not None
            labels = labels[None] if count == 1 else labels[None].long()
            result.set_data(dict(pred_sem_seg=PixelData(data=labels)))
            if self.keep_logits:
                result.set_data(dict(seg_logits=PixelData(data=kept)))
        return results

    def _at_original_size(
        self, logits: Tensor, size: tuple[int, int], meta: dict | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (classes, their logits (n, height, width)) of one image, by blocks of classes."""
        height, width = size
        original = size if meta is None else meta["ori_shape"]
        pixels = max(height * width, original[0] * original[1])
        for classes in _class_blocks(logits, pixels):
            block = self._resize(logits[:, classes], size)
            if meta is not None:
                padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
                left, right, top, bottom = padding
                block = block[:, :, top : height - bottom, left : width - right]
                if meta.get("flip"):
                    block = block.flip(3 if meta["flip_direction"] == "horizontal" else 2)
                block = self._resize(block, original)
            yield classes, block[0]

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits to another size; at the same size interpolation is the identity."""
        if tuple(logits.shape[2:]) == tuple(size):
            return logits
        return resize(
            logits, size, mode="bilinear", align_corners=self.align_corners, warning=False
        )

    @property
    def _resizes_as_all_heads(self) -> bool:
        """Return whether the head's prediction is its resized logits."""
        head = type(self.decode_head)
        return (
            head.predict is BaseDecodeHead.predict
            and head.predict_by_feat is BaseDecodeHead.predict_by_feat
        )


def _labels(sample: Any) -> Tensor:
    return sample.pred_sem_seg.data


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[2:]
    return height, width


def _is_unchanged(meta: dict, shape: tuple[int, int]) -> bool:
    """Return whether an image was neither resized, padded nor flipped."""
    padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
    return tuple(meta["ori_shape"]) == tuple(shape) and not any(padding) and not meta.get("flip")


def _windows(length: int, window: int, stride: int) -> list[slice]:
    """Return the windows along one side; the last is shifted to end with the image."""
    number = max(length - window + stride - 1, 0) // stride + 1
    stops = [min(i * stride + window, length) for i in range(number)]
    return [slice(max(stop - window, 0), stop) for stop in stops]


def _count(windows: list[slice], length: int) -> Tensor:
    """Return the number of windows that cover each position, (length,)."""
    count = torch.zeros(length)
    for window in windows:
        count[window] += 1
    return count


def _class_blocks(logits: Tensor, pixels: int) -> Iterator[slice]:
    """Yield slices of the classes, so that a block has as many logits as are fast at once."""
    classes = logits.shape[1]
    size = max((GPU_BLOCK if logits.is_cuda else CPU_BLOCK) // (pixels * len(logits)), 1)
    for start in range(0, classes, size):
        yield slice(start, min(start + size, classes))


def _update_best(best: Tensor, labels: Tensor, block: Tensor, first: int) -> None:
    """Replace values (H, W) and labels in place where a class of the block (n, H, W) is higher.

    The lowest of equal classes stays, as in argmax. On the CPU comparing plane by plane is faster
    than a reduction over planes, on a GPU a reduction is one launch.
    """
    if block.is_cuda:
        highest, classes = block.max(dim=0)
        labels.copy_(torch.where(highest > best, (classes + first).to(labels), labels))
        torch.maximum(best, highest, out=best)
        return
    for label, plane in enumerate(block, first):
        higher = plane > best
        torch.maximum(best, plane, out=best)
        labels.masked_fill_(higher, label)
