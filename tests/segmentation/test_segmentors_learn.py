"""Every segmentor's head that has a recipe learns drawn images, by the tools and its evaluator.

One class everywhere would have an mIoU of 100 / 8 at most.
"""

import numpy as np
import pytest
from PIL import Image
from support.learning import IMAGES, Head, draw_data, predict, score, train

HEADS = {
    "mask2former_convnext_t_ade20k": Head(
        "mIoU",
        94.8,
        60,
        170,
        {"decode_head.num_queries": 20, "decode_head.transformer_decoder.num_layers": 3},
    ),
    "fpn_convnext_t": Head(
        "mIoU",
        82.3,
        55,
        100,
        {
            "neck.out_channels": 64,
            "decode_head.in_channels": [64] * 4,
            "decode_head.channels": 64,
        },
    ),
    "deeplabv3plus_convnext_t": Head(
        "mIoU", 66.8, 45, 100, {"decode_head.channels": 64, "auxiliary_head.channels": 32}
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_data(tmp_path_factory.mktemp("learning"))


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_head_learns(name, data, tmp_path):
    head = HEADS[name]
    trained = train(f"segmentation/{name}", head, data, tmp_path)
    reached = score(trained, head)
    print(f"{name}: {head.metric} {reached:.1f}")
    assert reached >= head.least
    out = predict(trained, "images/training")
    right = [
        (np.asarray(Image.open(path)) == np.asarray(Image.open(out / "labels" / path.name)) + 1)
        for path in sorted((data / "annotations" / "training").iterdir())
    ]
    assert len(right) == IMAGES and np.mean(right) > 0.7
