"""Serve a web page that predicts the image dropped on it."""

import os
from pathlib import Path
from typing import Any

# Read when gradio is imported: no data leaves the page.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from backbones.errors import InputError, UnreadableImage  # noqa: E402
from backbones.openmmlab.data.decoding import read_header  # noqa: E402
from backbones.openmmlab.data.rasters import read_raster_header  # noqa: E402

from .drawing import drawn_size  # noqa: E402
from .instances import Instances  # noqa: E402
from .predictions import summary  # noqa: E402
from .predictor import Predictor  # noqa: E402
from .result import Drawing, Prediction, results  # noqa: E402
from .stage_maps import draw_heat, stage_maps  # noqa: E402

LARGEST_IMAGE = 50_000_000  # pixels; a small file may unpack to many
KEPT = 3600  # seconds that an upload and its prediction are kept
BUTTONS: list[Any] = ["download", "fullscreen"]  # gradio's default adds sharing at a public host
HEAT_SIDE = 480  # longer side of a drawn feature map in pixels


def demo_page(predictor: Predictor, title: str, score: float) -> gr.Blocks:
    """Build the page: predictions and each stage's activation for an uploaded image.

    Args:
        predictor: the model.
        title: title of the page.
        score: initial minimum score of a drawn instance.
    """
    drawing = Drawing(predictor.classes, predictor.palette)

    def predict(upload: str | None, least: float):
        if upload is None:
            return None, None, "", []
        path = Path(upload)
        try:
            decoded = _read(path, predictor)
            (sample,) = predictor.batch([decoded])
        except InputError as error:
            raise gr.Error(str(error).replace(str(path), path.name), duration=None) from None
        image, found = predictor.picture(decoded), results(sample, predictor.classes)
        height, width = drawn_size(*image.shape[:2])
        factor = HEAT_SIDE / max(height, width)
        heat = [
            (
                draw_heat(m.values, max(1, round(height * factor)), max(1, round(width * factor))),
                f"stage {m.stage}: {m.channels} channels, "
                f"{m.values.shape[0]} x {m.values.shape[1]}, mean {m.values.mean():.3g}",
            )
            for m in stage_maps(predictor, decoded)
        ]
        return (image, found), *redraw((image, found), least), heat

    def redraw(
        seen: tuple[np.ndarray, Prediction] | None, least: float
    ) -> tuple[Image.Image | None, str]:
        if seen is None:
            return None, ""
        image, found = seen
        text = summary(found, least)
        if isinstance(found, Instances):
            text = f"{text} with score {least:.2f} or more, of {len(found)} found"
        return drawing(image, found, least), text

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(label="Image", type="filepath", elem_id="image")
                slider = gr.Slider(
                    0,
                    1,
                    score,
                    step=0.01,
                    label="Minimum score",
                    visible=predictor.task == "detection",
                    elem_id="score",
                )
                text = gr.Textbox(label="Found", elem_id="found")
            picture = gr.Image(
                label="Prediction",
                format="png",
                interactive=False,
                buttons=BUTTONS,
                elem_id="prediction",
                scale=3,
            )
        heat = gr.Gallery(
            label="Mean absolute activation of each stage, dark to bright",
            format="png",
            columns=4,
            height="auto",
            object_fit="contain",
            interactive=False,
            buttons=BUTTONS,
            elem_id="stages",
        )
        seen = gr.State(time_to_live=KEPT)
        upload.change(
            predict, [upload, slider], [seen, picture, text, heat], api_visibility="private"
        )
        slider.change(  # keys and the number beside it move it too
            redraw,
            [seen, slider],
            [picture, text],
            trigger_mode="always_last",
            api_visibility="private",
        )
    return page


def serve(page: gr.Blocks, host: str, port: int | None, max_upload: str) -> str:
    """Start serving a page and return its address; the server ends with the process.

    Args:
        host: address to listen on.
        port: None takes the first free port from 7860.
        max_upload: maximum size of an upload, such as "20mb".

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_upload,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise InputError(
            f"{host}:{port or 7860}: cannot listen there ({error})",
            code="unsupported",
            where=f"{host}:{port or 7860}",
        ) from None
    return address


def _read(path: Path, predictor: Predictor) -> np.ndarray:
    header = read_header if predictor.bands is None else read_raster_header
    try:
        width, height = header(path).size
        pixels = width * height
    except Image.DecompressionBombError:
        pixels = float("inf")
    except (OSError, ValueError, SyntaxError):
        pixels = 0  # whose fault the predictor names
    if pixels > LARGEST_IMAGE:
        raise UnreadableImage(
            f"{path}: over {LARGEST_IMAGE // 10**6} million pixels; use tools/predict.py --tile",
            where=path,
        )
    return predictor.read(path)
