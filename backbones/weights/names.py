"""Parse the names of published weight files."""

import re


def stem_of(source: str) -> str:
    """Return a path's or URL's file name without suffix and hash; anything else unchanged."""
    file = source.removeprefix("timm:").rsplit("/", 1)[-1]
    return re.sub(r"([-_][0-9a-f]{8})?\.(pth|pt|bin|safetensors)$", "", file)


def hash_in_name(source: str) -> str | None:
    """Return the digits of a SHA-256 at the end of a file name, as in PyTorch's and OpenMMLab's."""
    found = re.search(r"-([\da-f]{8,64})\.(?:pth|pt|bin|safetensors)$", source)
    # Decimal digits alone are a counter or a date at least as often: iter-00010000.pth.
    return found[1] if found and not found[1].isdecimal() else None
