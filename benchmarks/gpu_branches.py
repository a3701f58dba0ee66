"""Run the branches that mmcv, mmdet and mmseg take on a GPU on a CPU."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from backbones.openmmlab import mmcv_ops


@contextmanager
def gpu_branches() -> Iterator[Counter]:
    """Make mmcv, mmdet and mmseg treat CPU tensors as a GPU's, and count calls of operators.

    Yields:
        the number of calls of each operator, by its name in mmcv's extension.
    """
    import mmcv.ops

    extension = sys.modules["mmcv._ext"]
    calls: Counter[str] = Counter()

    def counted(name: str, operator: Callable) -> Any:
        @functools.wraps(operator)
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return operator(*args, **kwargs)

        return call

    operators = {name: counted(name, call) for name, call in mmcv_ops.OPERATORS.items()}
    with (
        patch.multiple(extension, **operators),
        patch.object(mmcv.ops.multi_scale_deform_attn, "IS_CUDA_AVAILABLE", True),
        patch.object(torch.Tensor, "is_cuda", True),
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "current_device", lambda: "cpu"),
    ):
        yield calls
