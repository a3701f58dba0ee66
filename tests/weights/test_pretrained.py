"""Backbones by the name of their weights."""

import pytest
import timm
import torch

from backbones import InputError, create_backbone


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("convnext_atto.d2_in1k", "convnext_atto"),
        ("convnextv2_atto.fcmae_ft_in1k", "convnextv2_atto"),
    ],
)
def test_maps_are_timms(name, theirs, tmp_path):
    oracle = timm.create_model(theirs, pretrained=False, features_only=True).eval()
    whole = timm.create_model(theirs, pretrained=False)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    trunk = {k: v for k, v in whole.state_dict().items() if not k.startswith("head.")}
    oracle.load_state_dict({k.replace("stages.", "stages_").replace("stem.", "stem_"): v
                            for k, v in trunk.items()})  # fmt: skip
    file = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), file)
    backbone = create_backbone(name, checkpoint=file)
    assert not backbone.training
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(x)
        assert [m.shape[2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        for ours, truth in zip(backbone.forward_stages(x), oracle(x), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_architecture_without_weights():
    backbone = create_backbone("convnextv2_tiny.fcmae_ft_in1k", pretrained=False, out_indices=[-1])
    assert backbone.stages[0][0].grn is not None and backbone.out_indices == (3,)
    assert create_backbone("atto", in_channels=1).downsample_layers[0][0].in_channels == 1


def test_an_unknown_name_says_which_are_near():
    with pytest.raises(InputError, match="convnext_tiny.fb_in1k") as caught:
        create_backbone("convnext_tiny.fb_in1")
    assert (caught.value.code, caught.value.where) == ("unknown-name", "convnext_tiny.fb_in1")
