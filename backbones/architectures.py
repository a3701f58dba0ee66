"""List the sizes of the published networks by name."""

from .errors import InputError

# Paper Table 9 (V1), V2 paper section 4: blocks and channels of each stage.
ARCHITECTURES: dict[str, dict[str, tuple[int, ...]]] = {
    "atto": dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320)),
    "femto": dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384)),
    "pico": dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512)),
    "nano": dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640)),
    "tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "small": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "base": dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "large": dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "xlarge": dict(depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048)),
    "huge": dict(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)),
}

# V1 paper, Table 2: blocks and channels. Layer scale as in the official TRAINING.md, L's alone.
ISOTROPIC = {
    "small": dict(depth=18, dim=384, layer_scale_init_value=0.0),
    "base": dict(depth=18, dim=768, layer_scale_init_value=0.0),
    "large": dict(depth=36, dim=1024, layer_scale_init_value=1e-6),
}


def depths_and_dims(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks and channels of each stage of a ConvNeXt.

    Args:
        arch: a name in `ARCHITECTURES`, or `dict(depths=..., dims=...)`.

    Raises:
        InputError: an unknown name, a missing key, or sizes that are none.
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise InputError(
                f"ConvNeXt: unknown arch {arch!r}; known are {', '.join(ARCHITECTURES)}, "
                "or give dict(depths=..., dims=...)",
                code="unknown-name",
                where="arch",
            )
        arch = ARCHITECTURES[arch]
    if set(arch) != {"depths", "dims"}:
        problem = f"needs the keys depths and dims, not {sorted(arch)}"
        raise InputError(f"ConvNeXt: arch {problem}", code="bad-value", where="arch")
    depths, dims = tuple(arch["depths"]), tuple(arch["dims"])
    if len(depths) != len(dims) or not depths or min(depths + dims) < 1:
        problem = f"depths {depths} and dims {dims} must be positive integers and of equal length"
        raise InputError(f"ConvNeXt: {problem}", code="bad-value", where="arch")
    return depths, dims
