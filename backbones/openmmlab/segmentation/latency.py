"""Say what trades a segmentor's accuracy for time in prediction."""

from mmengine.config import Config

from backbones.openmmlab.tasks import Knobs


def latency_knobs(config: Config) -> Knobs:
    """Return how windows cover an image: the config's, side by side, larger, or the whole image.

    Windows side by side do not overlap; larger ones have twice the side and the same overlap.
    """
    test_cfg = config.model.get("test_cfg") or {}
    if test_cfg.get("mode") != "slide":
        return {}
    crop, stride = tuple(test_cfg["crop_size"]), tuple(test_cfg["stride"])
    windows = {f"{crop[0]}, stride {stride[0]}": {"model.test_cfg.stride": stride}}
    if stride != crop:
        windows[f"{crop[0]}, stride {crop[0]}"] = {"model.test_cfg.stride": crop}
    larger, further = (tuple(2 * side for side in sides) for sides in (crop, stride))
    windows[f"{larger[0]}, stride {further[0]}"] = {
        "model.test_cfg.crop_size": larger,
        "model.test_cfg.stride": further,
    }
    return dict(window={**windows, "whole": {"model.test_cfg.mode": "whole"}})
