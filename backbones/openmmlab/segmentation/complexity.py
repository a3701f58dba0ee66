"""Run the parts of a segmentor on one image to count multiply-adds."""

from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.openmmlab.tasks import PartRunner


def default_size(config: Config) -> tuple[int, int]:
    """Return the (width, height) that a config resizes images to for testing.

    Raises:
        InputError: its test pipeline has no Resize with a scale.
    """
    key = "test_dataloader.dataset.pipeline"
    loader = config.get("test_dataloader") or {}
    for step in (loader.get("dataset") or {}).get("pipeline", ()):
        if step.type == "Resize" and "scale" in step:
            width, height = step.scale
            return width, height
    raise InputError(
        f"{config.filename}: {key} has no Resize with a scale; give the size to count at",
        code="bad-config",
        where=key,
    )


def run_parts(model: Any, image: Tensor, run: PartRunner) -> None:
    """Run backbone, neck and decode head; the auxiliary heads only serve training.

    A factorised head runs twice: as papers count it, and as it is executed.

    Args:
        model: mmseg's EncoderDecoder or CascadeEncoderDecoder, or one derived from them.
        image: (1, 3, H, W).
        run: called with each part.
    """
    maps = run("backbone", model.backbone, image)
    if model.with_neck:
        maps = run("neck", model.neck, maps)
    if isinstance(model.decode_head, nn.ModuleList):  # each sees what the one before put out
        logits: list[Tensor] = []
        for head in model.decode_head:
            logits = [run("decode_head", head, maps, *logits)]
        return
    head = model.decode_head
    factorized = hasattr(head, "factorizes") and head.factorizes(image)
    run("decode_head", head, maps, published=not factorized)
    if factorized:
        asked, head.factorize = head.factorize, False
        try:
            run("decode_head", head, maps, executed=False)
        finally:
            head.factorize = asked
