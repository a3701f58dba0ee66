"""Name this machine's processor and the instructions that decide how fast it is."""

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path


def processor_name() -> str:
    """Return the processor's model name, or its architecture where the system tells no more."""
    found = re.search(r"model name\s*:\s*(.+)", _description())  # none on ARM
    return found[1] if found else platform.processor() or platform.machine()


def processor_flags(wanted: Sequence[str]) -> list[str]:
    """Return those of the flags that Linux lists for this processor; none on other systems."""
    found = re.search(r"(?:flags|Features)\s*:\s*(.+)", _description())
    return [flag for flag in wanted if found and flag in found[1].split()]


def _description() -> str:
    return Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
