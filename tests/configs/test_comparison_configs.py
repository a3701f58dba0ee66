"""The paper's comparison rows, Tables 3 and 4: ResNet, ResNeXt and Swin in the same models."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from support.config_comparison import (
    ALLOWED,
    PROTOCOLS,
    accepted_misspellings,
    differences,
    plain,
)
from support.running import REPOSITORY
from torch.utils.flop_counter import FlopCounterMode

from backbones.openmmlab.config import load_config
from backbones.openmmlab.doctor.complexity import Complexity, build_on_meta, count

FOLDER = REPOSITORY / "configs"


class Row(NamedTuple):
    """Exact counts, what the table prints, and the claim of the config's first line."""

    params: int
    gmacs: float
    gflops: int | None
    claim: str
    millions: int | None = None


ROWS = {
    "detection/mask_rcnn_swin_t": Row(
        47_794_602, 266.6, 267, "Published: 46.0 box AP, 41.6 mask AP.", 48
    ),
    "detection/cascade_resnet50": Row(
        82_231_538, 737.6, 739, "Published: 46.3 box AP, 40.1 mask AP."
    ),
    "detection/cascade_resnet101": Row(101_223_666, 813.3, None, "Not published."),
    "detection/cascade_resnext101_32x4d": Row(
        100_852_210, 816.8, 819, "Published: 48.1 box AP, 41.6 mask AP."
    ),
    "detection/cascade_resnext101_64x4d": Row(
        140_129_778, 969.6, 972, "Published: 48.3 box AP, 41.7 mask AP."
    ),
    "detection/cascade_swin_t": Row(
        85_629_804, 744.8, 745, "Published: 50.4 box AP, 43.7 mask AP.", 86
    ),
    "detection/cascade_swin_s": Row(
        106_947_708, 836.8, 838, "Published: 51.9 box AP, 45.0 mask AP.", 107
    ),
    "detection/cascade_swin_b": Row(
        144_977_002, 981.3, 982, "Published: 51.9 box AP, 45.0 mask AP.", 145
    ),
    "detection/cascade_swin_b_22k": Row(
        144_977_002, 981.3, 982, "Published: 53.0 box AP, 45.8 mask AP.", 145
    ),
    "detection/cascade_swin_l_22k": Row(
        253_475_910, 1391.6, 1382, "Published: 53.9 box AP, 46.7 mask AP."
    ),
    "segmentation/upernet_swin_t": Row(
        59_941_862, 944.4, 945, "Published: 45.8 mIoU multi-scale.", 60
    ),
    "segmentation/upernet_swin_s": Row(
        81_259_766, 1037.4, 1038, "Published: 49.5 mIoU multi-scale.", 81
    ),
    "segmentation/upernet_swin_b": Row(
        121_279_716, 1187.4, 1188, "Published: 49.7 mIoU multi-scale.", 121
    ),
    "segmentation/upernet_swin_b_22k": Row(
        121_279_716, 1839.2, 1841, "Published: 51.7 mIoU multi-scale.", 121
    ),
    "segmentation/upernet_swin_l_22k": Row(
        233_759_936, 2482.3, 2468, "Published: 53.5 mIoU multi-scale.", 234
    ),
}
SWIN_L = [name for name in ROWS if "swin_l" in name]


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.py"


@cache
def read(name: str) -> Config:
    """The config, read once; not to be changed."""
    return load_config(path_of(name))


@cache
def counted(name: str) -> Complexity:
    return count(read(name))


def test_every_row_is_here():
    found = {
        str(p.relative_to(FOLDER).with_suffix(""))
        for word in ("swin", "resnet", "resnext")
        for p in FOLDER.glob(f"*/*_{word}*.py")
        if "roadmap" not in p.name and p.parent.parent == FOLDER and p.parent.name != "_base_"
    }
    assert found == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiply_adds(name):
    row = ROWS[name]
    found = counted(name)
    assert found.params["total"] == row.params
    assert round(found.macs["total"] / 1e9, 1) == row.gmacs
    if row.millions:
        assert round(row.params / 1e6) == row.millions
    if row.gflops and name not in SWIN_L:
        # The ResNets' figures count batch norms and activations too: 1.4 to 2.4 G of them.
        tolerance = 0.003 if "resne" in name else 0.0015
        assert found.macs["total"] / 1e9 == pytest.approx(row.gflops, rel=tolerance, abs=0.5)


@pytest.mark.parametrize("name", SWIN_L)
def test_swin_ls_printed_figure_leaves_the_attention_products_out(name):
    """Without queries times keys and weights times values it is met; Swin-B's counts them."""
    model = build_on_meta(read(name))
    width, height = counted(name).size
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.backbone(torch.empty(1, 3, height, width, device="meta"))
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm] / 2
    assert attention > 5e9
    macs = counted(name).macs["total"]
    assert (macs - attention) / 1e9 == pytest.approx(ROWS[name].gflops, rel=0.0015)
    assert macs / 1e9 > ROWS[name].gflops * 1.005


@pytest.mark.parametrize("name", ROWS)
def test_is_short_and_opens_with_its_claim(name):
    lines = path_of(name).read_text().splitlines()
    assert len(lines) <= 25
    assert lines[0].endswith(f'. {ROWS[name].claim}"""')
    network = re.search(r"(swin_.|resnet\d+|resnext101_\d+x4d)", name)[1]
    words = network.replace("resnet", "resnet-").replace("resnext101_", "resnext-101 ")
    assert words.replace("swin_", "swin-") in lines[0].lower()
    assert ("(22K)" in lines[0]) == ("22k" in name)


