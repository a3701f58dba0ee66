"""The built wheel, installed into an environment of its own and used from another folder."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.running import REPOSITORY

pytestmark = pytest.mark.slow
FEW = (
    "train_cfg.max_iters=2",
    "train_cfg.val_interval=2",
    "train_dataloader.batch_size=2",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """Install the wheel into an environment of its own, which takes dependencies from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (REPOSITORY / name).is_file(), listed.stdout.splitlines()):
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPOSITORY / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    # A .pth file in a folder that a .pth file names is not read: no editable install gets in.
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin" / "convnext"


def test_the_suite_runs_from_its_wheel(command, tmp_path):
    def convnext(*arguments: object, accepted: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [command, *map(str, arguments)],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode in accepted, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    assert "prepare-data" in convnext("--help")
    convnext("prepare-data", "demo", "--train", 4, "--val", 2, "--size", 96)
    name, options = "upernet_convnext_atto_demo", ("--cfg-options", *FEW)
    common = (name, "--data", "data/demo")
    issues = json.loads(convnext("doctor", *common, "--json", accepted=(0, 1)))
    assert not [issue for issue in issues if issue["severity"] == "error"]
    convnext("train", *common, *options)
    checkpoint = tmp_path / "work_dirs" / name / "iter_2.pth"
    assert checkpoint.is_file()
    convnext("test", name, checkpoint, "--data", "data/demo")
    assert "mIoU" in json.loads((tmp_path / "work_dirs" / name / "metrics.json").read_text())
    convnext("predict", name, checkpoint, "data/demo/images/validation")
    assert len([*(tmp_path / "predictions" / "pictures").iterdir()]) == 2
    # Two steps leave near-ties between classes: how far the labels agree is not this test's.
    data = ("--data", "data/demo", "--to", "torch", "--images", 1, "--tolerance", 1)
    convnext("export", name, checkpoint, *data, "--part", "backbone")
    assert (tmp_path / f"{name}-backbone.pt2").is_file()
    assert "cascade_convnext_t " in convnext("configs", "cascade")
