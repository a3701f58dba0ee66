"""Run one of the project's tools on the emulated GPU.

python -m support.emulated_gpu.tool TOOL ARGUMENTS...
"""

import runpy
import sys

from support.emulated_gpu.emulation import EmulatedCuda
from support.running import REPOSITORY

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with EmulatedCuda([REPOSITORY]):
        runpy.run_path(str(REPOSITORY / "tools" / sys.argv[0]), run_name="__main__")
