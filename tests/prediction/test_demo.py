"""The demo page: in a browser, and the mistakes that end it before there is one."""

import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import torch
from support.predicting import noise, options
from support.published import options as small
from support.published import published, put
from support.running import DETECTION, assert_error, command, free_port, run_here

from backbones.openmmlab.config import load_config
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.prediction.stage_maps import draw_heat, stage_maps

CHROMIUM = shutil.which("chromium")


class TestStageMaps:
    @pytest.mark.parametrize("task", ["detection", "segmentation"])
    def test_means_of_absolute_activations(self, task, demo_models):
        config, checkpoint = demo_models[task]
        predictor = Predictor(load_config(config), str(checkpoint), device="cpu")
        image = noise(80, 120)  # the demo configs resize it to 107 x 160
        found = stage_maps(predictor, image)
        assert [m.channels for m in found] == [40, 80, 160, 320]
        packed = predictor.collate([predictor.packed(image)])
        model = predictor.model
        with torch.inference_mode():
            inputs = model.data_preprocessor(packed, False)["inputs"]
            rows = 107 / inputs.shape[2]
            for m, x in zip(found, model.backbone.forward_stages(inputs), strict=True):
                expected = x[0].abs().mean(0).numpy()
                assert m.values.shape == (round(expected.shape[0] * rows), expected.shape[1])
                np.testing.assert_allclose(m.values, expected[: len(m.values)], rtol=1e-5)
                assert m.values.std() > 0

    def test_heat(self):
        values = np.array([[0.0, 1.0], [3.0, 2.0]], np.float32)
        picture = np.array(draw_heat(values, 40, 60)).astype(int)
        assert picture.shape == (40, 60, 3)
        brightness = picture.sum(2)[10::20, 15::30]
        assert (np.argsort(brightness.ravel()) == np.argsort(values.ravel())).all()
        assert np.array(draw_heat(np.ones((2, 3), np.float32), 10, 10)).max() < 40


class TestMistakes:
    def test_arguments(self):
        for code, arguments, name in (
            ("bad-argument", ("--max-upload", "much"), "--max-upload much"),
            ("bad-argument", ("--score", "1.5"), "--score 1.5"),
            ("not-found", (), "x.pth"),
        ):
            assert_error(run_here("demo.py", DETECTION, "x.pth", *arguments), code, name)

    def test_without_gradio(self, monkeypatch):
        import importlib.util

        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: name != "gradio" and find(name, *rest)
            or None,
        )  # fmt: skip
        outcome = run_here("demo.py", DETECTION, "x.pth")
        assert_error(outcome, "missing-package", "gradio", "convnext-dense-prediction[demo]")


@contextmanager
def served(cwd: Path, *arguments: object):
    """The address of a page that a process serves."""
    log = (cwd / "log").open("w+")
    process = subprocess.Popen(
        command("demo.py", *arguments), cwd=cwd, stdout=subprocess.PIPE, stderr=log, text=True,
        env={**os.environ, "GRADIO_TEMP_DIR": str(cwd / "uploads")},
    )  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.match(r"(http://\S+) \(Ctrl-C", line):
                yield found[1]
                return
        log.seek(0)
        raise AssertionError(log.read()[-2000:])
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_page_of_a_published_model(mirror, tmp_path):
    pytest.importorskip("gradio")
    name = "upernet_convnext_t"
    put(mirror, name, published(name, "official"))
    with served(tmp_path, name, *small(name)) as address, urlopen(address) as page:
        assert page.status == 200
        assert f"{name}, {name}.official" in page.read().decode()
    assert len(mirror.asked) == 1


@pytest.fixture
def page_at():
    """Opens addresses in headless Chromium; what is asked of any other host is kept."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    elsewhere = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(address: str):
            page = browser.new_page(viewport=dict(width=1300, height=1100))
            page.set_default_timeout(120_000)

            def route(request):
                if request.request.url.startswith((address, "data:", "blob:")):
                    request.continue_()
                else:
                    elsewhere.append(request.request.url)
                    request.abort()

            page.route("**/*", route)
            page.goto(address)
            page.wait_for_selector("#image input[type=file]", state="attached")
            return page

        open_page.elsewhere = elsewhere
        yield open_page
        browser.close()


def shown(page, selector: str) -> np.ndarray:
    """The picture of an element, as its file has it."""
    source = page.eval_on_selector(f"{selector} img", "image => image.src")
    data = page.request.get(source).body()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def wait_for_text(page, pattern: str) -> str:
    """What the box of results says once it matches."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        text = page.input_value("#found textarea, #found input")
        if re.search(pattern, text):
            return text
        page.wait_for_timeout(100)
    raise AssertionError(f"{text!r} does not match {pattern!r}")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_in_a_browser(task, demo_models, page_at, tmp_path):
    config, checkpoint = demo_models[task]
    image = noise(96, 144)
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    (tmp_path / "broken.jpg").write_text("not a picture")
    (tmp_path / "large.png").write_bytes(os.urandom(2_000_000))
    port = free_port()
    arguments = (config, checkpoint, "--port", port, "--max-upload", "1mb", "--score", 0.02)
    with served(tmp_path, *arguments, *options(task)) as address:
        assert address.rstrip("/") == f"http://127.0.0.1:{port}"
        page = page_at(address.rstrip("/"))
        upload = page.locator("#image input[type=file]")
        upload.set_input_files(tmp_path / "photo.png")
        if task == "detection":
            text = wait_for_text(page, r"^\d+ objects? of score 0.02 or more, of \d+ found$")
            found, total = (int(text.split()[i]) for i in (0, -2))
            assert 0 < found <= total
        else:
            wait_for_text(page, r"^[2-8] classes$")
        page.wait_for_selector("#prediction img")
        page.wait_for_function("document.querySelectorAll('#stages img').length >= 4")
        first = shown(page, "#prediction")
        enlarged = cv2.resize(image, (144 * 5, 96 * 5), interpolation=cv2.INTER_CUBIC)
        assert first.shape[0] == 480
        assert 3 < np.abs(first[:, : 144 * 5].astype(int) - enlarged).mean() < 100  # drawn upon
        assert "stage 4: 320 channels" in page.inner_text("#stages")
        page.screenshot(path=os.environ.get("DEMO_SCREENSHOT", str(tmp_path / "shot.png")))

        slider = page.locator("#score input[type=range]")
        if task == "detection":  # nothing is so sure
            slider.focus()
            slider.press("End")
            wait_for_text(page, r"^0 objects of score 1.00 or more")
            page.wait_for_timeout(500)
            assert np.abs(shown(page, "#prediction").astype(int) - enlarged).mean() < 1
        else:
            assert not slider.is_visible()

        page.reload()
        for name, words in (
            ("broken.jpg", "broken.jpg: empty, cut off or not an image"),
            ("large.png", "(?i)maximum|size|too large"),
        ):
            page.locator("#image input[type=file]").set_input_files(tmp_path / name)
            page.wait_for_selector(f"text=/{words.removeprefix('(?i)')}/i")
            page.reload()
    assert page_at.elsewhere == []
    uploads = [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 1_000_000 for path in uploads)


def test_a_port_that_is_taken(demo_models, tmp_path):
    config, checkpoint = demo_models["segmentation"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = run_here("demo.py", config, checkpoint, "--port", port)
    assert_error(outcome, "unsupported", f"127.0.0.1:{port}")
