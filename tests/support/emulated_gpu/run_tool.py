"""Run one of the project's tools on the emulated GPU: run_tool.py DEVICE TOOL ARGUMENTS...

DEVICE "cpu" hides the GPU from the tool, so that it computes what the other is compared with.
"""

import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import mmengine.device.utils
import torch
from support.emulated_gpu.emulation import EmulatedCuda
from support.running import REPOSITORY

if __name__ == "__main__":
    _, device, tool, *arguments = sys.argv
    # PyTorch refuses a CUDA context after a fork; the no-op GPU has none.
    torch.cuda._is_in_bad_fork = lambda: False
    sys.argv = [tool, *arguments]
    sys.path.insert(0, str(Path(tool).parent))
    hidden = (
        patch.object(torch.cuda, "is_available", lambda: False),
        patch.object(mmengine.device.utils, "DEVICE", "cpu"),  # as found when it was imported
    )
    here = EmulatedCuda([REPOSITORY]) if device == "cuda" else nullcontext()
    with hidden[0] if device == "cpu" else nullcontext(), here:
        with hidden[1] if device == "cpu" else nullcontext():
            runpy.run_path(tool, run_name="__main__")
