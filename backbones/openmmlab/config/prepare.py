"""The order in which a run's options change its config."""

from mmengine.config import Config

from backbones.errors import InputError


def start_from(config: Config, checkpoint: str | None = None) -> None:
    """Have training start from a trained model but for the layers that depend on the classes.

    Args:
        config: changed in place.
        checkpoint: anything `read_checkpoint` reads; the config's `init_from` if None.

    Raises:
        InputError: the config asks for another start already.
    """
    checkpoint = checkpoint or config.get("init_from")
    if not checkpoint:
        return
    if config.get("load_from"):
        raise InputError(f"init_from={checkpoint}: the config loads load_from={config.load_from}")
    config.init_from = str(checkpoint)
    # The checkpoint fills the backbone; what it was pretrained from need not be fetched.
    config.model.backbone.pop("init_cfg", None)
