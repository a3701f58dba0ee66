"""docs/samples: programs without this suite predict what `Predictor` does."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.exported_models import batch_of, build, image_of, narrow_config
from support.onnxruntime_headers import onnxruntime_headers
from support.running import DETECTION, REPOSITORY

from backbones.openmmlab.export.exporting import describe
from backbones.openmmlab.export.files import capture, write_onnx
from backbones.openmmlab.export.graphs import build_graph
from backbones.openmmlab.prediction.predictor import Predictor

SAMPLES = REPOSITORY / "docs" / "samples"


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """An ONNX file of a detector that finds many things on noise."""
    folder = tmp_path_factory.mktemp("detector")
    path = narrow_config(DETECTION, folder)
    few = {"model.test_cfg.rcnn.score_thr": 0.05, "model.test_cfg.rpn.max_per_img": 60}
    model = build(path, **few)
    checkpoint = path.with_suffix(".pth")
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    graph = build_graph(model)
    out = path.with_suffix(".onnx")
    metadata = describe(Predictor(path, checkpoint, device="cpu"), graph, "model", "fp32")
    write_onnx(capture(graph), out, metadata)
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The C++ sample, compiled with the library of onnxruntime's Python package."""
    import onnxruntime

    folder = tmp_path_factory.mktemp("program")
    headers = onnxruntime_headers(tmp_path_factory.mktemp("headers"))
    if headers is None:
        pytest.skip("onnxruntime's headers are missing: no libonnxruntime-dev and no Debian mirror")
    (package,) = onnxruntime.__path__
    (library,) = Path(package, "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)  # by which a program looks for it
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Werror", f"-I{headers}"]
    command += [SAMPLES / "predict.cpp", "-o", folder / "predict"]
    subprocess.run([*command, library, f"-Wl,-rpath,{folder}"], check=True)
    return folder / "predict"


def photograph(shapes: Path, height: int, width: int) -> np.ndarray:
    """A drawn image of this size."""
    image = cv2.imread(str(next(shapes.glob("images/validation/*"))))
    return cv2.resize(image, (width, height))


def run_python(model: Path, image: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    """Run the Python sample in a process that cannot import this suite."""
    cv2.imwrite(str(folder / "image.png"), image)
    code = (
        "import runpy, sys, cv2, numpy as np\n"
        f"sample = runpy.run_path({str(SAMPLES / 'predict.py')!r})\n"
        "found = sample['predict'](sys.argv[1], cv2.imread(sys.argv[2]))\n"
        "assert not {'torch', 'backbones', 'mmengine'} & sys.modules.keys()\n"
        "np.savez(sys.argv[3], **found)\n"
    )
    arguments = [model, folder / "image.png", folder / "found.npz"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=folder)
    return dict(np.load(folder / "found.npz"))


def run_program(program: Path, model: Path, image: np.ndarray, folder: Path) -> np.ndarray:
    """Run the C++ sample; return the numbers that it prints, one row for each line."""
    cv2.imwrite(str(folder / "image.ppm"), image)
    done = subprocess.run(
        [program, model, folder / "image.ppm"], capture_output=True, text=True, check=True
    )
    return np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])


@pytest.mark.slow
def test_segmentor_is_predicted_alike(segmentor_files, program, shapes, tmp_path):
    onnx = segmentor_files["onnx"]
    image = photograph(shapes, 83, 131)
    expected = Predictor(onnx)(image).pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 1
    found = run_python(onnx, image, tmp_path)["labels"]
    assert found.shape == (83, 131) and (found == expected).mean() > 0.999
    # The C++ sample takes the image at the network's size, which is the file's own here.
    resized = Predictor(onnx).packed(image)["inputs"].permute(1, 2, 0).numpy()
    batch = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
    (logits,) = Predictor(onnx).model.run(batch.numpy())
    found = run_program(program, onnx, resized, tmp_path)
    assert found.shape == resized.shape[:2]
    assert (found == logits[0].argmax(0)).mean() > 0.999


@pytest.mark.slow
def test_detector_is_predicted_alike(detector, program, tmp_path):
    torch.manual_seed(0)
    batch = batch_of(None, 96, 160, "mmdet")
    image = image_of(batch)[0].permute(1, 2, 0).to(torch.uint8).numpy()
    predictor = Predictor(detector)
    dets, labels, _ = predictor.model.run(image_of(batch).numpy())
    found = run_program(program, detector, image, tmp_path)
    assert len(found) > 5 and found.shape == (dets.shape[1], 6)
    np.testing.assert_allclose(found[:, 2:], dets[0, :, :4], atol=1e-2)
    np.testing.assert_allclose(found[:, 1], dets[0, :, 4], atol=1e-4)
    assert (found[:, 0] == labels[0]).all()
    # Resized by the sample itself, and back: boxes and masks are those of the predictor.
    tall = cv2.resize(image, (83, 131))
    expected = predictor(tall).pred_instances
    found = run_python(detector, tall, tmp_path)
    assert len(expected) > 5 and len(found["scores"]) == len(expected)
    np.testing.assert_allclose(found["boxes"], expected.bboxes.numpy(), atol=0.01)
    np.testing.assert_allclose(found["scores"], expected.scores.numpy(), atol=1e-4)
    assert (found["labels"] == expected.labels.numpy()).all()
    assert 0.01 < found["masks"].mean() < 0.99
    assert (found["masks"] == expected.masks.numpy()).mean() > 0.995
