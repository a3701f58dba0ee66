"""Recipes of heads that the ConvNeXt papers did not train: claim, size, schedule, weights."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from support.running import REPOSITORY

from backbones import ARCHITECTURES, InputError
from backbones.openmmlab.config import load_config, notes
from backbones.openmmlab.doctor.complexity import build_on_meta
from backbones.openmmlab.tasks import task_of_model
from backbones.openmmlab.training.layer_decay import num_layers
from backbones.weights import find

FOLDER = REPOSITORY / "configs"


class Recipe(NamedTuple):
    """What a recipe is, and the config whose schedule it takes."""

    words: tuple[str, ...]
    arch: str
    checkpoint: str
    schedule: str
    published: float | None = None
    by: str = ""
    optimizer: bool = True  # whether the optimizer is that config's too


T = ("tiny", "convnext_tiny_1k_224")
DINO = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco"
DETREX = dict(by=" by detrex")
RECIPES = {
    "detection/faster_rcnn_convnext_t": Recipe(
        ("Faster R-CNN", "ConvNeXt-T", "COCO", "36 epochs"), *T, "detection/mask_rcnn_convnext_t"
    ),
    "detection/retinanet_convnext_t": Recipe(
        ("RetinaNet", "ConvNeXt-T", "COCO", "12 epochs"),
        *T,
        "mmdet::pvt/retinanet_pvt-t_fpn_1x_coco",
    ),
    "detection/rtmdet_convnext_b": Recipe(
        ("RTMDet-L", "ConvNeXt-B (22K, 384)", "COCO", "100 epochs"),
        "base",
        "convnext_base_22k_1k_384",
        "mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco",
        53.1,
    ),
    "detection/rtmdet_ins_convnext_t": Recipe(
        ("RTMDet-Ins-L", "ConvNeXt-T", "COCO", "300 epochs"),
        *T,
        "mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco",
        optimizer=False,
    ),
    # detrex, projects/dino: 12 epochs with the checkpoints fine-tuned at 384.
    **{
        f"detection/dino_convnext_{size[0]}_22k": Recipe(
            ("DINO-DETR, 4 scales", f"ConvNeXt-{size[0].upper()} (22K, 384)", "COCO", "12 epochs"),
            size,
            f"convnext_{size}_22k_1k_384",
            DINO,
            score,
            **DETREX,
        )
        for size, score in dict(tiny=52.4, small=54.2, base=55.1, large=55.5).items()
    },
    "detection/dino_5scale_convnext_l_22k": Recipe(
        ("DINO-DETR, 5 scales", "ConvNeXt-L (22K, 384)", "COCO", "12 epochs"),
        "large",
        "convnext_large_22k_1k_384",
        "mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco",
    ),
    "detection/mask2former_convnext_t": Recipe(
        ("Mask2Former", "ConvNeXt-T", "COCO", "368,750 steps"),
        *T,
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco",
    ),
    "detection/mask2former_panoptic_convnext_t": Recipe(
        ("Mask2Former, panoptic", "ConvNeXt-T", "COCO", "368,750 steps"),
        *T,
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic",
    ),
    "detection/mask2former_panoptic_convnext_t_ade20k": Recipe(
        ("Mask2Former, panoptic", "ConvNeXt-T", "ADE20K at 640", "160k steps"),
        *T,
        "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512",
    ),
    "segmentation/mask2former_convnext_t_ade20k": Recipe(
        ("Mask2Former", "ConvNeXt-T", "ADE20K at 512", "160k steps"),
        *T,
        "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512",
    ),
    "segmentation/fpn_convnext_t": Recipe(
        ("Semantic FPN", "ConvNeXt-T", "ADE20K at 512", "80k steps"),
        *T,
        "mmseg::twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512",
    ),
    "segmentation/deeplabv3plus_convnext_t": Recipe(
        ("DeepLabV3+", "ConvNeXt-T", "ADE20K at 512", "160k steps"),
        *T,
        "segmentation/upernet_convnext_t",
    ),
}  # fmt: skip


def path_of(name: str) -> Path:
    library, _, below = name.rpartition("::")
    if not library:
        return FOLDER / f"{name}.py"
    return Path(find_spec(library).submodule_search_locations[0]) / ".mim/configs" / f"{below}.py"


@cache
def read(name: str) -> Config:
    """The config, read once; not to be changed."""
    return load_config(path_of(name))


@cache
def theirs(name: str) -> Config:
    import backbones.openmmlab.detection  # noqa: F401  before mmseg's configs import mmdet's heads

    return Config.fromfile(path_of(name), import_custom_modules=False)


def test_every_recipe_is_listed():
    papers = ("mask_rcnn", "cascade", "upernet", "linear")  # which test_configs.py tests
    others = {
        str(path.relative_to(FOLDER).with_suffix(""))
        for task in ("detection", "segmentation")
        for path in (FOLDER / task).glob("*convnext*.py")
        if not path.name.startswith(papers)
    }
    assert others == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_is_short_and_opens_with_its_claim(name):
    recipe, text = RECIPES[name], path_of(name).read_text()
    assert len(text.splitlines()) <= 25
    claim = ast.get_docstring(ast.parse(text))
    assert text.splitlines()[0] == f'"""{claim}"""'
    score = f"Published{recipe.by}: {recipe.published} box AP."
    assert claim.endswith(f". {score if recipe.published else 'Not published.'}")
    assert all(word in claim for word in recipe.words)


def test_rtmdets_score_is_mmdets():
    folder = path_of("mmdet::rtmdet/metafile").with_suffix(".yml")
    models = yaml.safe_load(folder.read_text())["Models"]
    (found,) = [m for m in models if "convnext_b" in m["Name"]]
    (result,) = found["Results"]
    recipe = RECIPES["detection/rtmdet_convnext_b"]
    assert result["Metrics"]["box AP"] == recipe.published
    assert recipe.schedule.endswith(Path(found["Config"]).stem)


@pytest.mark.parametrize("name", RECIPES)
def test_backbone_and_weights(name):
    """The model builds with every map as wide as its reader; the weights are the zoo's."""
    recipe, config = RECIPES[name], read(name)
    assert notes(config) == []
    backbone = config.model.backbone
    weights = find(recipe.checkpoint)
    assert (backbone.type, backbone.arch) == ("ConvNeXt", recipe.arch)
    assert backbone.init_cfg == dict(type="Pretrained", checkpoint=weights.source)
    assert weights.arch == recipe.arch and backbone.layer_scale_init_value == 1.0
    dims = ARCHITECTURES[recipe.arch]["dims"]
    model = build_on_meta(config)
    read_maps = [dims[i] for i in model.backbone.out_indices]
    widths = [
        list(node["in_channels"])
        for part in ("neck", "panoptic_head", "decode_head")
        if isinstance((node := config.model.get(part) or {}).get("in_channels"), list | tuple)
    ]
    if "deeplab" in name:
        head = config.model.decode_head
        assert (head.in_channels, head.c1_in_channels) == (dims[3], dims[0])
        assert model.backbone.stride == 8
    elif "fpn" in name:
        assert widths[0] == read_maps
    else:
        assert widths == [read_maps]


