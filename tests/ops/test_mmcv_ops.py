"""The module that stands in for mmcv._ext."""

import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from backbones.openmmlab import mmcv_ops
from backbones.openmmlab.doctor import operators as doctors
from backbones.openmmlab.doctor.operators import check_operators
from backbones.openmmlab.doctor.plan import RunPlan

if not mmcv_ops.install():
    pytest.skip("this mmcv has compiled ops of its own", allow_module_level=True)

import mmcv.ops

REPOSITORY = Path(__file__).parents[2]


def test_an_op_that_is_not_there_raises_with_its_name():
    rois = torch.tensor([[0, 8, 8, 8, 8, 0.0]])
    with pytest.raises(RuntimeError) as error:
        mmcv.ops.roi_align_rotated(torch.zeros(1, 2, 16, 16), rois, (2, 2), 1.0)
    message = str(error.value)
    assert message.startswith("mmcv op 'roi_align_rotated_forward' is not available: ")
    assert "\n" not in message
    assert message.endswith(
        f"--no-build-isolation --no-binary onedl-mmcv onedl-mmcv=={mmcv.__version__}"
    )
    assert not mmcv_ops.is_available("roi_align_rotated_forward")


def test_every_operator_is_one_that_mmcv_calls():
    extension = sys.modules["mmcv._ext"]
    wrappers = "\n".join(path.read_text() for path in Path(mmcv.ops.__file__).parent.glob("*.py"))
    assert len(mmcv_ops.OPERATORS) >= 4
    for name, operator in mmcv_ops.OPERATORS.items():
        assert mmcv_ops.is_available(name) and getattr(extension, name) is operator
        assert f"ext_module.{name}(" in wrappers, name


def test_the_docs_list_every_operator():
    page = (REPOSITORY / "docs" / "operators.md").read_text()
    rows = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    ways = ("_forward", "_backward", "_input", "_parameters")
    roots = set()
    for name in mmcv_ops.OPERATORS:
        for way in reversed(ways):
            name = name.removesuffix(way)
        roots.add(name)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == roots


def issues_of(model: dict):
    return list(check_operators(RunPlan.of(Config(dict(default_scope="mmdet", model=model)))))


def test_the_doctor_names_an_operator_that_is_not_there():
    head = dict(type="StandardRoIHead", bbox_roi_extractor=dict(roi_layer=dict(type="RoIPool")))
    (issue,) = issues_of(dict(type="FasterRCNN", roi_head=head))
    assert (issue.severity, issue.code) == ("error", "unsupported")
    assert issue.where == "model.roi_head.bbox_roi_extractor.roi_layer"
    assert "roi_pool_forward" in issue.text
    layers = [dict(type=name) for name in ("DCN", "DCNv2", "FocalLoss", "carafe", "PSAMask")]
    assert not issues_of(dict(type="FasterRCNN", neck=layers))


def test_what_the_doctor_looks_for_is_what_mmcv_calls():
    wrappers = "\n".join(path.read_text() for path in Path(mmcv.ops.__file__).parent.glob("*.py"))
    for operators in (*doctors.OPERATORS.values(), *doctors.ON_A_GPU.values()):
        for operator in operators:
            assert f"ext_module.{operator}(" in wrappers, operator
    assert not mmcv_ops.is_available("line_nms_forward")


def test_the_stand_in_is_a_module_like_others():
    extension = sys.modules["mmcv._ext"]
    assert extension.__name__ == "mmcv._ext"
    assert importlib.util.find_spec("mmcv._ext") is extension.__spec__
    assert pkgutil.get_loader("mmcv._ext") is extension.__spec__.loader is not None
    assert repr(extension) == "<module 'mmcv._ext' (backbones.openmmlab.mmcv_ops)>"
    assert callable(extension.some_op) and extension.some_op.__name__ == "some_op"
    for name in ("__file__", "__path__", "__wrapped__", "_repr_html_"):
        assert not hasattr(extension, name)


def test_install_again_changes_nothing():
    extension = sys.modules["mmcv._ext"]
    assert mmcv_ops.install() is True
    assert sys.modules["mmcv._ext"] is extension


def test_environment_reports():
    import mmdet.utils
    import mmseg.utils
    from mmcv.utils.env import collect_env
    from mmengine.utils.dl_utils import collect_env as mmengine_collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    report = collect_env()
    assert report["MMCV Compiler"] == "n/a (torchvision stand-in)"
    assert report["MMCV CUDA Compiler"] == "n/a (torchvision stand-in)"
    assert mmengine_collect_env()["PyTorch"] == torch.__version__
    assert mmdet.utils.collect_env()["MMDetection"].startswith("3.")
    assert mmseg.utils.collect_env()["MMSegmentation"].startswith("1.")
    assert mmcv_full_available()


def run_python(code: str, *path: Path) -> str:
    """What a fresh interpreter prints, with these folders before all others on its path."""
    folders = os.pathsep.join(map(str, path))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=dict(os.environ, PYTHONPATH=folders),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# By its path: the package around it may import mmcv.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("mmcv_ops", {mmcv_ops.__file__!r})
mmcv_ops = sys.modules["mmcv_ops"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mmcv_ops)
"""


@pytest.mark.parametrize("compiled", [True, False])
def test_install_steps_aside_for_a_compiled_extension(compiled, tmp_path):
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('install imported mmcv')\n")
    if compiled:
        (package / f"_ext{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    printed = run_python(
        LOAD + "print(mmcv_ops.install(), mmcv_ops.install(), 'mmcv._ext' in sys.modules,"
        " 'torchvision' in sys.modules)",
        tmp_path,
    )
    assert printed.split() == ["False", "False", "False", "False"] if compiled else [
        "True", "True", "True", "False"
    ]  # fmt: skip


def test_install_leaves_a_loaded_extension_and_a_missing_mmcv_alone():
    printed = run_python(
        LOAD
        + """
sys.modules["mmcv"] = None
print(mmcv_ops.install(), "mmcv._ext" in sys.modules)
loaded = sys.modules["mmcv._ext"] = type(sys)("mmcv._ext")
print(mmcv_ops.install(), sys.modules["mmcv._ext"] is loaded)
"""
    )
    assert printed.split() == ["False", "False", "False", "True"]


@pytest.mark.slow
def test_the_model_zoos_import_in_a_fresh_interpreter():
    printed = run_python(
        """
        import sys

        from backbones.openmmlab import mmcv_ops

        sys.modules["mmpretrain"] = None  # its own import fails beside transformers 5
        assert mmcv_ops.install()
        import mmdet.models
        import mmengine.runner
        import mmseg.models
        from mmdet.registry import MODELS as detectors
        from mmseg.registry import MODELS as segmentors

        print(detectors.get("CascadeRCNN").__name__, segmentors.get("UPerHead").__name__)
        """,
        REPOSITORY,
    )
    assert printed.split() == ["CascadeRCNN", "UPerHead"]
