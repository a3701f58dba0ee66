"""Share code between the tests of mmcv's operators."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch

from backbones.openmmlab import mmcv_ops

HALVES = [torch.float16, torch.bfloat16]
gpu = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@contextmanager
def gpu_branches() -> Iterator[Counter]:
    """Send CPU tensors down the branches that mmcv, mmdet and mmseg take for a GPU's.

    Yields how often each operator of mmcv was called.
    """
    import mmcv.ops

    extension = sys.modules["mmcv._ext"]
    calls = Counter()

    def counted(name, operator):
        @functools.wraps(operator)
        def call(*args, **kwargs):
            calls[name] += 1
            return operator(*args, **kwargs)

        return call

    with (
        patch.multiple(extension, **{n: counted(n, f) for n, f in mmcv_ops.OPERATORS.items()}),
        patch.object(mmcv.ops.multi_scale_deform_attn, "IS_CUDA_AVAILABLE", True),
        patch.object(torch.Tensor, "is_cuda", True),
        patch.object(torch.cuda, "is_available", lambda: True),
    ):
        yield calls


def assert_rounded_once(
    operator: Callable, inputs: list[torch.Tensor], dtype: torch.dtype, weighted: bool = True
) -> None:
    """Check an operator and its gradients in half precision against float32 on the same values.

    operator: of the inputs alone; weighted: take the gradients of a weighted sum of its values.
    """
    results = []
    for compute in (dtype, torch.float32):
        leaves = [t.detach().to(dtype).to(compute).requires_grad_() for t in inputs]
        output = operator(*leaves)
        weights = (torch.arange(output.numel()) % 17 - 7).reshape(output.shape) / 8
        output.backward(weights.to(output) if weighted else torch.ones_like(output))
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for half, single in zip(*results, strict=True):
        assert half.dtype == dtype and single.any()
        assert torch.equal(half, single.to(dtype))
