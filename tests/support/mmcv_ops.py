"""Share code between the tests of mmcv's operators."""

from collections.abc import Callable

import pytest
import torch

HALVES = [torch.float16, torch.bfloat16]
gpu = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


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
