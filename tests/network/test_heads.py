"""Heads of mmdet and mmseg that call `.view` on maps take ours where `contiguous_maps` is set."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from support.oracles import randomise

from backbones import ConvNeXt
from backbones.openmmlab.registration import register

NARROW = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


def dynamic_multiscale(maps):
    """mmseg's DMNet, whose filters come from `.view` of pooled maps."""
    register("mmseg")
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build(
            dict(type="DMHead", in_channels=32, in_index=3, channels=8, num_classes=3)
        )
    return randomise(head).eval()(maps)


def center_net(maps):
    """mmdet's CenterNet, which flattens its heat map to find the peaks."""
    register("mmdet")
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = MODELS.build(
            dict(
                type="CenterNetHead",
                num_classes=3,
                in_channels=32,
                feat_channels=8,
                test_cfg=ConfigDict(topk=5, local_maximum_kernel=3, max_per_img=5),
            )
        )
    outputs = randomise(head).eval()(maps[3:])
    metas = [dict(border=(0, 64, 0, 64), batch_input_shape=(64, 64))] * len(maps[3])
    (found, *_) = head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=False)
    return found.bboxes


@pytest.mark.parametrize("read", [dynamic_multiscale, center_net])
def test_maps_that_a_head_views(read):
    network = randomise(ConvNeXt(NARROW)).eval()
    contiguous = ConvNeXt(NARROW, contiguous_maps=True).eval()
    contiguous.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="view size"):
            read(network(x))
        torch.manual_seed(1)
        found = read(contiguous(x))
        torch.manual_seed(1)
        expected = read(tuple(m.contiguous() for m in network(x)))
    assert found.std() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
