"""Predict an image with an ONNX file of a whole model that `convnext export` wrote.

python docs/samples/predict.py model.onnx photo.jpg
Needs onnxruntime, OpenCV and NumPy, and nothing of this suite. A segmentor is best exported with
`--logits`: logits are resized more exactly than labels.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def predict(model: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """Predict an image (H, W, 3) uint8 in BGR order.

    Returns:
        `labels` (H, W) of a segmentor; `boxes` (n, 4) in pixels of the image, `scores`, `labels`
        (n,) and `masks` (n, H, W) of a detector.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    resized, scale = resize(image, json.loads(facts["resize"]))
    blob = resized.transpose(2, 0, 1)[None].astype(np.float32)  # normalised in the file
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"input": blob}), strict=True))
    height, width = image.shape[:2]
    if "dets" not in outputs:
        return dict(labels=label_map(outputs[names[0]][0], width, height))
    boxes, scores = outputs["dets"][0, :, :4] / np.tile(scale, 2), outputs["dets"][0, :, 4]
    found = dict(boxes=boxes, scores=scores, labels=outputs["labels"][0])
    if "masks" in outputs:
        threshold = json.loads(facts["postprocessing"])["mask_threshold"]
        masks = zip(outputs["masks"][0], boxes, strict=True)
        pasted = [paste(mask, box, width, height) >= threshold for mask, box in masks]
        found["masks"] = np.array(pasted, dtype=bool).reshape(-1, height, width)
    return found


def resize(image: np.ndarray, step: dict | None) -> tuple[np.ndarray, np.ndarray]:
    """Resize as the test pipeline of the model does; return the factors of width and height too."""
    height, width = image.shape[:2]
    if step is None:
        return image, np.ones(2)
    wide, high = step["scale"]
    if step.get("keep_ratio"):
        long, short = max(wide, high), min(wide, high)
        factor = min(long / max(width, height), short / min(width, height))
        wide, high = int(width * factor + 0.5), int(height * factor + 0.5)
    resized = cv2.resize(image, (wide, high), interpolation=cv2.INTER_LINEAR)
    return resized, np.array([wide / width, high / height])


def label_map(output: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the label of each pixel from labels (1, h, w) or logits (classes, h, w)."""
    if output.dtype == np.int64:
        nearest = cv2.INTER_NEAREST_EXACT
        return cv2.resize(output[0].astype(np.int16), (width, height), interpolation=nearest)
    return np.stack([cv2.resize(one, (width, height)) for one in output]).argmax(0)


def paste(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the probability of each pixel of the image from those of the box's cells (28, 28)."""
    (x1, y1, x2, y2), cells = box, len(mask)
    x = (np.arange(width) + 0.5 - x1) / (x2 - x1) * cells - 0.5
    y = (np.arange(height) + 0.5 - y1) / (y2 - y1) * cells - 0.5
    maps = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return cv2.remap(mask, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


if __name__ == "__main__":
    for key, value in predict(sys.argv[1], cv2.imread(sys.argv[2])).items():
        print(key, value.shape, *value.ravel()[:8])
