"""OpenVINO's files in INT8 by NNCF: which layers, with which numbers, and what each loses."""

import math

import numpy as np
import openvino
import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from support.exported_models import NARROW, needs_nncf
from support.oracles import randomise
from support.running import SEGMENTATION, assert_error, run_here

from backbones import ConvNeXt, InputError
from backbones.openmmlab.deployment.openvino_int8 import OpenvinoQuantizer
from backbones.openmmlab.export.convolutions import use_convolutions
from backbones.openmmlab.export.files import capture, write_openvino
from backbones.openmmlab.export.graphs import BackboneGraph, Preprocessing
from backbones.openmmlab.tasks import task_of_scope

MEAN_STD = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory) -> OpenvinoQuantizer:
    """A quantiser of a narrow V2 backbone's file, with images."""
    path = tmp_path_factory.mktemp("backbone") / "x.xml"
    torch.manual_seed(0)
    backbone = randomise(ConvNeXt(NARROW, use_grn=True)).eval().requires_grad_(False)
    preprocessor = ImgDataPreprocessor(**MEAN_STD, bgr_to_rgb=True)
    graph = BackboneGraph(Preprocessing(preprocessor, torch.float32), backbone).eval()
    use_convolutions(graph)
    write_openvino(capture(graph), path, dict(precision="fp32", part="backbone"))
    kept = task_of_scope("mmseg").export.float_layers
    made = OpenvinoQuantizer(path, kept, "backbone")
    made.calibrate(images(3), path.parent)
    return made


def images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(0, 255, (1, 3, 64, 96)).astype(np.float32) for _ in range(count)]


def run(model: openvino.Model, image: np.ndarray) -> list[np.ndarray]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([image])
    return [np.array(found[output]) for output in compiled.outputs]


def test_layers_are_named_by_their_modules(quantizer):
    """Convolutions of a backbone, its stem and norms are none of them."""
    names = [f"backbone.stages.{i}.0.pwconv{j}" for i in range(4) for j in (1, 2)]
    assert [layer.name for layer in quantizer.layers] == names
    assert {layer.kind for layer in quantizer.layers} == {"linear"}


def test_files_without_names_are_refused(quantizer, tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(quantizer.path.read_text().replace("<layers value", "<others value"))
    path.with_suffix(".bin").write_bytes(quantizer.path.with_suffix(".bin").read_bytes())
    with pytest.raises(InputError) as caught:
        OpenvinoQuantizer(path, task_of_scope("mmseg").export.float_layers, "backbone")
    assert (caught.value.code, caught.value.where) == ("broken-file", str(path))


@needs_nncf
def test_chosen_linears_alone_become_int8(quantizer, tmp_path):
    """One scale per output channel, and each layer's loss is that of its numbers in the file."""
    path, chosen = tmp_path / "int8.xml", quantizer.layers[1:]
    quantizer.write(chosen, path, dict(precision="int8"))
    model = openvino.Core().read_model(path)
    assert str(model.get_rt_info(["convnext", "precision"]).value) == "int8"
    assert str(model.get_rt_info(["convnext", "part"]).value) == "backbone"
    nodes = {op.get_friendly_name(): op for op in model.get_ops()}
    exact_nodes = {op.get_friendly_name(): op for op in quantizer.model.get_ops()}
    quantised = [op for op in nodes.values() if op.get_type_name() == "FakeQuantize"]
    assert len(quantised) == len(chosen)
    inputs = openvino.Model(
        [exact_nodes[layer.node].input_value(0) for layer in chosen],
        quantizer.model.get_parameters(),
    )
    given = [run(inputs, image) for image in images(2)]
    found = quantizer.sensitivities(images(2))
    assert list(found) == quantizer.layers
    for i, layer in enumerate(chosen):
        node = nodes[layer.node]
        rounding, scaled = (node.input_value(j).get_node() for j in (0, 1))
        assert (rounding.get_type_name(), scaled.get_type_name()) == ("FakeQuantize", "Multiply")
        convert, scales = (scaled.input_value(j).get_node() for j in (0, 1))
        integers = convert.input_value(0).get_node().data
        assert integers.dtype == np.int8 and np.abs(integers).max() >= (
            63 if quantizer.narrow else 127
        )
        assert scales.data.size == len(integers) > 1
        low, high = (float(rounding.input_value(j).get_node().data.item()) for j in (1, 2))
        step = (high - low) / (rounding.get_attributes()["levels"] - 1)
        weight = exact_nodes[layer.node].input_value(1).get_node()  # of half to full precision
        weight = weight.input_value(0).get_node().data.astype(np.float64)[..., 0, 0].T  # (C, out)
        rounded = (integers.astype(np.float64) * scales.data)[..., 0, 0].T
        error = norm = 0.0
        for x in (np.moveaxis(maps[i].astype(np.float64), 1, -1) for maps in given):
            near = np.round((x.clip(low, high) - low) / step) * step + low
            error += np.square(near @ rounded - x @ weight).sum()
            norm += np.square(x @ weight).sum()
        assert found[layer] == pytest.approx(math.sqrt(error / norm), rel=0.05)
        assert found[layer] > 1e-4
    for name, op in nodes.items():
        if name not in {layer.node for layer in chosen} and op.get_type_name() in (
            "MVN",
            "Convolution",
            "GroupConvolution",
            "Add",
            "Multiply",
        ):
            parents = {value.get_node().get_type_name() for value in op.input_values()}
            assert "FakeQuantize" not in parents, name
    (image,) = images(1)
    for one, other in zip(run(quantizer.model, image), run(model, image), strict=True):
        assert 1e-4 < np.linalg.norm(other - one) / np.linalg.norm(one) < 0.2


def test_missing_nncf_is_one_line(shapes, tmp_path, monkeypatch):
    import backbones.packages

    found = backbones.packages._found
    monkeypatch.setattr(backbones.packages, "_found", lambda name: name != "nncf" and found(name))
    path = tmp_path / "model.xml"
    done = run_here("quantize.py", SEGMENTATION, path, "--data", shapes)
    assert_error(done, "missing-package", "nncf")
