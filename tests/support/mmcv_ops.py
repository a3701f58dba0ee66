"""What the tests of mmcv's operators share."""

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
