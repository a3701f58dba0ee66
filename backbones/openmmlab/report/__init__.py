"""What a run was: one page with its curves, scores, mistakes and commands, and runs side by side.

`ReportHook` collects and writes, `render` and `compare` turn figures into pages.
"""

from .hook import ReportHook, read_earlier
from .page import compare, render

__all__ = ["ReportHook", "compare", "read_earlier", "render"]
