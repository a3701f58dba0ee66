"""The branches that mmcv, mmdet and mmseg take on a GPU, run on a CPU."""

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from backbones.openmmlab import mmcv_ops


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
        patch.object(torch.cuda, "current_device", lambda: "cpu"),
    ):
        yield calls
