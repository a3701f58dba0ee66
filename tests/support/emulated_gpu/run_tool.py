"""Run one of the project's tools on the emulated GPU: run_tool.py DEVICE TOOL ARGUMENTS...

DEVICE "cpu" hides the GPU from the tool, so that it computes what the other is compared with;
"visible" shows the GPU without the emulator, to a tool that computes nothing there.
"""

import runpy
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import mmengine.device.utils
import torch
from support.emulated_gpu.emulation import EmulatedCuda
from support.running import REPOSITORY

if __name__ == "__main__":
    _, device, tool, *arguments = sys.argv
    sys.argv = [tool, *arguments]
    sys.path.insert(0, str(Path(tool).parent))
    with ExitStack() as stack:
        # mmengine looks for a GPU when it is imported.
        found = "cpu" if device == "cpu" else "cuda"
        stack.enter_context(patch.object(mmengine.device.utils, "DEVICE", found))
        if device == "cuda":
            stack.enter_context(EmulatedCuda([REPOSITORY]))
        elif device == "cpu":
            stack.enter_context(patch.object(torch.cuda, "is_available", lambda: False))
        runpy.run_path(tool, run_name="__main__")