def unscoped(node):
    """A part of a config without the scopes that mmengine adds to another package's."""
    if isinstance(node, dict):
        return {key: unscoped(value) for key, value in node.items() if key != "_scope_"}
    return [unscoped(value) for value in node] if isinstance(node, list | tuple) else node


@pytest.mark.parametrize("name", RECIPES)
def test_schedule_is_the_cited_ones(name):
    recipe, config = RECIPES[name], read(name)
    cited = theirs(recipe.schedule)
    assert unscoped(config.param_scheduler) == unscoped(cited.param_scheduler)
    for key in ("max_epochs", "max_iters"):
        assert config.train_cfg.get(key) == cited.train_cfg.get(key)
    if recipe.optimizer:
        for key in ("optimizer", "clip_grad"):
            assert unscoped(config.optim_wrapper.get(key)) == unscoped(cited.optim_wrapper.get(key))


def test_dino_has_detrexs_settings():
    """Its position embeddings, and a tenth of the learning rate for the backbone."""
    config = read("detection/dino_convnext_l_22k")
    encoding = config.model.positional_encoding
    assert (encoding.temperature, encoding.offset) == (10000, -0.5)
    assert config.optim_wrapper.paramwise_cfg.custom_keys == dict(backbone=dict(lr_mult=0.1))
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-4, 1e-4)
    assert config.model.dn_cfg.group_cfg.num_dn_queries == 100
    assert config.model.backbone.drop_path_rate == 0.0


def test_rtmdet_decays_by_layer():
    ours, original = (
        c.optim_wrapper.paramwise_cfg
        for c in (
            read("detection/rtmdet_convnext_b"),
            theirs(RECIPES["detection/rtmdet_convnext_b"].schedule),
        )
    )
    assert {k: ours[k] for k in ("decay_rate", "decay_type")} == {
        k: original[k] for k in ("decay_rate", "decay_type")
    }


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_fall_layer_by_layer_under_every_head(name):
    """By the recipe's own rate where it has layer decay, else by 0.8."""
    config = read(name)
    paramwise = dict(decay_rate=0.8)
    if config.optim_wrapper.get("constructor") == "LayerDecayConstructor":
        paramwise = config.optim_wrapper.paramwise_cfg.to_dict()
        paramwise.pop("_delete_", None)
    model = build_on_meta(config)
    optimizer = build_optim_wrapper(
        model,
        dict(
            type="OptimWrapper",
            optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
            constructor="LayerDecayConstructor",
            paramwise_cfg=paramwise,
        ),
    ).optimizer
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(rates) == sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)
    falling = paramwise["decay_rate"] ** (num_layers(model.backbone.depths) + 1)
    assert rates[model.backbone.downsample_layers[0][0].weight] == pytest.approx(1e-3 * falling)
    inside = set(model.backbone.parameters())
    heads = {rate for p, rate in rates.items() if p not in inside}
    assert heads == {1e-3}


def test_faster_rcnn_is_mask_rcnn_without_masks():
    boxes = build_on_meta(read("detection/faster_rcnn_convnext_t"))
    masks = build_on_meta(read("detection/mask_rcnn_convnext_t"))
    lost = set(dict(masks.named_parameters())) - set(dict(boxes.named_parameters()))
    assert lost and all(name.startswith("roi_head.mask_head.") for name in lost)
    assert set(dict(boxes.named_parameters())) < set(dict(masks.named_parameters()))
    assert read("detection/faster_rcnn_convnext_t").test_evaluator.metric == ["bbox"]


EXPORTED = ("faster_rcnn_convnext_t", "fpn_convnext_t", "deeplabv3plus_convnext_t")


@pytest.mark.parametrize("name", RECIPES)
def test_export_refuses_what_no_graph_computes(name):
    model = build_on_meta(read(name))
    graph = task_of_model(model).export.graph
    if name.endswith(EXPORTED):
        assert graph(torch.nn.Identity(), model, False).outputs
        return
    with pytest.raises(InputError) as caught:
        graph(torch.nn.Identity(), model, False)
    where = "decode_head" if name.startswith("segmentation") else type(model).__name__
    assert (caught.value.code, caught.value.where) == ("unsupported", where)
