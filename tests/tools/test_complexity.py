"""Multiply-adds of every backbone, of other people's models, and the tool that prints them."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from support.forked import run_forked
from support.running import REPOSITORY, assert_error, run_here

from backbones import ARCHITECTURES, ConvNeXt, ConvNeXtClassifier, InputError
from backbones.openmmlab.doctor.complexity import build_on_meta, count, multiply_adds

CASCADE = REPOSITORY / "configs" / "detection" / "cascade_convnext_t.py"
MASK_RCNN = REPOSITORY / "configs" / "detection" / "mask_rcnn_convnext_t.py"
UPERNET = REPOSITORY / "configs" / "segmentation" / "upernet_convnext_t.py"

# (height, width) -> GMACs in the order of ARCHITECTURES: of the classifier at ImageNet's sizes, of
# the backbone at those of detection and segmentation.
CLASSIFIER_GMACS = {
    (224, 224): (0.55, 0.78, 1.37, 2.45, 4.46, 8.68, 15.35, 34.36, 60.92, 114.92),
    (384, 384): (1.61, 2.29, 4.02, 7.19, 13.09, 25.52, 45.12, 100.98, 179.03, 337.72),
}
BACKBONE_GMACS = {
    (800, 1280): (11.16, 15.90, 27.89, 49.90, 90.91, 177.20, 313.34, 701.22, 1243.24, 2345.29),
    (512, 2048): (11.43, 16.28, 28.56, 51.09, 93.10, 181.46, 320.86, 718.05, 1273.08, 2401.58),
    (640, 2560): (17.86, 25.44, 44.62, 79.83, 145.46, 283.52, 501.35, 1121.96, 1989.19, 3752.47),
}


@pytest.mark.parametrize(
    ("network", "size", "gmacs"),
    [(ConvNeXtClassifier, *item) for item in CLASSIFIER_GMACS.items()]
    + [(ConvNeXt, *item) for item in BACKBONE_GMACS.items()],
    ids=["224x224", "384x384", "800x1280", "512x2048", "640x2560"],
)
def test_every_architecture(network, size, gmacs):
    for arch, expected in zip(ARCHITECTURES, gmacs, strict=True):
        with torch.device("meta"):
            _, macs = multiply_adds(network(arch).eval(), torch.empty(1, 3, *size))
        assert round(macs / 1e9, 2) == expected, arch


def test_v2_costs_what_v1_does():
    for arch in ("atto", "huge"):
        with torch.device("meta"):
            image = torch.empty(1, 3, 224, 224)
            first, second = (
                multiply_adds(ConvNeXt(arch, use_grn=v2).eval(), image) for v2 in (False, True)
            )
        assert first[1] == second[1] > 0


def test_a_multiply_add_is_one():
    """By hand: a 3x3 convolution, a linear and a matrix product of known sizes."""
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert multiply_adds(convolution, torch.rand(2, 3, 7, 11))[1] == 2 * 5 * 7 * 11 * 3 * 9
    linear = torch.nn.Linear(13, 17)
    output, macs = multiply_adds(linear, torch.ones(2, 4, 13))
    assert macs == 2 * 4 * 13 * 17
    torch.testing.assert_close(output, linear(torch.ones(2, 4, 13)))
    assert multiply_adds(torch.matmul, torch.rand(2, 4, 6), torch.rand(2, 6, 5))[1] == 2 * 4 * 6 * 5


def with_backbone(path: Path, widths: list[int], **backbone) -> Config:
    config = Config.fromfile(path)
    config.model.backbone = backbone
    if "neck" in config.model:
        config.model.neck.in_channels = widths
    else:
        config.model.decode_head.in_channels = widths
        config.model.auxiliary_head.in_channels = widths[2]
    return config


# ConvNeXt paper, Tables 3 and 4: GFLOPs of Swin in the same detectors and segmentors.
@pytest.mark.parametrize(
    ("path", "depths", "published_params", "published_gflops"),
    [
        (MASK_RCNN, (2, 2, 6, 2), 48, 267),
        (CASCADE, (2, 2, 6, 2), 86, 745),
        (CASCADE, (2, 2, 18, 2), 107, 838),
        (UPERNET, (2, 2, 6, 2), 60, 945),
        (UPERNET, (2, 2, 18, 2), 81, 1038),
    ],
    ids=["mask_rcnn_t", "cascade_t", "cascade_s", "upernet_t", "upernet_s"],
)
def test_swin_as_published(path, depths, published_params, published_gflops):
    config = with_backbone(
        path,
        [96, 192, 384, 768],
        type="SwinTransformer",
        embed_dims=96,
        depths=depths,
        num_heads=(3, 6, 12, 24),
        drop_path_rate=0.2,
    )
    result = count(config)
    assert round(result.params["total"] / 1e6) == published_params
    # 0.15 %, or half of the last printed digit where that is more.
    assert result.macs["total"] / 1e9 == pytest.approx(published_gflops, rel=0.0015, abs=0.5)


@pytest.mark.parametrize("path", [CASCADE, UPERNET], ids=["cascade", "upernet"])
def test_resnet_50(path):
    """ResNet-50 without its classifier, from torchvision's counts of the whole."""
    result = count(with_backbone(path, [256, 512, 1024, 2048], type="ResNet", depth=50))
    assert result.params["backbone"] == 25_557_032 - (2048 * 1000 + 1000)
    width, height = result.size
    at_224 = 4_089_184_256 - 2048 * 1000
    assert result.macs["backbone"] * 224 * 224 == at_224 * width * height


