"""Every detector's head that has a recipe learns drawn images, by the tools and its evaluator."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from support.learning import IMAGES, SIZE, Head, draw_data, predict, score, train
from support.running import run_here

BOXES, MASKS, PQ = "coco/bbox_mAP_50", "coco/segm_mAP_50", "coco_panoptic/PQ"
QUERIES = {
    "panoptic_head.num_queries": 20,
    "panoptic_head.transformer_decoder.num_layers": 3,
    "test_cfg.max_per_image": 20,
}
HEADS = {
    "faster_rcnn_convnext_t": Head(
        BOXES,
        0.68,  # 0.96 at 128 x 128: its smallest anchors are wider than the smallest shapes here
        0.45,
        100,
        {
            "roi_head.bbox_head.fc_out_channels": 128,
            "train_cfg.rpn_proposal.max_per_img": 100,
            "train_cfg.rcnn.sampler.num": 64,
            "test_cfg.rpn.max_per_img": 100,
        },
    ),
    "retinanet_convnext_t": Head(BOXES, 1.0, 0.6, 100),
    "rtmdet_ins_convnext_t": Head(MASKS, 0.98, 0.6, 120),
    "dino_convnext_t_22k": Head(
        BOXES,
        1.0,
        0.6,
        150,
        {
            "bbox_head.embed_dims": 32,
            "test_cfg.max_per_img": 20,
            "decoder.num_layers": 2,
            "dn_cfg.group_cfg.num_dn_queries": 20,
        },
    ),
    "mask2former_convnext_t": Head(MASKS, 1.0, 0.6, 170, QUERIES),
    "mask2former_panoptic_convnext_t": Head(PQ, 95.0, 60, 200, QUERIES),
}

# What starts anew where the trained model goes on with one more class.
CLASS_LAYERS = {
    "retinanet_convnext_t": ["bbox_head.retina_cls"],
    "dino_convnext_t_22k": ["bbox_head.cls_branches.0", "dn_query_generator.label_embedding"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_data(tmp_path_factory.mktemp("learning"))


def covered(data, out, with_masks: bool) -> float:
    """Share of the objects that a prediction of their class covers with an IoU above 0.5."""
    truth = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    found = json.loads((out / "predictions.json").read_text())
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    numbers = {image["file_name"].split("/")[-1]: image["id"] for image in found["images"]}
    key = "segmentation" if with_masks else "bbox"
    hits = 0
    for row in truth["annotations"]:
        overlaps = [
            rle.iou([other[key]], [row[key]], [0])[0, 0]
            for other in found["annotations"]
            if other["image_id"] == numbers[files[row["image_id"]]]
            and other["category_id"] == row["category_id"]
            and other["score"] > 0.3
        ]
        hits += max(overlaps, default=0) > 0.5
    return hits / len(truth["annotations"])


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_head_learns(name, data, tmp_path):
    head = HEADS[name]
    trained = train(f"detection/{name}", head, data, tmp_path)
    reached = score(trained, head)
    print(f"{name}: {head.metric} {reached:.3f}")
    assert reached >= head.least
    out = predict(trained, "train2017")
    if head.metric == PQ:
        right = 0.0
        for number in range(1, IMAGES + 1):
            segments = np.asarray(Image.open(out / "panoptic" / f"{number:012}.png"))[:, :, 0]
            rows = json.loads((out / "panoptic.json").read_text())["annotations"][number - 1]
            assert segments.shape == (SIZE, SIZE)
            kinds = {row["id"]: row["category_id"] for row in rows["segments_info"]}
            path = data / "annotations" / "training" / f"ADE_train_{number:08}.png"
            predicted = np.vectorize(lambda i, kinds=kinds: kinds.get(i, 0))(segments)
            right += (predicted == np.asarray(Image.open(path))).mean() / IMAGES
        assert right > 0.7
    else:
        assert covered(data, out, head.metric == MASKS) > 0.5
    if name in CLASS_LAYERS:
        other = shutil.copytree(data, tmp_path / "other")
        for path in (other / "annotations").glob("instances_*.json"):
            content = json.loads(path.read_text())
            content["categories"].append(dict(id=5, name="moon"))
            path.write_text(json.dumps(content))
        arguments = ("--data", other, "--work-dir", tmp_path / "tuned", "--init-from")
        step = ("--cfg-options", "train_cfg.max_iters=1")
        done = trained.run("train.py", trained.config, *arguments, trained.checkpoint, *step)
        assert all(layer in done.out for layer in CLASS_LAYERS[name])
    report = json.loads((trained.config.parent / "report.json").read_text())
    done = run_here("report.py", trained.config.parent, "--out", tmp_path / "report.html")
    assert done.status == 0 and report["config"], done.err
    assert (tmp_path / "report.html").stat().st_size > 10_000
    checked = run_here("doctor.py", trained.config, "--json")
    issues = json.loads(checked.out)
    assert not [issue for issue in issues if issue["severity"] == "error"], issues
