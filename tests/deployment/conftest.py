"""A trained segmentor and its exported files, made once."""

from pathlib import Path

import pytest
from support.exported_models import exported


@pytest.fixture(scope="session")
def segmentor_files(trained_segmentor, shapes, tmp_path_factory) -> dict[str, Path]:
    """The trained segmentor's files by the name of their target, logits and labels."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for target, logits in (("onnx", True), ("openvino", True), ("torch", False)):
        made[target] = exported(*trained_segmentor, shapes, folder, target, logits=logits)
    return made
