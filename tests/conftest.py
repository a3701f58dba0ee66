"""What several test files share: real images, random weights, and the oracle libraries."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.file_server import FileServer, serving
from support.oracles import randomise
from support.running import REPOSITORY, run_here

REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Parity is compared without TF32, also after a run whose config asked for it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def real_data() -> Path:
    """Folder with coco_mini and ade_mini, photographs that are not part of the project."""
    if not REAL_DATA.is_dir():
        pytest.skip("the photographs of ../shared/data are not here")
    return REAL_DATA


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small demo set, made once."""
    root = tmp_path_factory.mktemp("data")
    arguments = ("--root", root, "--train", 8, "--val", 4, "--size", 96)
    assert run_here("prepare_data.py", "demo", *arguments).status == 0
    return root / "demo"


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Config and checkpoint, by task, of demo models that are not trained but find many things."""
    from mmengine.registry import MODELS, DefaultScope
    from support.running import DETECTION, SEGMENTATION

    from backbones.openmmlab.config import load_config

    folder = tmp_path_factory.mktemp("models")
    found = {}
    for path in (DETECTION, SEGMENTATION):
        torch.manual_seed(3)
        config = load_config(path)
        scope = config.default_scope
        DefaultScope.get_instance(f"demo-models-{scope}", scope_name=scope)
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(config.model)
        for name in ("rpn_head", "decode_head"):
            if hasattr(model, name):
                randomise(getattr(model, name))
        checkpoint = folder / f"{path.parent.name}.pth"
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        found[path.parent.name] = (path, checkpoint)
    return found


@pytest.fixture(scope="session")
def trained_segmentor(tmp_path_factory, shapes) -> tuple[Path, Path]:
    """Config and checkpoint of a narrow segmentor that knows its test images."""
    from support.exported_models import narrow_config, overfitted
    from support.running import SEGMENTATION

    path = narrow_config(SEGMENTATION, tmp_path_factory.mktemp("segmentor"))
    return overfitted(path, shapes, steps=80)


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[FileServer]:
    """A mirror of the publishers' servers, and an empty cache in `tmp_path / "torch"`."""
    from backbones.weights.sources import MIRROR, OFFLINE

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(OFFLINE, "")  # what --offline sets is taken back
    monkeypatch.setattr("backbones.weights.sources.PATIENCE", 0.001)  # seconds between the tries
    with serving() as server:
        monkeypatch.setenv(MIRROR, server.address)
        yield server


@pytest.fixture(scope="session")
def predicted(tmp_path_factory) -> Path:
    """Data on which the small published segmentor has an mIoU of 100."""
    from support.published import write_predicted

    return write_predicted(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(scope="session")
def detected(tmp_path_factory) -> Path:
    """Data on which the small published detector has a box and a mask AP of 100."""
    from support.published import write_detected

    return write_detected(tmp_path_factory.mktemp("detected"))
