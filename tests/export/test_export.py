"""Export: graphs against mmdet's and mmseg's own prediction, files against graphs, and the tool."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import openvino
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from support.exported_models import NARROW, batch_of, build, image_of, narrow_config
from support.oracles import randomise
from support.running import DETECTION, REPOSITORY, SEGMENTATION, assert_error, run_here
from torch import nn

from backbones import ConvNeXt, InputError
from backbones.convnext import GRN
from backbones.openmmlab.config import load_config
from backbones.openmmlab.export.agreement import Agreement
from backbones.openmmlab.export.files import TARGETS, capture, write_aoti, write_onnx, write_torch
from backbones.openmmlab.export.graphs import (
    BackboneGraph,
    Preprocessing,
    build_graph,
    enlarge_activations,
    halve,
)
from backbones.openmmlab.prediction.exported import open_onnx, open_torch
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.tasks import task_of_model, task_of_scope
from backbones.weights import trusted

MASK_RCNN = REPOSITORY / "configs" / "detection" / "mask_rcnn_convnext_t_1x.py"
SIZES = [(96, 160), (64, 64), (97, 131)]  # the last one off every stride


@pytest.mark.parametrize("base", [DETECTION, MASK_RCNN], ids=["cascade", "mask_rcnn"])
def test_detector_graph_is_mmdets_prediction(base, tmp_path):
    low = {"score_thr": 0.03 if base == MASK_RCNN else 0.05, "max_per_img": 100}
    low = {f"model.test_cfg.rcnn.{key}": value for key, value in low.items()}
    low |= {"model.test_cfg.rpn.nms_pre": 100, "model.test_cfg.rpn.max_per_img": 60}
    model = build(narrow_config(base, tmp_path), **low)
    graph = build_graph(model)
    agreement = task_of_model(model).export.comparison(model, False)
    for height, width in SIZES:
        batch = batch_of(model, height, width, "mmdet")
        with torch.inference_mode():
            outputs = graph(image_of(batch))
            reference = agreement.reference(batch)
        dets, labels, masks = outputs
        assert dets.shape[1] > 5 and len(labels.unique()) > 1
        assert dets.shape == (1, labels.shape[1], 5) and masks.shape[:2] == labels.shape
        assert float(dets[0, :, 2].max()) <= width and masks.std() > 0.01
        largest, *counts = agreement.differences(reference, outputs, batch)
        assert set(largest) == {"boxes", "scores", "masks"}
        assert max(largest.values()) < 1e-3, largest
        assert counts == [dets.shape[1], 0]
        moved = [dets + dets.new_tensor([0, 0, 3, 0, 0]), *outputs[1:]]
        assert agreement.differences(reference, moved, batch).unpaired > 0.9 * dets.shape[1]


def test_segmentor_graph_is_mmsegs_inference(tmp_path):
    model = build(narrow_config(SEGMENTATION, tmp_path))
    for logits in (True, False):
        graph = build_graph(model, logits=logits)
        agreement = task_of_model(model).export.comparison(model, logits)
        for height, width in SIZES:
            batch = batch_of(model, height, width, "mmseg")
            with torch.inference_mode():
                outputs = graph(image_of(batch))
                reference = agreement.reference(batch)
            assert outputs[0].shape == (1, 8 if logits else 1, height, width)
            assert len(reference[0].unique()) > 2
            (difference,) = agreement.differences(reference, outputs, batch).largest.values()
            assert difference < (1e-5 if logits else 1e-3)


def test_average_pool_is_adaptive():
    from backbones.openmmlab.segmentation.export_graph import AveragePool

    for size in [(1, 1), (5, 7), (6, 13), (3, 2)]:
        x = torch.randn(2, 3, *size)
        for bins in (1, 2, 3, 6):
            expected = F.adaptive_avg_pool2d(x, bins)
            torch.testing.assert_close(AveragePool(bins)(x), expected, rtol=1e-6, atol=1e-6)


class Sigmoids(nn.Module):
    """Logits to PyTorch's sigmoid and to the graph's."""

    inputs = {"input": {0: "batch", 2: "height", 3: "width"}}
    outputs = ("own", "exact")
    preprocessing = SimpleNamespace(channels=3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from backbones.openmmlab.detection.export_graph import exact_sigmoid

        return x.sigmoid(), exact_sigmoid(x)


def test_scores_of_unlikely_anchors_keep_their_order(tmp_path):
    """A runtime's own sigmoid may put small scores in another order, as onnxruntime's does."""
    graph = Sigmoids()
    write_onnx(capture(graph), tmp_path / "x.onnx", {})
    logits = torch.linspace(-40, 40, 20001)
    run = open_onnx(tmp_path / "x.onnx")
    own, found = (torch.from_numpy(x) for x in run(logits.view(1, 3, 1, -1).numpy()))
    exact = logits.double().sigmoid()
    errors = [((x.flatten().double() - exact) / exact).abs().max() for x in (own, found)]
    assert errors[1] < 3e-7 and (found.diff() >= 0).all()
    assert torch.equal(found.flatten() == 1, logits.sigmoid() == 1)  # ties are where PyTorch's are
    assert errors[0] > 1  # or the graph might use it again


@pytest.mark.slow
def test_half_trained_detector_keeps_its_detections(tmp_path):
    """Whose RPN holds nearly all anchors for background, with scores of 1e-5 and less."""
    narrow = {"model.test_cfg.rcnn.score_thr": 0.05, "model.test_cfg.rpn.max_per_img": 60}
    model = build(narrow_config(DETECTION, tmp_path), **narrow)
    model.rpn_head.rpn_cls.bias -= 15
    graph = build_graph(model)
    write_onnx(capture(graph), tmp_path / "x.onnx", {})
    run, comparison = open_onnx(tmp_path / "x.onnx"), task_of_model(model).export.comparison
    for height, width in ((160, 160), (96, 160), (131, 97)):
        batch = batch_of(model, height, width, "mmdet")
        with torch.inference_mode():
            reference = comparison(model, False).reference(batch)
        outputs = [torch.from_numpy(x) for x in run(image_of(batch).numpy())]
        found = comparison(model, False).differences(reference, outputs, batch)
        assert found.detections > 20
        assert found.unpaired == 0 and max(found.largest.values()) < 1e-3, found


@pytest.fixture(scope="module")
def backbone_graphs() -> dict[bool, BackboneGraph]:
    """A narrow V2 backbone in float32 and in half precision."""
    from mmengine.model import ImgDataPreprocessor

    torch.manual_seed(0)
    backbone = randomise(ConvNeXt(NARROW, use_grn=True)).eval().requires_grad_(False)
    mean_std = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    preprocessor = ImgDataPreprocessor(**mean_std, bgr_to_rgb=True, pad_size_divisor=32)
    graphs = {}
    for fp16 in (False, True):
        dtype = torch.float16 if fp16 else torch.float32
        graph = BackboneGraph(Preprocessing(preprocessor, dtype), backbone).eval()
        if fp16:
            graph.backbone = deepcopy(backbone)
            halve(graph)
        graphs[fp16] = graph
    return graphs


def test_files_of_every_size_and_batch(backbone_graphs, tmp_path):
    """One file for all sizes; normalisation, channel order and padding are in it."""
    import onnx

    graph = backbone_graphs[False]
    captured = capture(graph)
    write_onnx(captured, tmp_path / "x.onnx", dict(classes=["a", "b"], part="backbone"))
    write_torch(captured, tmp_path / "x.pt2", dict(part="backbone"))
    runs = [open_onnx(tmp_path / "x.onnx"), open_torch(tmp_path / "x.pt2")]
    for batch, (height, width) in zip((1, 3, 2), SIZES, strict=True):
        images = torch.rand(batch, 3, height, width) * 255
        rgb = images.flip(1) - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
        rgb = rgb / torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
        padded = F.pad(rgb, (0, -width % 32, 0, -height % 32))
        with torch.no_grad():
            expected = graph.backbone(padded)
        for run in runs:
            for one, other in zip(expected, run(images.numpy()), strict=True):
                other = torch.from_numpy(other)
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
                assert one.std() > 0.1
    model = onnx.load(tmp_path / "x.onnx")
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    assert [o.name for o in model.graph.output] == ["map0", "map1", "map2", "map3"]
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["classes"]) == ["a", "b"]


class NaiveGRN(GRN):
    """What GRN is without care: sums of squares in the dtype of the map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = x.square().sum((1, 2), keepdim=True).sqrt()
        norm = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        return x + self.beta.to(x) + self.gamma.to(x) * x * norm


