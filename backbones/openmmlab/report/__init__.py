"""Write a run's report: one page with curves, scores, mistakes and commands; compare runs.

`ReportHook` collects and writes, `render` and `compare` turn figures into pages.
"""

from .comparison import compare
from .hook import ReportHook
from .page import render
from .saved import read_earlier

__all__ = ["ReportHook", "compare", "read_earlier", "render"]
