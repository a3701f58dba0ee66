"""Fine-tuning on other classes: every head's layers with rows for each class start anew."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from backbones import InputError
from backbones.openmmlab.data.config_edits import set_class_count
from backbones.openmmlab.training.fine_tuning import class_layers, load_all_but_classes
from benchmarks.families import FAMILIES
from benchmarks.narrow_models import narrowed

NAMED = {family.name: family for family in FAMILIES}


def built(name: str, classes: int, device: str = "meta") -> torch.nn.Module:
    """A family's narrow model for so many classes."""
    family = NAMED[name]
    model = narrowed(family.library, family.config, wide=family.wide, **family.backbone)
    config = Config(dict(model=model))
    config.merge_from_dict({f"model.{key}": value for key, value in family.changes.items()})
    set_class_count(config.model, classes, classes // 2 if "anoptic" in name else 0)
    with DefaultScope.overwrite_default_scope(family.library), torch.device(device):
        return MODELS.build(config.model)


# An RPN has no classes, and those of Segmenter's transformer are a parameter of the head itself.
OTHERS = ("RPN", "GA-RPN", "Segmenter, mask transformer")
CLASSIFYING = [n for n, f in NAMED.items() if not f.reason and n not in OTHERS]
QUICK = (
    "Cascade Mask R-CNN", "Mask R-CNN", "RetinaNet", "FCOS", "YOLOX", "RTMDet-Ins", "DETR", "DINO",
    "Mask2Former panoptic", "Semantic FPN", "DeepLabV3+", "Mask2Former",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CLASSIFYING]
)
def test_they_are_those_whose_size_follows_the_classes(name):
    few, many = built(name, 7), built(name, 9)
    sizes = {key: tensor.shape for key, tensor in many.named_parameters()}
    following = {k.rpartition(".")[0] for k, v in few.named_parameters() if v.shape != sizes[k]}
    assert following and set(class_layers(few)) == following


@pytest.mark.parametrize("name", ["RetinaNet", "RTMDet-Ins", "DINO", "Mask2Former panoptic"])
def test_all_else_is_loaded(name):
    source, model = (built(name, classes, "cpu") for classes in (7, 9))
    for tensor in source.state_dict().values():
        tensor.fill_(3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    line = load_all_but_classes(model, dict(state_dict=source.state_dict()), "x.pth")
    layers = class_layers(model)
    assert layers and all(layer in line for layer in layers)
    for key, tensor in model.state_dict().items():
        anew = key.startswith(tuple(f"{layer}." for layer in layers))
        assert torch.equal(tensor, before[key]) if anew else (tensor == 3).all(), key


def test_a_layer_of_another_width_is_an_error():
    source, model = (built("RetinaNet", classes, "cpu") for classes in (7, 9))
    state = {**source.state_dict(), "bbox_head.retina_reg.bias": torch.zeros(5)}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_all_but_classes(model, dict(state_dict=state), "x.pth")
    assert "bbox_head.retina_reg.bias" in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before)