def test_half_precision_survives_large_activations(backbone_graphs, tmp_path):
    """Near the exact maps, and finite, in the file too, where squares of activations overflow."""
    exact, half = backbone_graphs[False], backbone_graphs[True]
    image = torch.rand(1, 3, 64, 96) * 255
    large = BackboneGraph(half.preprocessing, enlarge_activations(half.backbone, 1e3)).eval()
    hidden = []
    handle = large.backbone.stages[0][0].grn.register_forward_pre_hook(
        lambda _, inputs: hidden.append(float(inputs[0].abs().max()))
    )
    with torch.no_grad():
        expected, near, eager = exact(image), half(image), large(image)
    handle.remove()
    assert 256 < hidden[0] < 65504  # fits; its square does not
    path = tmp_path / "large.onnx"
    write_onnx(capture(large), path, {})
    run = open_onnx(path, optimised=False)
    for maps, reference in ((near, expected), (map(torch.from_numpy, run(image.numpy())), eager)):
        for one, other in zip(reference, maps, strict=True):
            assert other.dtype == torch.float32 and other.isfinite().all()
            assert float((one - other).abs().max() / one.abs().max()) < 0.03
    for module in large.backbone.modules():
        if isinstance(module, GRN):
            module.__class__ = NaiveGRN
    with torch.no_grad():
        assert not all(bool(x.isfinite().all()) for x in large(image))


