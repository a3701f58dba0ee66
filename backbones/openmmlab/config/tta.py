"""Apply test-time augmentation by the name of a protocol."""

from mmengine.config import Config

from backbones.errors import InputError


def use_tta(config: Config, protocol: str) -> None:
    """Evaluate with multi-scale and flip test-time augmentation.

    Args:
        config: config that has the protocol under `tta`; changed in place.
        protocol: `paper` for a segmentor, whole images at ratios of the base scale, or `mmseg`,
            sliding windows at ratios of the original image; for a detector `flip` or `multi_scale`.

    Raises:
        InputError: the config has no such protocol, or no model for it.
    """
    check_tta(config, protocol)
    chosen = config.tta[protocol]
    config.test_dataloader.dataset.pipeline = chosen.pipeline
    if "test_cfg" in chosen:
        config.model.test_cfg = chosen.test_cfg
    if "keep_logits" in config.model:
        config.model.keep_logits = True  # the mean over augmentations is taken of them
    # Views differ in size from image to image, and cuDNN would try its kernels for each anew.
    config.setdefault("env_cfg", {})["cudnn_benchmark"] = False
    config.tta_model.module = config.model
    config.model = config.tta_model


def check_tta(config: Config, protocol: str) -> None:
    """Raise InputError unless the config has this protocol of augmentation and a model for it."""
    protocols = config.get("tta") or {}
    if protocol not in protocols:
        known = f"it has {', '.join(protocols)}" if protocols else "it has no tta"
        raise InputError(
            f"--tta {protocol}: not in {config.filename}; {known}",
            code="unknown-name",
            where="tta",
        )
    if config.get("tta_model") is None:
        raise InputError(
            f"config key tta_model: {config.filename} has tta but no tta_model",
            code="bad-config",
            where="tta_model",
        )
