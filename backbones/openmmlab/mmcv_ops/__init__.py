"""mmcv's nms, soft-NMS and RoIAlign for an mmcv installed without its compiled ops.

`pip install onedl-mmcv` builds no `mmcv._ext`. Without it `import mmcv.ops` fails, and so do
`mmdet.models` and `mmseg.models`. `install` puts a module in its place that computes what Cascade
Mask R-CNN, Mask R-CNN and UperNet need with torchvision's operators. Every other op can be imported
and raises, with its name, when it is called.

The functions have the signatures of mmcv 2.3.6, ops/csrc/pytorch/pybind.cpp.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

EXTENSION = "mmcv._ext"


def install() -> bool:
    """Put the stand-in in the place of `mmcv._ext` unless mmcv has a compiled one.

    Returns True if the stand-in is in place, now or from an earlier call; False where mmcv is
    compiled or not installed. Imports neither mmcv nor torchvision. Call it before `mmcv.ops` is
    imported. A compiled mmcv that does not load is left to raise its own error.
    """
    if EXTENSION in sys.modules:
        return isinstance(sys.modules[EXTENSION], _StandIn)
    mmcv = importlib.util.find_spec("mmcv")
    if mmcv is None or PathFinder.find_spec(EXTENSION, mmcv.submodule_search_locations):
        return False
    # mmengine asks importlib for this module's spec, and mmcv asks pkgutil for the spec's loader.
    spec = ModuleSpec(EXTENSION, _StandInLoader(), origin=__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[EXTENSION] = module
    return True


def is_available(op: str) -> bool:
    """Return whether `mmcv._ext` has this function, compiled or in the stand-in."""
    return not install() or op in vars(sys.modules[EXTENSION])


def how_to_compile() -> str:
    """Return the command that installs mmcv with all its operators."""
    from mmcv import __version__

    # mmcv's setup.py compiles the ops where it can import torch, hence no build isolation; and pip
    # would take the wheel that it once built without them from its cache.
    return (
        "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation "
        f"--no-binary onedl-mmcv onedl-mmcv=={__version__}"
    )


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (K,) int64 of the boxes kept by greedy non-maximum suppression, by descending score.

    boxes: (N, 4), x1, y1, x2, y2; scores: (N,). Their floating dtypes may differ; fp16 and bf16 are
    computed in float32. A box goes when its IoU with a kept one is above iou_threshold; widths and
    heights are x2 - x1 + offset. Of equal scores the first comes first.

    mmcv 2.3.6, ops/csrc/pytorch/cpu/nms.cpp, nms_cpu.
    """
    dtype = _compute_dtype(boxes, scores)
    boxes = boxes.to(dtype)
    if offset:
        # The same sizes and overlaps: min(x2 + 1, x2' + 1) - max(x1, x1')
        #                            = min(x2, x2') - max(x1, x1') + 1.
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # torchvision compares float32 IoUs with a double. With the threshold rounded as they are, a box
    # whose IoU equals it stays, as in mmcv.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return _torchvision_ops().nms(boxes, scores.to(dtype), threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Fill dets[:K] with boxes and decayed scores in the order of picking, and return indices (K,).

    boxes: (N, 4), x1, y1, x2, y2; scores: (N,); dets: (N, 5); all on the CPU. fp16 and bf16 are
    computed in float32. After every pick the scores of the boxes left are multiplied by a weight of
    their IoU with it, and boxes below min_score leave. The weight is, for method 0 (naive), 0 where
    IoU >= iou_threshold; for 1 (linear), 1 - IoU there; for 2 (gaussian), exp(-IoU^2 / sigma).
    Equal scores are picked in mmcv's order. Two boxes without area have IoU 0, where mmcv divides
    0 by 0.

    Bodla et al., Soft-NMS, 2017, Fig. 2; mmcv 2.3.6, ops/csrc/pytorch/cpu/nms.cpp, softnms_cpu.
    """
    dtype = _compute_dtype(boxes, scores)
    corners = boxes.detach().to(dtype).numpy()
    score = scores.detach().to(dtype, copy=True).numpy()
    area = (corners[:, 2:] - corners[:, :2] + offset).prod(axis=1)

    order = np.arange(len(score))
    picks = 0
    while picks < len(order):
        left = order[picks:]
        best = score[left].argmax()
        left[0], left[best] = left[best], left[0]
        pick, rest = left[0], left[1:]

        shared_min = np.maximum(corners[pick, :2], corners[rest, :2])
        shared_max = np.minimum(corners[pick, 2:], corners[rest, 2:])
        intersection = np.maximum(shared_max - shared_min + offset, 0).prod(axis=1)
        union = area[pick] + area[rest] - intersection
        iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        if method == 2:
            score[rest] *= np.exp(-(iou * iou) / sigma)
        else:
            score[rest] *= np.where(iou >= iou_threshold, 0 if method == 0 else 1 - iou, 1)

        # mmcv fills the place of a box that leaves with the last one that stays: the order in which
        # equal scores are picked later depends on it.
        stays = ~(score[rest] < min_score)
        count = int(stays.sum())
        rest[:count][~stays[:count]] = rest[count:][stays[count:]][::-1]
        picks += 1
        order = order[: picks + count]

    dets[: len(order), :4] = torch.from_numpy(corners[order])
    dets[: len(order), 4] = torch.from_numpy(score[order])
    return torch.from_numpy(order)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill output (K, C, aligned_height, aligned_width) with the means of the bins' samples.

    input: (N, C, H, W) in any memory format; rois: (K, 5), image index, x1, y1, x2, y2, which times
    spatial_scale are pixels of input. sampling_ratio: bilinear samples per bin and axis; 0 for the
    size of the bin in pixels, rounded up. aligned: shift by half a pixel; without it a RoI is at
    least one pixel wide and high. A RoI without samples (no area, x2 < x1 or y2 < y1) gives zeros.
    fp16 and bf16 are computed in float32 and rounded once; mmcv computes fp16 in fp16 and has no
    bf16. argmax_y and argmax_x are for max pooling, pool_mode 0, which raises RuntimeError.

    mmdet casts RoIs to the dtype of the features before it calls this: in bf16 a coordinate near
    1000 arrives rounded to a multiple of 4, in fp16 to one of 0.5.

    He et al., Mask R-CNN, 2017, section 3; mmcv 2.3.6, ops/csrc/pytorch/cpu/roi_align.cpp.
    """
    _require_average(pool_mode, "roi_align_forward")
    dtype = _compute_dtype(input)
    output.copy_(
        _torchvision_ops().roi_align(
            input.to(dtype),
            _sampled_rois(rois.to(dtype), sampling_ratio),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill grad_input (N, C, H, W) with `roi_align_forward`'s gradient for grad_output.

    grad_output: (K, C, aligned_height, aligned_width); the other arguments are those of the forward
    pass. fp16 and bf16 are summed in float32 and rounded once. On CUDA the order of the sums
    varies: under `torch.use_deterministic_algorithms(True)` torchvision raises RuntimeError.
    """
    _require_average(pool_mode, "roi_align_backward")
    dtype = _compute_dtype(grad_output)
    grad_input.copy_(
        _torchvision_ops()._roi_align_backward(
            grad_output.to(dtype),
            _sampled_rois(rois.to(dtype), sampling_ratio),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def get_compiler_version() -> str:
    """What the environment report shows for the compiler of mmcv's ops."""
    return "n/a (torchvision stand-in)"


def get_compiling_cuda_version() -> str:
    """What the environment report shows for the CUDA version of mmcv's ops."""
    return "n/a (torchvision stand-in)"


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def missing(*args, **kwargs) -> NoReturn:
            _raise_not_available(name)

        missing.__name__ = missing.__qualname__ = name
        return missing


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.nms = nms
        module.softnms = softnms
        module.roi_align_forward = roi_align_forward
        module.roi_align_backward = roi_align_backward
        module.get_compiler_version = get_compiler_version
        module.get_compiling_cuda_version = get_compiling_cuda_version


def _raise_not_available(op: str) -> NoReturn:
    raise RuntimeError(
        f"mmcv op {op!r} is not available: this mmcv has no compiled ops, and only nms, soft_nms "
        f"and roi_align with pool_mode 'avg' run without; to compile them: {how_to_compile()}"
    )


def _require_average(pool_mode: int, op: str) -> None:
    if pool_mode != 1:
        _raise_not_available(f"{op} with pool_mode 'max'")


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _sampled_rois(rois: Tensor, sampling_ratio: int) -> Tensor:
    # With sampling_ratio 0 a negative size means a negative number of samples. torchvision's CUDA
    # kernel then gives zeros, as for a size of 0; its CPU kernel fails.
    if sampling_ratio > 0:
        return rois
    return torch.cat([rois[:, :3], torch.maximum(rois[:, 3:], rois[:, 1:3])], dim=1)


def _torchvision_ops():
    # Registers its operators. Not at the top: it takes a second, and every import of this package
    # calls `install`.
    import torchvision  # noqa: F401

    return torch.ops.torchvision
