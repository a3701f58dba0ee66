"""Provide images and settings under which untrained demo models find many things."""

import cv2
import numpy as np

LOOSE = {"model.test_cfg.rcnn.score_thr": 0.01, "model.test_cfg.rcnn.max_per_img": 20}


def options(task: str) -> list[str]:
    return ["--cfg-options", *(f"{key}={value}" for key, value in LOOSE.items())] * (
        task == "detection"
    )


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw patches of colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