def test_agreement_names_what_is_beyond_the_tolerance():
    """Scores are relative to their best value, of mIoU 100 and of AP 1."""
    detection = Agreement(task_of_scope("mmdet"), scores={"coco/bbox_mAP": (0.5, 0.4995)})
    assert detection.problem(6e-4) == "" and "coco/bbox_mAP" in detection.problem(4e-4)
    agreement = Agreement(task_of_scope("mmseg"), scores={"mIoU": (50.0, 49.95)})
    agreement.add(dict(boxes=1e-5))
    agreement.add(dict(boxes=3e-4))
    assert agreement.images == 2 and agreement.problem(1e-3) == ""
    assert agreement.problem(4e-4) == "mIoU is 49.95, the model's 50"
    assert agreement.problem(1e-4).startswith("boxes differ by 0.0003")
    agreement.add({}, detections=60, unpaired=0)
    agreement.add({}, detections=40, unpaired=1)
    assert agreement.problem(4e-3) == "" and "1 of 100" in "\n".join(agreement.lines())
    assert agreement.problem(1.9e-3) == "1 of 100 detections differ"
    agreement.add(dict(boxes=float("nan")))
    agreement.finite = False
    assert "NaN" in agreement.problem(1.0)


@pytest.fixture(scope="module")
def narrow_detector(tmp_path_factory) -> tuple[Path, Path]:
    """A config and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("narrow")
    config = narrow_config(DETECTION, folder)
    torch.save({"state_dict": build(config).state_dict()}, folder / "narrow.pth")
    return config, folder / "narrow.pth"


@pytest.mark.slow
def test_tool_exports_a_backbone_and_reports(narrow_detector, shapes, tmp_path):
    config, checkpoint = narrow_detector
    out = tmp_path / "new" / "backbone.onnx"
    arguments = (config, checkpoint, "--data", shapes, "--work-dir", tmp_path, "--out", out)
    done = run_here(
        "export.py", *arguments, "--to", "onnx", "--part", "backbone", "--images", 2, "--fp16"
    )
    assert done.status == 0, done.err
    assert sorted(p.name for p in out.parent.iterdir()) == ["backbone.json", "backbone.onnx"]
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["images"] == 2 and report["precision"] == "fp16"
    assert 0 < report["largest_differences"]["map3"] < 0.02
    assert set(report["scores"]) == {"coco/bbox_mAP", "coco/segm_mAP"}
    assert report["activations_enlarged"] > 100
    assert "map3" in done.out and "bbox" in done.out
    maps = open_onnx(out)(np.zeros((2, 3, 64, 96), np.float32))
    assert [m.shape for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(NARROW["dims"], (4, 8, 16, 32), strict=True)
    ]
    again = run_here("export.py", *arguments, "--to", "onnx")
    assert_error(again, "bad-argument", out, "--force")


@pytest.mark.slow
def test_tool_leaves_nothing_beyond_the_tolerance(narrow_detector, shapes, tmp_path):
    config, checkpoint = narrow_detector
    out = tmp_path / "out" / "backbone.pt2"
    done = run_here(
        "export.py", config, checkpoint, "--data", shapes, "--work-dir", tmp_path / "work",
        "--out", out, "--to", "torch", "--part", "backbone", "--fp16", "--images", 1,
        "--tolerance", 1e-9,
    )  # fmt: skip
    assert_error(done, "unsupported", out, "1e-09", "map")
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--to", "onnx", "--out", "x.pt2"), ("--out", "x.pt2", ".onnx")),
        (("--to", "onnx", "--images", 0), ("--images", "0")),
        (("--to", "onnx", "--logits"), ("--logits",)),
    ],
)
def test_mistakes_are_one_line(arguments, names, narrow_detector, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = narrow_detector
    done = run_here("export.py", config, checkpoint, "--data", shapes, *arguments)
    assert_error(done, "bad-argument", *names)
    assert not list(tmp_path.glob("*.onnx"))


def test_missing_packages_are_named(narrow_detector, monkeypatch, tmp_path):
    import backbones.packages

    monkeypatch.chdir(tmp_path)
    found = backbones.packages._found
    for hidden, names in [
        ({"onnxscript", "onnxruntime"}, ("--to onnx", "onnxscript", "onnxruntime")),
        ({"cv2"}, ("tools/export.py", "opencv-python-headless")),
    ]:
        monkeypatch.setattr(
            backbones.packages, "_found", lambda name, gone=hidden: name not in gone and found(name)
        )
        done = run_here("export.py", *narrow_detector, "--to", "onnx")
        assert done.status == 2 and all(name in done.last_line for name in names)
        assert "Traceback" not in done.err


def test_what_a_graph_cannot_be_is_refused(tmp_path):
    soft = {
        "model.test_cfg.rcnn.nms": dict(type="soft_nms", iou_threshold=0.5, min_score=0.05),
    }
    model = build(narrow_config(DETECTION, tmp_path), **soft)
    with pytest.raises(InputError) as caught:
        build_graph(model)
    assert (caught.value.code, caught.value.where) == (
        "unsupported",
        "model.test_cfg.rcnn.nms.type",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnx", ()),
        ("onnx", ("--logits", "--fp16")),
        ("torch", ("--logits",)),
        ("openvino", ("--logits",)),
    ],
    ids=["labels", "half_logits", "torch", "openvino"],
)
def test_exported_segmentor_keeps_its_miou(target, options, trained_segmentor, shapes, tmp_path):
    out = tmp_path / f"segmentor{TARGETS[target].suffix}"
    done = run_here(
        "export.py", *trained_segmentor, "--to", target, "--out", out, "--images", 4,
        "--data", shapes, "--work-dir", tmp_path / "work", *options,
    )  # fmt: skip
    assert done.status == 0, done.err
    score = json.loads(out.with_suffix(".json").read_text())["scores"]["mIoU"]
    half = "--fp16" in options or target == "openvino"  # whose weights are in half precision
    assert score["model"] > 20 and abs(score["change"]) <= (2 if half else 0.1)
    (found,) = TARGETS[target].open(out)(
        np.random.default_rng(0).uniform(0, 255, (3, 3, 75, 131)).astype(np.float32)
    )
    assert found.shape == (3, 8 if "--logits" in options else 1, 75, 131)
    # By itself the file predicts what the model does on a whole image, resizing included.
    config = load_config(trained_segmentor[0], {"model.test_cfg": dict(mode="whole")})
    image = cv2.imread(str(next(shapes.glob("images/validation/*"))))[:, :83]
    found = Predictor(out)(image).pred_sem_seg.data
    expected = Predictor(config, trained_segmentor[1])(image).pred_sem_seg.data
    assert found.shape == (1, *image.shape[:2]) and len(expected.unique()) > 1
    # Logits are resized as the model resizes them, labels to the nearest.
    least = 0.9 if "--logits" not in options else 0.99 if half else 0.9999
    assert (found == expected).float().mean() > least


@pytest.mark.slow
def test_no_detections_are_no_error(narrow_detector, tmp_path):
    """Nothing scores above the threshold, on an image smaller than the traced one."""
    model = build(narrow_detector[0], **{"model.test_cfg.rcnn.score_thr": 0.999})
    graph = build_graph(model)
    write_onnx(capture(graph), tmp_path / "x.onnx", {})
    dets, labels, masks = open_onnx(tmp_path / "x.onnx")(np.zeros((1, 3, 96, 128), np.float32))
    assert dets.shape == (1, 0, 5) and labels.shape == (1, 0)
    assert masks.shape == (1, 0, 28, 28)


@pytest.mark.slow
def test_photographs(real_data, tmp_path):
    """Sizes and contents of real images, 80 classes, hundreds of detections."""
    base = REPOSITORY / "configs" / "detection" / "cascade_convnext_t.py"
    config = narrow_config(base, tmp_path)
    few = {
        "model.test_cfg.rcnn.score_thr": 0.03,
        "model.test_cfg.rpn.max_per_img": 60,
        "test_dataloader.dataset.pipeline.1.scale": (256, 160),
    }
    torch.save({"state_dict": build(config).state_dict()}, tmp_path / "x.pth")
    out = tmp_path / "x.onnx"
    done = run_here(
        "export.py", config, tmp_path / "x.pth", "--to", "onnx", "--out", out, "--images", 3,
        "--data", real_data / "coco_mini", "--work-dir", tmp_path / "work",
        "--cfg-options", *(f"{key}={value}".replace(" ", "") for key, value in few.items()),
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["images"] == 3 and len(report["classes"]) == 80
    assert 0 < report["largest_differences"]["scores"] < 1e-3


def one_operator(op: str = "Relu", domain: str = "", opset: int = 18, ir: int = 10):
    """An ONNX model of one operator, of some version."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node(op, ["input"], ["y"], domain=domain)
    ends = (helper.make_tensor_value_info(name, floats, [1, 3, 4, 4]) for name in ("input", "y"))
    graph = helper.make_graph([node], "graph", *([end] for end in ends))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(domain or "ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


class TestExportedFilesAlone:
    """What `Predictor` refuses, in one line, when it is given an exported file."""

    @pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
    def test_missing_and_damaged(self, suffix, tmp_path):
        path = tmp_path / f"model{suffix}"
        for code, content in (("not-found", None), ("broken-file", b""), ("broken-file", b"no")):
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(InputError) as caught:
                Predictor(path)
            assert (caught.value.code, caught.value.where) == (code, str(path))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            (dict(op="Foo", domain="nowhere"), "nowhere:Foo"),
            (dict(opset=99), "opset"),
            (dict(ir=99), "IR version: 99"),
            (dict(), "this version"),
        ],
    )
    def test_of_other_versions_and_operators(self, changes, reason, tmp_path):
        path = tmp_path / "model.onnx"
        onnx.save(one_operator(**changes), path)
        with pytest.raises(InputError) as caught:
            Predictor(path)
        assert (caught.value.code, caught.value.where) == ("broken-file", str(path))
        assert reason in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("change", [('type="ReLU"', 'type="Foo"'), ("opset1", "opset99")])
    def test_of_other_opsets_of_openvino(self, change, tmp_path):
        path = tmp_path / "model.xml"
        onnx.save(one_operator(), tmp_path / "model.onnx")
        openvino.save_model(openvino.Core().read_model(tmp_path / "model.onnx"), path)
        path.write_text(path.read_text().replace(*change))
        with pytest.raises(InputError) as caught:
            Predictor(path)
        assert (caught.value.code, caught.value.where) == ("broken-file", str(path))
        assert change[1].strip('"').rpartition('"')[2] in str(caught.value)

    def test_of_others_and_of_backbones(self, tmp_path):
        backbone = ConvNeXt(arch=dict(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))).eval()
        preprocessor = MODELS.build(dict(type="mmseg.SegDataPreProcessor"))
        graph = BackboneGraph(Preprocessing(preprocessor, torch.float32), backbone).eval()
        metadata = dict(part="backbone", scope="mmseg", pipeline=[], classes=[], palette=None)
        metadata |= dict(outputs=[], postprocessing={}, precision="fp32")
        for name, of_file in (("other", {}), ("backbone", metadata)):
            path = tmp_path / f"{name}.pt2"
            write_torch(capture(graph), path, of_file)
            with pytest.raises(InputError) as caught:
                Predictor(path)
            assert (caught.value.code, caught.value.where) == ("broken-file", str(path))

    def test_arguments(self, tmp_path):
        path = tmp_path / "model.onnx"
        (tmp_path / "photo.jpg").write_bytes(b"")
        for more in (("weights.pth", tmp_path / "photo.jpg"), ("photo.jpg",)):
            done = run_here("predict.py", path, *more)
            assert_error(done, "bad-argument" if more[0] == "weights.pth" else "not-found")


@pytest.mark.slow
def test_compiled_packages_run_and_are_opened_where_trusted(backbone_graphs, tmp_path):
    """AOTInductor's package holds machine code, and the file's metadata."""
    graph = backbone_graphs[False]
    path = tmp_path / "x.pt2"
    metadata = dict(part="backbone", scope="mmseg", precision="fp32", pipeline=[], classes=[])
    metadata |= dict(palette=None, outputs=list(graph.outputs), postprocessing={})
    write_aoti(capture(graph), path, metadata)
    run = open_torch(path)
    for batch, (height, width) in zip((1, 3), SIZES, strict=False):
        images = torch.rand(batch, 3, height, width) * 255
        with torch.no_grad():
            expected = graph(images)
        for one, other in zip(expected, run(images.numpy()), strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-4)
            assert one.std() > 0.1
    with pytest.raises(InputError) as caught:
        Predictor(path)
    assert (caught.value.code, caught.value.where) == ("unsafe-checkpoint", str(path))
    with trusted(), pytest.raises(InputError) as caught:  # its metadata is read
        Predictor(path)
    assert (caught.value.code, caught.value.where) == ("broken-file", str(path))
    assert "backbone" in str(caught.value)
