"""Tell the sizes of this machine's caches, by which operators choose how much to work on at once.

Results are right with any size.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LINUX = Path("/sys/devices/system/cpu/cpu0/cache")
# Where the system does not tell: those of the AMD EPYC (Zen 4) that the operators were tuned on.
OWN, SHARED = 2**20, 32 * 2**20


def shared_cache_bytes() -> int:
    """Return the size of the last cache, which cores share."""
    return max((size for _, size in _caches()), default=SHARED)


def own_caches_bytes() -> int:
    """Return the size of the second-level caches of all cores that this process may use."""
    own = max((size for level, size in _caches() if level == 2), default=OWN)
    available = getattr(os, "sched_getaffinity", None)
    return own * (len(available(0)) if available else os.cpu_count() or 1)


@cache
def _caches() -> tuple[tuple[int, int], ...]:
    """Return level and bytes of each data cache of the first core; empty where nothing tells."""
    return tuple(_read(LINUX))


def _read(folder: Path) -> Iterator[tuple[int, int]]:
    for entry in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((entry / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            yield int(level), int(size[:-1]) * 1024