@pytest.mark.parametrize("name", ROWS)
def test_all_but_backbone_and_optimizer_is_convnexts(name):
    method, _, network = name.partition("/")[2].partition("_")
    method, network = ("mask_rcnn", network[5:]) if method == "mask" else (method, network)
    size = network[5] if "swin" in network else "t"
    theirs = f"{name.partition('/')[0]}/{method}_convnext_{size}"
    theirs += "_22k" if "22k" in name else ""
    paths = {
        path
        for path in differences(plain(read(name).to_dict()), plain(read(theirs).to_dict()))
        if not path.startswith(("model.backbone.", "optim_wrapper."))
    }
    wider = {f"model.neck.in_channels.{i}" for i in range(4)}  # the ResNets' maps
    assert paths == (wider if "resne" in name else set())


def test_optimizer_is_swins():
    for name, lr, decay in [
        ("detection/cascade_swin_t", 1e-4, 0.05),
        ("segmentation/upernet_swin_t", 6e-5, 0.01),
    ]:
        wrapper = read(name).optim_wrapper
        assert wrapper.optimizer == dict(
            type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=decay
        )
        keys = ("absolute_pos_embed", "relative_position_bias_table", "norm")
        assert wrapper.paramwise_cfg == dict(custom_keys={k: dict(decay_mult=0.0) for k in keys})
        assert (wrapper.type, wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")


COUNTERPARTS = {
    "detection/mask_rcnn_swin_t": (
        "mmdet/.mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
    ),
} | {
    f"segmentation/upernet_swin_{ours}": (
        f"mmseg/.mim/configs/swin/swin-{theirs}-patch4-window7-in1k-pre_upernet_8xb2-160k_"
        "ade20k-512x512.py"
    )
    for ours, theirs in [("t", "tiny"), ("s", "small"), ("b", "base")]
}
# Beside what ConvNeXt's configs may have otherwise: values that are the class's defaults, and this.
DEFAULTS = {
    *("embed_dims", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias", "qk_scale"),
    *("drop_rate", "attn_drop_rate", "patch_norm", "out_indices", "with_cp", "pretrain_img_size"),
    *("patch_size", "strides", "use_abs_pos_embed", "act_cfg", "norm_cfg"),
}
OTHERWISE = {
    "pretrained": "a helper variable of theirs",
    "backbone_norm_cfg": "a helper variable of theirs",
    "optim_wrapper.type": "mixed precision",
    "custom_imports": "ours; theirs needs none",
    "backend_args": "a helper variable of theirs",
    "model.test_cfg.mode": "slides, as in the papers' protocol",
    "model.test_cfg.crop_size": "slides, as in the papers' protocol",
    "model.test_cfg.stride": "slides, as in the papers' protocol",
}


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_equals_openmmlabs_own_config(name):
    library, _, path = COUNTERPARTS[name].partition("/")
    folder = Path(find_spec(library).submodule_search_locations[0])
    theirs = Config.fromfile(folder / path, import_custom_modules=False)
    ours = Config.fromfile(path_of(name), import_custom_modules=False)
    allowed = {*ALLOWED, *OTHERWISE, *(f"model.backbone.{key}" for key in DEFAULTS)}
    allowed -= {"model.backbone.type", "model.backbone.init_cfg.checkpoint"}
    assert set(differences(plain(ours.to_dict()), plain(theirs.to_dict()))) <= allowed


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_backbone_is_openmmlabs_own(name):
    """The values left to the class are those that their configs spell out."""
    library, _, path = COUNTERPARTS[name].partition("/")
    folder = Path(find_spec(library).submodule_search_locations[0])
    theirs = load_config(path_of(name))
    backbone = Config.fromfile(folder / path, import_custom_modules=False).model.backbone
    theirs.model.backbone = backbone
    built = [build_on_meta(config).backbone for config in (read(name), theirs)]
    assert repr(built[0]) == repr(built[1])
    rates = [
        [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
        for backbone in built
    ]
    assert rates[0] == rates[1] and max(rates[0]) == backbone_rate(name)


def backbone_rate(name: str) -> float:
    return pytest.approx(0.2 if "mask_rcnn" in name else 0.3)


def test_addresses_are_those_that_the_libraries_name():
    hub = Path(find_spec("mmengine").submodule_search_locations[0]) / "hub"
    known = set()
    for path in ("openmmlab.json", "torchvision_0.12.json"):
        known |= set(json.loads((hub / path).read_text()).values())
    for library in ("mmdet", "mmseg"):
        folder = Path(find_spec(library).submodule_search_locations[0]) / ".mim/configs/swin"
        for path in folder.glob("*.py"):
            known |= set(re.findall(r"'(https://\S+\.pth)'", path.read_text()))
    # mmdet has no config of Swin-B and L; the release names them like T and S.
    release = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    known |= {
        f"{release}swin_{size}_patch4_window7_224{data}.pth"
        for size, data in [("base", ""), ("base", "_22k"), ("large", "_22k")]
    }
    for name in ROWS:
        assert read(name).model.backbone.init_cfg.checkpoint in known, name


@pytest.mark.parametrize("name", ["detection/cascade_swin_s", "detection/cascade_resnext101_64x4d"])
def test_each_key_is_refused_when_misspelled(name):
    assert not accepted_misspellings(load_config(path_of(name)), PROTOCOLS)
