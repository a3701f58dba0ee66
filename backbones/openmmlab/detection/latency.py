"""Say what trades a detector's accuracy for time in prediction."""

from mmengine.config import Config

from backbones.openmmlab.tasks import Knobs

PROPOSALS = (500, 300, 100)


def latency_knobs(config: Config) -> Knobs:
    """Return the number of proposals, which a two-stage detector's heads compute one by one."""
    rpn = (config.model.get("test_cfg") or {}).get("rpn")
    if not rpn or not rpn.get("max_per_img"):
        return {}
    own = rpn.max_per_img
    numbers = (own, *(number for number in PROPOSALS if number < own))
    return dict(
        proposals={str(number): {"model.test_cfg.rpn.max_per_img": number} for number in numbers}
    )