def test_parts_sum_to_the_total_and_leave_nothing_out():
    for path, names in (
        (CASCADE, ["backbone", "neck", "rpn_head", "bbox_head", "mask_head"]),
        (UPERNET, ["backbone", "decode_head", "auxiliary_head"]),
    ):
        config = Config.fromfile(path)
        result = count(config)
        assert list(result.params) == ["total", *names]
        assert list(result.macs) == ["total", *(n for n in names if n != "auxiliary_head")]
        for counts in (result.params, result.macs):
            assert counts["total"] == sum(n for part, n in counts.items() if part != "total")
        model = build_on_meta(config)
        assert result.params["total"] == sum(p.numel() for p in model.parameters())
        assert {p.device.type for p in model.parameters()} == {"meta"}


def test_counting_leaves_the_config_as_it_was():
    config = Config.fromfile(CASCADE)
    before = config.pretty_text
    count(config)
    assert config.pretty_text == before


def test_regions_do_not_depend_on_the_image():
    small = count(Config.fromfile(CASCADE), size=(640, 800))
    large = count(Config.fromfile(CASCADE))
    assert small.macs["backbone"] * 2 == large.macs["backbone"]
    for part in ("bbox_head", "mask_head"):
        assert small.macs[part] == large.macs[part]


def assert_not_counted(config: Config, *names: str, size: tuple[int, int] | None = None) -> None:
    with pytest.raises(InputError) as caught:
        count(config, size)
    for name in names:
        assert name in str(caught.value)


def test_what_cannot_be_counted_is_named():
    config = Config.fromfile(UPERNET)
    config.test_dataloader.dataset.pipeline = [dict(type="LoadImageFromFile")]
    assert_not_counted(config, "upernet_convnext_t.py", "test_dataloader.dataset.pipeline")
    assert_not_counted(config, "20x20", size=(20, 20))


def stock(path: str) -> Config:
    """One of mmdet's own configs, with a scope and without weights to download."""
    import mmdet

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / path)
    config.model.backbone.init_cfg = None
    return config


# GFLOPs of mmdet's documentation (docs/en/user_guides/useful_tools.md) and of DETR's paper
# (arXiv:2005.12872, table 1), a mean over 100 images, of which 1066x800 is the commonest size.
@pytest.mark.parametrize(
    ("path", "published_params", "published_gflops", "rel"),
    [
        ("retinanet/retinanet_r50_fpn_1x_coco.py", 37.74, 239.32, 0.01),
        ("detr/detr_r50_8xb2-150e_coco.py", 41, 86, 0.06),
    ],
    ids=["retinanet", "detr"],
)
def test_detectors_without_regions(path, published_params, published_gflops, rel):
    result = count(stock(path), None if "retinanet" in path else (1066, 800))
    assert result.params["total"] / 1e6 == pytest.approx(published_params, rel=0.015)
    assert result.macs["total"] / 1e9 == pytest.approx(published_gflops, rel=rel)
    assert result.macs["bbox_head"] > 0 and result.executed == result.macs


def executed(model: torch.nn.Module, function, *inputs) -> int:
    """Multiply-adds of the convolutions and linears that ran, from the sizes of their outputs."""
    macs = 0

    def add(module, inputs, output):
        nonlocal macs
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        seen = inputs[0] if transposed else output
        places = seen.numel() // seen.shape[-1 if isinstance(module, torch.nn.Linear) else 1]
        macs += places * module.weight.numel()

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        function(*inputs)
    for hook in hooks:
        hook.remove()
    return macs


