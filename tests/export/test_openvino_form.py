"""OpenVINO's files: 1x1 convolutions, norms written out, weights in half precision."""

import re
from types import SimpleNamespace

import pytest
import torch
from support.oracles import randomise

from backbones import ConvNeXt
from backbones.openmmlab.deployment.openvino_int8 import OpenvinoQuantizer
from backbones.openmmlab.export.convolutions import use_convolutions
from backbones.openmmlab.export.files import capture, open_openvino, write_openvino
from backbones.openmmlab.export.graphs import BackboneGraph, Preprocessing

PLAIN = SimpleNamespace(_channel_conversion=True, pad_size_divisor=1, pad_value=0)


@pytest.mark.parametrize("grn", [False, True])
def test_the_form_computes_the_same_with_half_the_bytes(grn, tmp_path):
    torch.manual_seed(0)
    backbone = ConvNeXt(
        arch=dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 96)),
        use_grn=grn,
        layer_scale_init_value=0.0 if grn else 1.0,
    )
    randomise(backbone)
    backbone.eval().requires_grad_(False)
    graph = BackboneGraph(Preprocessing(PLAIN, torch.float32), backbone).eval()
    images = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        expected = graph(images)
        use_convolutions(graph)
        written = graph(images)
    for ours, plain in zip(written, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    path = tmp_path / "backbone.xml"
    write_openvino(capture(graph), path, {})
    text = path.read_text()
    assert 'type="MatMul"' not in text and text.count('type="Convolution"') == 1 + 3 + 2 * 5
    layers = OpenvinoQuantizer(path, re.compile("$^"), "backbone").layers
    assert len(layers) == 2 * 5  # whatever the size of a weight, it is stored as one
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    assert path.with_suffix(".bin").stat().st_size < 2.5 * weights
    for found, plain in zip(open_openvino(path)(images.numpy()), expected, strict=True):
        error = torch.from_numpy(found) - plain
        assert 0 < error.abs().max() < 5e-3 * plain.abs().max()
