"""Place predictions on the earth where their image is: for COCO's images, as GeoJSON, in TIFFs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.openmmlab.data.files import RASTERS
from backbones.openmmlab.data.rasters import open_raster

from .instances import Instances

GEO_KEYS, PIXEL_SCALE, TIEPOINT, MATRIX = 34735, 33550, 33922, 34264  # GeoTIFF tags
# GeoTIFF keys and values of theirs.
MODEL, RASTER, GEOGRAPHIC, PROJECTED = 1024, 1025, 2048, 3072
IS_PROJECTED, IS_POINT, USER_DEFINED = 1, 2, 32767


class Georeference:
    """Hold what a raster says of its place on the earth.

    Args:
        tags: TIFF tags (code, type, count, value), as `Raster.georeference` has them.

    Attributes:
        affine: (2, 3) matrix from pixels (x, y, 1), whose first has its corner at (0, 0), to
            coordinates; None if the raster states none.
        epsg: EPSG code of the coordinates; None if the raster states none.
    """

    def __init__(self, tags: Sequence[tuple[int, Any, int, Any]]):
        self.tags = list(tags)
        values = {code: value for code, _, _, value in tags}
        keys = list(values.get(GEO_KEYS) or ())
        stated: dict[int, Any] = {
            keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0
        }
        self.affine = _affine(values, stated.get(RASTER) == IS_POINT)
        self.epsg = _epsg(stated)

    def __bool__(self) -> bool:
        return bool(self.tags)

    def coco(self) -> dict[str, Any]:
        """Return keys for COCO's entry of an image: `crs`, and `transform` with its rows."""
        found: dict[str, Any] = {}
        if self.epsg is not None:
            found["crs"] = f"EPSG:{self.epsg}"
        if self.affine is not None:
            found["transform"] = self.affine.ravel().tolist()
        return found


def georeference_of(path: Path) -> Georeference:
    """Return the georeference of an image file; an empty one of an image that is no raster."""
    if path.suffix.lower() not in (".tif", ".tiff", *RASTERS):
        return Georeference(())
    try:
        with open_raster(path) as raster:
            return Georeference(raster.georeference)
    except InputError:  # a file that OpenCV alone reads, or without the package for rasters
        return Georeference(())


def write_geojson(
    path: Path, found: Instances, classes: Sequence[str], place: Georeference
) -> None:
    """Write a detector's boxes as polygons in the raster's coordinates, if it has any."""
    if place.affine is None:
        return
    features = []
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        left, top, right, bottom = map(float, box)
        corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
        ring = [(place.affine @ (x, y, 1.0)).tolist() for x, y in corners]
        features.append(
            dict(
                type="Feature",
                geometry=dict(type="Polygon", coordinates=[ring]),
                properties={"class": classes[int(label)], "score": float(score)},
            )
        )
    content: dict[str, Any] = dict(type="FeatureCollection", features=features)
    if place.epsg is not None:
        name = f"urn:ogc:def:crs:EPSG::{place.epsg}"
        content["crs"] = dict(type="name", properties=dict(name=name))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content))


def _affine(tags: dict[int, Any], of_points: bool) -> np.ndarray | None:
    if MATRIX in tags:
        matrix = np.array(tags[MATRIX], float).reshape(4, 4)[:2, [0, 1, 3]]
    elif PIXEL_SCALE in tags and len(tags.get(TIEPOINT, ())) == 6:
        scale_x, scale_y = tags[PIXEL_SCALE][:2]
        column, row, _, x, y, _ = tags[TIEPOINT]
        matrix = np.array([[scale_x, 0, x - column * scale_x], [0, -scale_y, y + row * scale_y]])
    else:
        return None
    if of_points:  # places are those of the pixels' centres
        matrix[:, 2] -= matrix[:, :2].sum(1) / 2
    return matrix


def _epsg(keys: dict[int, Any]) -> int | None:
    is_projected = PROJECTED in keys or keys.get(MODEL) == IS_PROJECTED
    code = keys.get(PROJECTED if is_projected else GEOGRAPHIC, USER_DEFINED)
    return None if code in (0, USER_DEFINED) else int(code)
