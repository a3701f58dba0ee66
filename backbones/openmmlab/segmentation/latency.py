"""Say what trades a segmentor's accuracy for time in prediction."""

from mmengine.config import Config

from backbones.openmmlab.tasks import Knobs


def latency_knobs(config: Config) -> Knobs:
    """Return how sliding windows cover an image: as the config says, side by side, or not at all.

    Windows side by side do not overlap; without windows the network sees the whole image at once.
    """
    test_cfg = config.model.get("test_cfg") or {}
    if test_cfg.get("mode") != "slide":
        return {}
    crop, stride = tuple(test_cfg["crop_size"]), tuple(test_cfg["stride"])
    windows = {f"{crop[0]}, stride {stride[0]}": {"model.test_cfg.stride": stride}}
    if stride != crop:
        windows[f"{crop[0]}, stride {crop[0]}"] = {"model.test_cfg.stride": crop}
    return dict(window={**windows, "whole": {"model.test_cfg.mode": "whole"}})
