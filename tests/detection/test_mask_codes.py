"""Run lengths from crops are those that pycocotools encodes from whole masks."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from backbones.openmmlab.detection.mask_codes import crop_masks, encode_crops


def hostile(height: int, width: int) -> torch.Tensor:
    """Masks at every border, with holes, of full columns, of one pixel, full and empty."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(12, height, width, dtype=torch.bool)
    masks[1] = True
    masks[2, 0, 0] = masks[3, -1, -1] = masks[4, height // 2, width // 2] = True
    masks[5, :, 1:3] = True  # one run over two columns
    masks[6, :, ::2] = True
    masks[7, -1:] = masks[7, :1] = True  # runs that go on at the top of the next column
    masks[8, 1:-1, 1:-1] = torch.rand(height - 2, width - 2, generator=generator) < 0.5
    masks[9] = torch.rand(height, width, generator=generator) < 0.5
    masks[10, 2:5, 3:9] = True
    masks[10, 3, 4:6] = False
    masks[11, :, 0] = masks[11, :, -1] = True
    return masks


@pytest.mark.parametrize("size", [(7, 13), (40, 31), (5, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
def test_codes_are_pycocotools(size, dtype):
    masks = hostile(*size).to(dtype)
    codes = encode_crops(crop_masks(masks))
    assert len(codes) == len(masks)
    for mask, code in zip(masks, codes, strict=True):
        wanted = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert code == dict(wanted, counts=wanted["counts"].decode())


def test_no_masks():
    assert encode_crops(crop_masks(torch.zeros(0, 5, 6, dtype=torch.bool))) == []


def test_a_crop_is_what_is_kept():
    masks = torch.zeros(2, 50, 60, dtype=torch.bool)
    masks[0, 10:20, 30:35] = True
    crops = crop_masks(masks)
    assert crops.pixels.size == 50 and crops.corners.tolist() == [[30, 10, 35, 20], [0, 0, 0, 0]]
