"""`convnext quantize`: which layers become INT8, what each loses, and the gate."""

import json
import math
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from onnx import numpy_helper
from support.exported_models import NARROW
from support.forked import run_forked
from support.oracles import randomise
from support.running import SEGMENTATION, assert_error, run_here

from backbones import ConvNeXt, InputError
from backbones.openmmlab.deployment.comparing import largest_drop
from backbones.openmmlab.deployment.onnx_int8 import OnnxQuantizer
from backbones.openmmlab.deployment.quantizing import check_faster, fewest_floats
from backbones.openmmlab.deployment.timing import Timing
from backbones.openmmlab.export.files import capture, write_onnx
from backbones.openmmlab.export.graphs import BackboneGraph, Preprocessing
from backbones.openmmlab.export.tensorrt import check_for_tensorrt
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.tasks import task_of_scope

MEAN_STD = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory) -> OnnxQuantizer:
    """A calibrated quantiser of a narrow V2 backbone's file."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    backbone = randomise(ConvNeXt(NARROW, use_grn=True)).eval().requires_grad_(False)
    preprocessor = ImgDataPreprocessor(**MEAN_STD, bgr_to_rgb=True)
    graph = BackboneGraph(Preprocessing(preprocessor, torch.float32), backbone).eval()
    write_onnx(capture(graph), folder / "x.onnx", dict(precision="fp32", part="backbone"))
    kept = task_of_scope("mmseg").export.float_layers
    made = OnnxQuantizer(folder / "x.onnx", kept, "backbone")
    made.calibrate(images(3), folder)
    return made


def images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(0, 255, (1, 3, 64, 96)).astype(np.float32) for _ in range(count)]


def test_linears_alone_become_int8(quantizer, tmp_path):
    """One scale per output channel; convolutions and norms of a backbone keep their inputs."""
    names = [f"backbone.stages.{i}.0.pwconv{j}" for i in range(4) for j in (1, 2)]
    assert [layer.name for layer in quantizer.layers] == names
    assert {layer.kind for layer in quantizer.layers} == {"linear"}
    path = tmp_path / "int8.onnx"
    quantizer.write(quantizer.layers, path, dict(precision="int8"))
    model = onnx.load(path)
    assert {p.key: p.value for p in model.metadata_props}["precision"] == "int8"
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    for node in model.graph.node:
        inputs = [made_by.get(name) for name in node.input]
        weighted = node.op_type in ("MatMul", "Gemm") and "DequantizeLinear" in inputs
        if weighted:
            assert inputs[:2] == ["DequantizeLinear"] * 2
        elif node.op_type != "DequantizeLinear":
            assert "DequantizeLinear" not in inputs, node.op_type
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    int8 = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 2]
    assert len(int8) == len(names) and all(np.abs(w).max() > 100 for w in int8)
    scales = [w for name, w in weights.items() if "scale" in name and w.ndim == 1 and w.size > 1]
    assert sorted(s.size for s in scales) == sorted(w.shape[1] for w in int8)
    # Near the float file's maps, and not equal to them.
    for image in images(1):
        exact, found = (run(file, image) for file in (quantizer.path, path))
        for one, other in zip(exact, found, strict=True):
            error = np.linalg.norm(other - one) / np.linalg.norm(one)
            assert 1e-4 < error < 0.1


def run(path, image: np.ndarray, optimised: bool = True) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": image})


def test_tensorrts_rules(quantizer, tmp_path):
    """Every pair is symmetric INT8, around the linears alone; weights have a scale per column."""
    kept = task_of_scope("mmseg").export.float_layers
    made = OnnxQuantizer(quantizer.path, kept, "backbone", tensorrt=True)
    made.calibrate(images(3), tmp_path)
    path = tmp_path / "tensorrt.onnx"
    made.write(made.layers, path, dict(precision="int8"))
    check_for_tensorrt(path)
    graph = onnx.load(path).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 4 * len(made.layers)
    for node in pairs:
        zero = tensors[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    for node in graph.node:
        around = [made_by[name] for name in node.input if name in made_by]
        if node.op_type == "MatMul":
            for dequantised in around:
                assert dequantised.op_type == "DequantizeLinear"
                assert made_by[dequantised.input[0]].op_type == "QuantizeLinear"
            given, weight = around
            assert tensors[given.input[1]].size == 1
            axis = {a.name: a.i for a in weight.attribute}["axis"]
            columns = tensors[made_by[weight.input[0]].input[0]].shape[1]
            assert axis == 1 and tensors[weight.input[1]].shape == (columns,)
        elif node.op_type != "DequantizeLinear":
            assert not any(other.op_type == "DequantizeLinear" for other in around), node.op_type
    (image,) = images(1)
    maps = (run(quantizer.path, image), run(path, image, optimised=False))
    for one, other in zip(*maps, strict=True):
        assert 1e-4 < np.linalg.norm(other - one) / np.linalg.norm(one) < 0.1


def test_what_tensorrt_refuses_is_named(quantizer, tmp_path):
    path = tmp_path / "x.onnx"
    quantizer.write(quantizer.layers, path, {})
    refusals = [("QuantizeLinear", lambda model: None)]
    graph = onnx.load(quantizer.path).graph
    name = next(node.name for node in graph.node if node.op_type == "LayerNormalization")
    refusals.append((name, lambda node: setattr(node, "op_type", "Bernoulli")))
    refusals.append((name, lambda node: setattr(node, "domain", "com.microsoft")))
    for named, change in refusals:
        model = onnx.load(path if named == "QuantizeLinear" else quantizer.path)
        for node in model.graph.node:
            if node.name == named:
                change(node)
        changed = tmp_path / "changed.onnx"
        onnx.save(model, changed)
        with pytest.raises(InputError) as caught:
            check_for_tensorrt(changed)
        assert caught.value.code == "unsupported" and named in str(caught.value)


def test_sensitivity_is_the_loss_of_the_layer_alone(quantizer):
    """Against rounding written here: activations to 8 bits, weights to 8 bits by channel."""
    given = images(2)
    found = quantizer.sensitivities(given)
    assert list(found) == quantizer.layers
    model = onnx.load(quantizer.path)
    nodes = {node.name: node for node in model.graph.node}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    wanted = {layer: nodes[layer.node].input[0] for layer in quantizer.layers}
    for name in wanted.values():
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    top = 127 if not quantizer.narrow else 63
    for layer, name in wanted.items():
        rows = [session.run([name], {"input": image})[0] for image in images(3)]
        low = min(0.0, *(float(x.min()) for x in rows))
        step = (max(0.0, *(float(x.max()) for x in rows)) - low) / 255
        weight = weights[nodes[layer.node].input[1]].astype(np.float64)
        channel = np.abs(weight).max(0) / top
        rounded = np.round(weight / channel).clip(-top - 1, top) * channel
        error = norm = 0.0
        for x in rows[: len(given)]:
            x = x.astype(np.float64)
            zero = round(-low / step)
            near = ((np.round(x / step) + zero).clip(0, 255) - zero) * step
            exact = x @ weight
            error += np.square(near @ rounded - exact).sum()
            norm += np.square(exact).sum()
        assert found[layer] == pytest.approx(math.sqrt(error / norm), rel=0.05)
        assert found[layer] > 1e-4


@pytest.mark.parametrize("count", [1, 2, 7, 36])
def test_bisection_finds_the_fewest_floats(count):
    for needed in range(count + 1):
        tried = []

        def drop_of(floats: int, needed=needed, tried=tried) -> float:
            tried.append(floats)
            return 0.0 if floats >= needed else 1.0

        found = fewest_floats(count, drop_of, 0.005)
        assert found == (needed if needed < count else None)
        assert len(tried) <= math.ceil(math.log2(count)) + 1 and len(set(tried)) == len(tried)
        assert found is None or found in tried


def test_drops_are_relative_to_the_best_score():
    segmentation, detection = task_of_scope("mmseg"), task_of_scope("mmdet")
    assert largest_drop(segmentation, {"mIoU": 50.0}, {"mIoU": 49.5}) == pytest.approx(0.005)
    exact = {"coco/bbox_mAP": 0.5, "coco/segm_mAP": 0.4}
    found = {"coco/bbox_mAP": 0.51, "coco/segm_mAP": 0.38}
    assert largest_drop(detection, exact, found) == pytest.approx(0.02)
    assert largest_drop(detection, exact, {**found, "coco/bbox_mAP": float("nan")}) == math.inf


def test_slower_files_are_refused(tmp_path):
    out = tmp_path / "x.onnx"
    check_faster(out, Timing([2.0, 3.0, 9.0]), Timing([2.9, 2.9, 2.9]))
    with pytest.raises(InputError) as caught:
        check_faster(out, Timing([2.0, 3.0, 9.0]), Timing([1.0, 3.0, 3.0]))
    assert caught.value.code == "unsupported" and "--keep-slower" in str(caught.value)


@pytest.mark.slow
def test_segmentor_in_int8_keeps_its_miou(trained_segmentor, segmentor_files, shapes, tmp_path):
    out = tmp_path / "new" / "int8.onnx"
    arguments = (
        trained_segmentor[0], segmentor_files["onnx"], "--data", shapes, "--work-dir", tmp_path,
        "--out", out, "--rounds", 1, "--calibration", 4, "--keep-slower",
    )  # fmt: skip
    done = run_forked("quantize.py", *arguments, "--max-drop", 0.01, cwd=tmp_path)
    assert done.status == 0, done.err
    report = json.loads(out.with_suffix(".json").read_text())
    scores = report["scores"]["mIoU"]
    assert scores["float"] > 20 and scores["float"] - scores["int8"] <= 1
    assert report["drop"] == pytest.approx((scores["float"] - scores["int8"]) / 100)
    layers = report["layers"]
    assert {"linear", "convolution"} == {layer["kind"] for layer in layers}
    assert sum(layer["precision"] == "int8" for layer in layers) > len(layers) / 2
    assert not any("conv_seg" in layer["name"] for layer in layers)
    losses = [layer["sensitivity"] for layer in layers]
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0
    assert 0 < report["size_mib"]["int8"] < report["size_mib"]["float"]
    assert min(report["median_ms"].values()) > 0 and layers[0]["name"] in done.out
    # Read by the predictor, with labels near the float file's, and no source of another.
    image = str(next(shapes.glob("images/validation/*")))
    predictor = Predictor(out)
    assert predictor.model.precision == "int8"
    found, exact = (p(image).pred_sem_seg.data for p in (predictor, Predictor(arguments[1])))
    assert 0.95 < (found == exact).float().mean() and len(exact.unique()) > 1
    twice = run_here("quantize.py", trained_segmentor[0], out, "--data", shapes)
    assert_error(twice, "unsupported", out, "int8")
    # A gate that nothing passes leaves nothing.
    lost = tmp_path / "lost" / "x.onnx"
    refused = run_here(
        "quantize.py", *arguments[:-7], "--calibration", 2, "--rounds", 1, "--out", lost,
        "--max-drop", -1,
    )  # fmt: skip
    assert_error(refused, "unsupported", lost, "--max-drop")
    assert not list(lost.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (("model.pt2",), "bad-argument", ("model.pt2",)),
        (("model.xml", "--for", "tensorrt"), "bad-argument", ("model.xml", "tensorrt")),
        (("missing.onnx",), "not-found", ("missing.onnx",)),
        (("missing.onnx", "--out", "x.xml"), "bad-argument", ("--out", "x.xml")),
    ],
)
def test_bad_arguments_are_one_line(arguments, code, names, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("quantize.py", SEGMENTATION, *arguments, "--data", shapes)
    assert_error(done, code, *names)


def test_data_without_training_images_is_one_line(shapes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for folder in ("images/training", "annotations/training"):
        shutil.rmtree(data / folder)
    done = run_here("quantize.py", SEGMENTATION, "x.onnx", "--data", data, "--work-dir", tmp_path)
    assert_error(done, done.code, data)