# No metafile of mmdet's wheel states what these compute: the heads are counted by hand instead, for
# the 100 instances or regions that they keep.
def test_heads_that_follow_detections():
    size = (128, 128)
    config = stock("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py")
    counted = count(config, size).macs
    model = build_on_meta(config)
    with torch.device("meta"):
        maps = tuple(torch.empty(1, 256, 16 >> i, 16 >> i) for i in range(5))
        boxes = executed(model, model.bbox_head, maps)
        prototypes = executed(model, model.mask_head.mask_feature_head, maps)
    # Three dynamic layers: 8 channels and two coordinates to 8, to 8, to 1, at stride 8.
    assert counted["bbox_head"] == boxes
    assert counted["mask_head"] == prototypes + 100 * 16 * 16 * (10 * 8 + 8 * 8 + 8)

    config = stock("yolact/yolact_r50_1xb8-55e_coco.py")
    counted = count(config, size).macs
    model = build_on_meta(config)
    with torch.device("meta"):
        boxes = executed(model, model.bbox_head, maps)
        prototypes = executed(model, model.mask_head.protonet, maps[0])
    assert counted["bbox_head"] == boxes
    assert counted["mask_head"] == prototypes + 100 * 32 * 32 * 32  # 32 prototypes at stride 4

    config = stock("grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py")
    counted = count(config, size).macs
    model = build_on_meta(config)
    with torch.device("meta"):
        grids = executed(model, model.roi_head.grid_head, torch.empty(100, 256, 14, 14))
    assert counted["grid_head"] == grids > 0


def test_what_an_image_decides_is_not_counted():
    with pytest.raises(InputError) as caught:
        count(stock("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py"), (256, 256))
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_no_metafile_states_a_figure_to_compare_with(library):
    """Where one begins to, a stock config's count belongs beside it, within 1 %."""
    folder = Path(find_spec(library).submodule_search_locations[0]) / ".mim" / "configs"
    texts = [path.read_text() for path in folder.rglob("metafile.y*ml")]
    assert len(texts) > 30 and not any(re.search(r"flops|macs", t, re.I) for t in texts)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", "transformer"),
        ("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", "panoptic_head"),
    ],
    ids=["deformable", "mask2former"],
)
def test_deformable_attention_is_counted_with_values(path, part):
    """It reads sizes from tensors: the same image counts the same, a larger one more."""
    small, large = (count(stock(path), (64 * n, 64)) for n in (1, 3))
    assert small.macs["backbone"] * 3 == large.macs["backbone"]
    assert 0 < small.macs[part] < large.macs[part] < 3 * small.macs[part]
    assert count(stock(path), (64, 64)).macs == small.macs


def test_tool_prints_json_and_nothing_else(tmp_path):
    done = run_forked("complexity.py", UPERNET, "--json", "--size", 512, 512, cwd=tmp_path)
    assert done.status == 0, done.err
    expected = count(Config.fromfile(UPERNET), size=(512, 512))
    assert json.loads(done.out) == {"params": expected.params, "macs": expected.macs}


def test_tool_prints_a_table():
    done = run_here("complexity.py", CASCADE)
    assert done.status == 0, done.err
    first, *rows = done.out.splitlines()
    assert first == f"{CASCADE}, one 1280x800 image"
    cells = {row.split()[0]: row.split()[1:] for row in rows[1:]}
    assert cells["backbone"] == ["27,821,472", "32.4%", "90.91", "G", "12.3%"]
    assert cells["total"] == ["85,930,578", "100.0%", "740.15", "G", "100.0%"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nowhere.py"], ["nowhere.py"]),
        ([CASCADE, "--size", "0", "800"], ["--size", "0 800"]),
        ([CASCADE, "--cfg-options", "model.backbone.archh=tiny"], ["model.backbone.archh"]),
        ([CASCADE, "--cfg-options", "model.neck.in_channels=[1,2,3,4]"], ["1280x800"]),
    ],
    ids=["missing config", "size", "unknown key", "impossible widths"],
)
def test_tool_reports_mistakes_in_one_line(arguments, names):
    done = run_here("complexity.py", *arguments)
    assert done.out == "" and done.code is not None
    assert_error(done, done.code, *names)
    assert sum(line.startswith("error: ") for line in done.err.splitlines()) == 1
