"""Make small data sets of one drawn scene in every format, each with one real-life oddity.

A `Draft` is a folder before it is written: images, annotations, links. `PICTURES` change its images
and go with every format; `FILES` change the files of one format. Each says how reading has to end:
as without the oddity, or in an error of a code that names these words.
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 64, 48
CLASSES = ("red", "blue")
COLOURS = ((200, 40, 40), (40, 60, 200))
SPLITS = ("train", "val")
FORMATS = ("coco", "yolo", "voc", "maps")


@dataclass(frozen=True)
class Thing:
    """Describe an object: its label and box, which it fills but for the lower right quarter."""

    label: int
    box: tuple[int, int, int, int]

    @property
    def polygon(self) -> list[int]:
        x, y, w, h = self.box
        return [x, y, x + w, y, x + w, y + h // 2, x + w // 2, y + h // 2, x + w // 2, y + h,
                x, y + h]  # fmt: skip

    @property
    def mask(self) -> np.ndarray:
        """Return (H, W) of 0 and 1, as COCO draws the polygon."""
        codes = coco_mask.frPyObjects([self.polygon], HEIGHT, WIDTH)
        return np.asarray(coco_mask.decode(coco_mask.merge(codes)))


SCENES: dict[tuple[str, str], list[Thing]] = {
    ("train", "a"): [Thing(0, (4, 6, 20, 16)), Thing(1, (34, 20, 24, 20))],
    ("train", "b"): [Thing(1, (10, 10, 30, 24))],
    ("train", "c"): [Thing(0, (2, 20, 22, 26)), Thing(0, (40, 4, 16, 14))],
    ("val", "d"): [Thing(0, (8, 8, 26, 20)), Thing(1, (40, 26, 18, 16))],
    ("val", "e"): [Thing(1, (20, 12, 24, 30))],
    ("val", "f"): [Thing(0, (30, 6, 28, 22)), Thing(1, (4, 28, 20, 18))],
}


def drawing(key: tuple[str, str]) -> np.ndarray:
    """Draw a scene (H, W, 3) RGB, brighter to the right and below so that rotations show."""
    ground = np.add.outer(np.arange(HEIGHT) * 2, np.arange(WIDTH))
    pixels = np.repeat(ground[..., None], 3, 2).astype(np.uint8)
    for thing in SCENES[key]:
        pixels[thing.mask > 0] = COLOURS[thing.label]
    return pixels


def label_map(key: tuple[str, str]) -> np.ndarray:
    """Return labels (H, W) of a scene: 0 is ground, 1 red, 2 blue."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for thing in SCENES[key]:
        labels[thing.mask > 0] = thing.label + 1
    return labels


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def clean_coco(split: str) -> dict:
    """Return a COCO file's content of a split, with images x.jpg."""
    content: dict = dict(images=[], annotations=[], categories=[])
    content["categories"] = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
    for key, things in SCENES.items():
        if key[0] == split:
            number = len(content["images"]) + 1
            image = dict(id=number, file_name=f"{key[1]}.jpg", width=WIDTH, height=HEIGHT)
            content["images"].append(image)
            for thing in things:
                row = dict(id=len(content["annotations"]) + 1, image_id=number)
                row |= dict(category_id=thing.label + 1, bbox=list(thing.box), iscrowd=0)
                row |= dict(area=int(thing.mask.sum()), segmentation=[thing.polygon])
                content["annotations"].append(row)
    return content


@dataclass
class Draft:
    """Hold a data set before it is written.

    Attributes:
        format: coco, yolo, voc or maps.
        images: (split, stem) to the file's name and content.
        coco: content of the annotation file of a split.
        files: everything else, by its path in the folder.
        links: path to what it links to, relative to its folder.
        outside: files in a folder `outside` beside the data set's.
        encode: text of annotation files to bytes.
    """

    format: str
    images: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    coco: dict[str, dict] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    outside: dict[str, bytes] = field(default_factory=dict)
    encode: Callable[[str], bytes] = lambda text: text.encode()

    def folder(self, split: str) -> str:
        """Return the folder of a split's images."""
        long = dict(train="training", val="validation")[split]
        return dict(coco=split, yolo=f"images/{split}", voc="JPEGImages", maps=f"images/{long}")[
            self.format
        ]

    def maps(self, split: str) -> str:
        return self.folder(split).replace("images", "annotations")

    def image_path(self, key: tuple[str, str]) -> str:
        return f"{self.folder(key[0])}/{self.images[key][0]}"

    def rows(self, split: str = "train") -> list[dict]:
        return self.coco[split]["annotations"]

    def write(self, root: Path) -> Path:
        files = dict(self.files)
        for key, (_, content) in self.images.items():
            files.setdefault(self.image_path(key), content)
        for split, content in self.coco.items():
            text = json.dumps(content, ensure_ascii=False)
            files.setdefault(f"annotations/instances_{split}.json", self.encode(text))
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, content in self.outside.items():
            path = root.parent / "outside" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, target in self.links.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        return root


@dataclass(frozen=True)
class Oddity:
    """Describe one oddity of a data set.

    Attributes:
        formats: that it goes with.
        change: makes a draft odd.
        code: of the error that reading ends in; None if it is read as without the oddity.
        words: literally in the error: files, rows, numbers.
        on_images: changes images, before annotations are written of them.
    """

    formats: tuple[str, ...]
    change: Callable[[Draft], None]
    code: str | None
    words: tuple[str, ...]
    on_images: bool


ODDITIES: dict[str, Oddity] = {}


def odd(*formats: str, code: str | None = None, words: tuple[str, ...] = (), images: bool = False):
    def keep(change: Callable[[Draft], None]) -> Callable[[Draft], None]:
        name = change.__name__.strip("_")
        assert name not in ODDITIES, name
        ODDITIES[name] = Oddity(formats or FORMATS, change, code, words, images)
        return change

    return keep


def drafted(name: str, form: str) -> Draft:
    """Return the data set of a format with an oddity; `clean` for none."""
    draft = Draft(form)
    for key in SCENES:
        draft.images[key] = f"{key[1]}.jpg", encoded(drawing(key), "JPEG", quality=95)
    oddity = ODDITIES.get(name)
    if oddity and oddity.on_images:
        oddity.change(draft)
    dict(coco=_as_coco, yolo=_as_yolo, voc=_as_voc, maps=_as_maps)[form](draft)
    if oddity and not oddity.on_images:
        oddity.change(draft)
    return draft


def _as_coco(draft: Draft) -> None:
    for split in SPLITS:
        draft.coco[split] = clean_coco(split)
        for image in draft.coco[split]["images"]:
            image["file_name"] = draft.images[split, image["file_name"][0]][0]


def _as_yolo(draft: Draft) -> None:
    for key, things in SCENES.items():
        lines = []
        for thing in things:
            corners = np.array(thing.polygon).reshape(-1, 2) / (WIDTH, HEIGHT)
            lines.append(f"{thing.label} {' '.join(map(str, corners.ravel()))}\n")
        stem = draft.images[key][0].rpartition(".")[0]
        draft.files[f"labels/{key[0]}/{stem}.txt"] = "".join(lines).encode()
    draft.files["data.yaml"] = b"train: images/train\nval: images/val\nnames: [red, blue]\n"


def _as_voc(draft: Draft) -> None:
    for key, things in SCENES.items():
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "filename").text = draft.images[key][0]
        for thing in things:
            element = ElementTree.SubElement(tree, "object")
            ElementTree.SubElement(element, "name").text = CLASSES[thing.label]
            box = ElementTree.SubElement(element, "bndbox")
            x, y, w, h = thing.box
            for name, value in dict(xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h).items():
                ElementTree.SubElement(box, name).text = str(value)
        stem = draft.images[key][0].rpartition(".")[0]
        draft.files[f"Annotations/{stem}.xml"] = ElementTree.tostring(tree)
        listed = f"ImageSets/Main/{key[0]}.txt"
        draft.files[listed] = draft.files.get(listed, b"") + f"{stem}\n".encode()


def _as_maps(draft: Draft) -> None:
    for key in SCENES:
        stem = draft.images[key][0].rpartition(".")[0]
        draft.files[f"{draft.maps(key[0])}/{stem}.png"] = encoded(label_map(key), "PNG")
    draft.files["classes.txt"] = b"ground\nred\nblue\n"


def _each_image(draft: Draft, change: Callable[[str, np.ndarray], tuple[str, bytes]]) -> None:
    for key, (name, _) in draft.images.items():
        draft.images[key] = change(name.rpartition(".")[0], drawing(key))


# What must be stored for an EXIF orientation to give the drawing.
TURNED_BACK: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    3: lambda pixels: np.rot90(pixels, 2),
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def turned(pixels: np.ndarray, orientation: int, kind: str) -> bytes:
    """Return an image file whose EXIF orientation, applied, gives these pixels."""
    stored = np.ascontiguousarray(TURNED_BACK[orientation](pixels))
    if kind == "TIFF":
        return encoded(stored, kind, tiffinfo={0x0112: orientation})
    return encoded(stored, kind, exif=exif(orientation))


def _add_formats() -> None:
    for kind, suffix in (
        ("PNG", "png"), ("BMP", "bmp"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif"),
        ("JPEG", "jpeg"),
    ):  # fmt: skip

        def write(draft: Draft, kind: str = kind, suffix: str = suffix) -> None:
            _each_image(draft, lambda stem, px: (f"{stem}.{suffix}", encoded(px, kind)))

        write.__name__ = f"images_in_{suffix}"
        odd(images=True)(write)
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tiff")):
        for orientation in TURNED_BACK:

            def turn(
                draft: Draft, kind: str = kind, suffix: str = suffix, by: int = orientation
            ) -> None:
                _each_image(draft, lambda stem, px: (f"{stem}.{suffix}", turned(px, by, kind)))

            turn.__name__ = f"{suffix}_of_orientation_{orientation}"
            odd(*FORMATS if orientation == 6 else ("coco",), images=True)(turn)
    # OpenCV applies no orientation of these, so that their pixels are as stored.
    for kind, suffix in (("WEBP", "webp"), ("AVIF", "avif")):

        def mark(draft: Draft, kind: str = kind, suffix: str = suffix) -> None:
            _each_image(
                draft, lambda stem, px: (f"{stem}.{suffix}", encoded(px, kind, exif=exif(6)))
            )

        mark.__name__ = f"{suffix}_with_orientation"
        odd(images=True)(mark)
    for kind, suffix in (("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif")):

        def animate(draft: Draft, kind: str = kind, suffix: str = suffix) -> None:
            def frames(stem: str, px: np.ndarray) -> tuple[str, bytes]:
                more = dict(save_all=True, append_images=[Image.fromarray(255 - px)])
                if kind == "PNG":  # an animated one is not turned
                    more["exif"] = exif(6)
                return f"{stem}.{suffix}", encoded(px, kind, **more)

            _each_image(draft, frames)

        animate.__name__ = f"several_frames_in_{suffix}"
        odd(images=True)(animate)


_add_formats()


@odd(images=True)
def suffixes_in_capitals(draft: Draft) -> None:
    _each_image(draft, lambda stem, px: (f"{stem}.JPG", encoded(px, "JPEG")))


@odd(images=True)
def bytes_after_the_end_of_jpeg(draft: Draft) -> None:
    _each_image(draft, lambda stem, px: (f"{stem}.jpg", encoded(px, "JPEG") + b"video" * 3000))


@odd(images=True)
def bytes_after_the_end_of_png(draft: Draft) -> None:
    _each_image(draft, lambda stem, px: (f"{stem}.png", encoded(px, "PNG") + b"video" * 3000))


@odd("coco", "yolo", "voc", images=True, code="bad-image", words=("b.jpg",))
def jpeg_cut_off(draft: Draft) -> None:
    draft.images["train", "b"] = "b.jpg", draft.images["train", "b"][1][:600]


@odd("coco", "yolo", "voc", images=True, code="bad-image", words=("b.jpg",))
def jpeg_cut_off_behind_its_thumbnail(draft: Draft) -> None:
    whole = draft.images["train", "b"][1]
    thumbnail = b"\xff\xe1" + (len(whole) + 8).to_bytes(2, "big") + b"Exif\0\0" + whole
    draft.images["train", "b"] = "b.jpg", whole[:2] + thumbnail + whole[2:-200]


@odd(images=True, code="bad-image", words=("b.tif", "float"))
def float_tiff(draft: Draft) -> None:
    pixels = drawing(("train", "b"))[..., 0].astype(np.float32)
    draft.images["train", "b"] = "b.tif", encoded(pixels, "TIFF")


@odd(images=True, code="bad-image", words=("b.jpg",))
def no_image_at_all(draft: Draft) -> None:
    draft.images["train", "b"] = "b.jpg", b"../elsewhere/b.jpg"  # a link that Git has written out


@odd("coco", "yolo", "maps", images=True)
def tabs_in_file_names(draft: Draft) -> None:
    _each_image(draft, lambda stem, px: (f"{stem}\tx.jpg", encoded(px, "JPEG")))


@odd("coco", "yolo", "maps", images=True)
def line_breaks_in_file_names(draft: Draft) -> None:
    _each_image(draft, lambda stem, px: (f"{stem}\nx.jpg", encoded(px, "JPEG")))


@odd(images=True)
def file_names_in_chinese(draft: Draft) -> None:
    _each_image(draft, lambda stem, px: (f"{stem}图.jpg", encoded(px, "JPEG")))


@odd()
def macos_files(draft: Draft) -> None:
    for name in [*draft.files, *map(draft.image_path, draft.images)]:
        folder, _, file = name.rpartition("/")
        draft.files[f"{folder}/._{file}".lstrip("/")] = b"\0\5\x16\7\0\2\0\0Mac OS X"
        draft.files[f"__MACOSX/{folder}/._{file}"] = b"\0\5\x16\7\0\2\0\0Mac OS X"
        draft.files[f"{folder}/.DS_Store".lstrip("/")] = b"\0\0\0\1Bud1"
    for split in draft.coco:
        draft.files[f"annotations/._instances_{split}.json"] = b"\0\5\x16\7\0\2\0\0Mac OS X"
        draft.files[f"__MACOSX/instances_{split}.json"] = json.dumps(draft.coco[split]).encode()


@odd()
def windows_files(draft: Draft) -> None:
    for name in [*draft.files, *map(draft.image_path, draft.images)]:
        folder = name.rpartition("/")[0]
        draft.files[f"{folder}/Thumbs.db".lstrip("/")] = b"\xd0\xcf\x11\xe0"
        draft.files[f"{folder}/desktop.ini".lstrip("/")] = b"[.ShellClassInfo]\r\n"


@odd()
def a_loop_of_links(draft: Draft) -> None:
    for split in SPLITS:
        draft.links[f"{draft.folder(split)}/again"] = ".."
    draft.links["here"] = "."


@odd("coco", "yolo", "maps")
def linked_image_folders(draft: Draft) -> None:
    for split in SPLITS:
        for key in [key for key in draft.images if key[0] == split]:
            name, content = draft.images.pop(key)
            draft.outside[f"{split}/{name}"] = content
        depth = draft.folder(split).count("/") + 1
        draft.links[draft.folder(split)] = "../" * depth + f"outside/{split}"


@odd()
def linked_images(draft: Draft) -> None:
    for key in list(draft.images):
        path = draft.image_path(key)
        _, content = draft.images.pop(key)
        draft.outside[f"{key[0]}_{key[1]}"] = content
        draft.links[path] = "../" * (path.count("/") + 1) + f"outside/{key[0]}_{key[1]}"


@odd()
def everything_linked(draft: Draft) -> None:
    """Link every file of a fold to one pool, as k-fold sets are made."""
    for split, content in draft.coco.items():
        draft.files[f"annotations/instances_{split}.json"] = json.dumps(content).encode()
    draft.coco.clear()
    for key in list(draft.images):
        draft.files[draft.image_path(key)] = draft.images[key][1]
    draft.images.clear()
    for number, (path, content) in enumerate(sorted(draft.files.items())):
        draft.outside[f"{number}"] = content
        draft.links[path] = "../" * (path.count("/") + 1) + f"outside/{number}"
    draft.files.clear()


# COCO: encodings and layout of the file


def _encoded_as(encoding: str, code: str | None = None) -> None:
    def change(draft: Draft) -> None:
        draft.encode = lambda text: text.replace('"info"', '"é"').encode(encoding)
        for content in draft.coco.values():
            content["info"] = {}

    change.__name__ = f"coco_in_{encoding.replace('-', '_')}"
    odd("coco", code=code, words=("instances_train.json",) if code else ())(change)


for _encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
    _encoded_as(_encoding)
for _encoding in ("latin-1", "cp1252"):
    _encoded_as(_encoding, "broken-file")


@odd("coco")
def coco_of_windows_lines(draft: Draft) -> None:
    draft.encode = lambda text: text.replace(", ", ",\r\n ").encode() + b"\r\n"


@odd("coco", code="broken-file", words=("instances_train.json",))
def coco_cut_off(draft: Draft) -> None:
    text = json.dumps(draft.coco["train"]).encode()
    draft.files["annotations/instances_train.json"] = text[:-150]


@odd("coco")
def the_word_categories_elsewhere(draft: Draft) -> None:
    for split, content in draft.coco.items():
        for row in content["annotations"]:
            row["attributes"] = {"categories": ["x"], "images": 3}
        info = {"categories": "as below", "description": '"categories": ['}
        rows = content["annotations"]
        draft.coco[split] = dict(info=info, annotations=rows) | content


@odd("coco")
def a_million_characters_before_the_categories(draft: Draft) -> None:
    for split, content in draft.coco.items():
        draft.coco[split] = dict(info={"text": "图" * 400_000}) | content


@odd("coco")
def categories_first(draft: Draft) -> None:
    for split, content in draft.coco.items():
        draft.coco[split] = dict(reversed(content.items()))


# COCO: ids


def _ids(draft: Draft, part: str, new: Callable[[int], object]) -> None:
    key = dict(images="image_id", categories="category_id").get(part)
    for content in draft.coco.values():
        for row in content[part]:
            row["id"] = new(row["id"])
        for row in content["annotations"] if key else ():
            row[key] = new(row[key])


def _add_ids() -> None:
    kinds: dict[str, Callable[[int], object]] = {
        "text": lambda i: f"n-{i:03}",
        "numbers_as_text": lambda i: str(i),
        "from_0": lambda i: i - 1,
        "below_0": lambda i: -i,
        "beyond_floats": lambda i: 2**60 + i,
        "floats": lambda i: i + 0.0,
        "mixed": lambda i: i if i % 2 else str(i),
    }
    for part in ("images", "annotations", "categories"):
        for kind, new in kinds.items():

            def change(draft: Draft, part: str = part, new: Callable = new) -> None:
                _ids(draft, part, new)

            change.__name__ = f"ids_of_{part}_{kind}"
            odd("coco")(change)


_add_ids()


@odd("coco")
def annotation_ids_twice(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            row["id"] = 1


@odd("coco")
def no_annotation_ids(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            del row["id"]


@odd("coco")
def references_as_text(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            row |= dict(image_id=str(row["image_id"]), category_id=str(row["category_id"]))


@odd("coco")
def images_and_categories_listed_twice(draft: Draft) -> None:
    for content in draft.coco.values():
        content["images"] = content["images"] * 2
        content["categories"] = content["categories"] * 2


@odd("coco", code="bad-annotations", words=("instances_train.json", "image id 1"))
def one_id_for_two_images(draft: Draft) -> None:
    draft.coco["train"]["images"][1]["id"] = 1


@odd("coco", code="bad-annotations", words=("instances_train.json", "category id 1"))
def one_id_for_two_categories(draft: Draft) -> None:
    draft.coco["train"]["categories"][1]["id"] = 1


@odd("coco", code="bad-annotations", words=("instances_train.json", "annotations[1]", "99"))
def a_category_that_is_not_there(draft: Draft) -> None:
    draft.rows()[0]["category_id"] = "1"
    draft.rows()[1]["category_id"] = 99


@odd("coco", code="bad-annotations", words=("instances_val.json", "annotations[0]", "x"))
def an_image_that_is_not_there(draft: Draft) -> None:
    draft.rows("val")[0]["image_id"] = "x"


# COCO: sizes, boxes, masks


@odd("coco")
def no_sizes(draft: Draft) -> None:
    for content in draft.coco.values():
        for image in content["images"]:
            del image["width"], image["height"]


@odd("coco", code="bad-annotations", words=("instances_val.json", "48x64", "64x48"))
def sizes_swapped(draft: Draft) -> None:
    for image in draft.coco["val"]["images"]:
        image.update(width=HEIGHT, height=WIDTH)


@odd("coco", code="bad-annotations", words=("instances_train.json", "128x96", "64x48"))
def images_halved_after_annotation(draft: Draft) -> None:
    image = draft.coco["train"]["images"][1]
    image.update(width=2 * WIDTH, height=2 * HEIGHT)


@odd("coco", code="bad-annotations", words=("b.jpg", "48x64", "64x48"))
def annotated_as_stored_and_not_as_turned(draft: Draft) -> None:
    pixels = np.rot90(drawing(("train", "b"))).copy()  # 48 x 64 stored, turned to 64 x 48
    draft.images["train", "b"] = "b.jpg", encoded(pixels, "JPEG", exif=exif(6))
    draft.coco["train"]["images"][1].update(width=HEIGHT, height=WIDTH)


def _segmentations(draft: Draft, new: Callable[[Thing, dict], object]) -> None:
    for split, content in draft.coco.items():
        things = [thing for key, of in SCENES.items() if key[0] == split for thing in of]
        for thing, row in zip(things, content["annotations"], strict=True):
            row["segmentation"] = new(thing, row)


def _code(thing: Thing) -> dict:
    code = coco_mask.encode(np.asfortranarray(thing.mask))
    return dict(size=list(code["size"]), counts=code["counts"].decode())


def _runs(thing: Thing) -> list[int]:
    flat = thing.mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return runs if flat[0] == 0 else [0, *runs]


@odd("coco")
def polygons_not_nested(draft: Draft) -> None:
    _segmentations(draft, lambda thing, _: thing.polygon)


@odd("coco")
def polygons_of_pairs(draft: Draft) -> None:
    _segmentations(draft, lambda thing, _: np.array(thing.polygon).reshape(-1, 2).tolist())


@odd("coco")
def polygons_of_pairs_nested(draft: Draft) -> None:
    _segmentations(draft, lambda thing, _: [np.array(thing.polygon).reshape(-1, 2).tolist()])


@odd("coco")
def polygons_with_empty_and_thin_parts(draft: Draft) -> None:
    _segmentations(draft, lambda thing, _: [[], thing.polygon, [1, 1, 5, 5]])


@odd("coco")
def run_lengths_as_text(draft: Draft) -> None:
    _segmentations(draft, lambda thing, _: _code(thing))


@odd("coco")
def run_lengths_as_lists(draft: Draft) -> None:
    _segmentations(draft, lambda t, _: dict(size=[HEIGHT, WIDTH], counts=_runs(t)))


def _one_mask(name: str, mask: Callable[[Thing], object], *words: str, split: str = "val") -> None:
    def change(draft: Draft) -> None:
        first = next(things[0] for key, things in SCENES.items() if key[0] == split)
        draft.rows(split)[0]["segmentation"] = mask(first)

    change.__name__ = name
    where = (f"instances_{split}.json", "annotation 1", *words)
    odd("coco", code="bad-annotations", words=where)(change)


_one_mask("run_lengths_cut", lambda t: _code(t) | dict(counts=_code(t)["counts"][:-3]), "3072")
_one_mask("run_lengths_cut_in_training", lambda t: _code(t) | dict(counts="d17a0"), split="train")
_one_mask("run_lengths_beyond", lambda t: dict(size=[HEIGHT, WIDTH], counts=[*_runs(t), 9]), "3081")
_one_mask("run_lengths_short", lambda t: dict(size=[HEIGHT, WIDTH], counts=[100, 7]), "107", "3072")
_one_mask("run_lengths_below_0", lambda t: dict(size=[HEIGHT, WIDTH], counts=[-10, 3082]), "counts")
_one_mask("run_lengths_of_swapped_size", lambda t: _code(t) | dict(size=[WIDTH, HEIGHT]), "64, 48")
_one_mask("run_lengths_of_no_code", lambda t: _code(t) | dict(counts="~~ no code ~~"))
_one_mask("run_lengths_unended", lambda t: _code(t) | dict(counts=_code(t)["counts"] + "o"))
_one_mask("run_lengths_of_no_size", lambda t: dict(counts=_runs(t)))
_one_mask("odd_number_of_coordinates", lambda t: [t.polygon[:-1]], "11")
_one_mask("polygon_of_words", lambda t: [["x"] * 6])
_one_mask("polygon_of_points", lambda t: [[dict(x=1, y=1)] * 3])


@odd("coco", code="bad-annotations", words=("instances_train.json", "annotation 1", "a.jpg"))
def a_mask_of_an_empty_polygon(draft: Draft) -> None:
    draft.rows()[0]["segmentation"] = [[]]


@odd("coco")
def no_boxes(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            del row["bbox"]


@odd("coco")
def no_boxes_but_run_lengths(draft: Draft) -> None:
    run_lengths_as_text(draft)
    no_boxes(draft)


@odd("coco", code="bad-annotations", words=("instances_train.json", "annotations[2]"))
def neither_box_nor_mask(draft: Draft) -> None:
    for row in draft.rows():
        row.pop("segmentation")
    del draft.rows()[2]["bbox"]


@odd("coco")
def areas_of_0(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            row["area"] = 0


@odd("coco")
def no_areas_and_no_flags(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            del row["area"], row["iscrowd"]


@odd("coco")
def areas_and_flags_null(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            row.update(area=None, iscrowd=None)


@odd("coco")
def flags_as_booleans(draft: Draft) -> None:
    for content in draft.coco.values():
        for row in content["annotations"]:
            row["iscrowd"] = False


@odd("coco", code="no-data", words=("instances_train.json", "5", "iscrowd"))
def all_crowds(draft: Draft) -> None:
    for row in draft.rows():
        row["iscrowd"] = 1


@odd("coco", code="no-data", words=("instances_val.json", "5", "iscrowd"))
def all_crowds_in_validation(draft: Draft) -> None:
    for row in draft.rows("val"):
        row["iscrowd"] = 1


@odd("coco", code="no-data", words=("instances_train.json", "3 images"))
def no_objects_to_train_on(draft: Draft) -> None:
    draft.rows().clear()


@odd("coco", code="no-data", words=("instances_val.json", "3 images"))
def no_objects_to_validate_on(draft: Draft) -> None:
    draft.rows("val").clear()


@odd("coco", code="no-data", words=("instances_val.json",))
def no_images_to_validate_on(draft: Draft) -> None:
    draft.coco["val"]["images"].clear()
    draft.rows("val").clear()


@odd("coco", code="no-data", words=("instances_train.json",))
def all_boxes_thinner_than_a_pixel(draft: Draft) -> None:
    for row in draft.rows():
        row["bbox"][2] = 0.5


@odd("coco")
def an_unlabelled_test_split(draft: Draft) -> None:
    draft.coco["test"] = {**clean_coco("val"), "annotations": []}


# COCO: names


@odd("coco")
def supercategory_of_the_own_name(draft: Draft) -> None:
    for content in draft.coco.values():
        for category in content["categories"]:
            category["supercategory"] = category["name"]


@odd("coco")
def a_group_as_category_0(draft: Draft) -> None:
    for content in draft.coco.values():
        for category in content["categories"]:
            category["supercategory"] = "things"
        content["categories"].insert(0, dict(id=0, name="things", supercategory="none"))


@odd("coco")
def file_names_of_windows(draft: Draft) -> None:
    for split, content in draft.coco.items():
        for image in content["images"]:
            image["file_name"] = f"{split}\\{image['file_name']}"


@odd("coco")
def file_names_of_other_case(draft: Draft) -> None:
    for content in draft.coco.values():
        for image in content["images"]:
            image["file_name"] = image["file_name"].upper()


@odd("coco")
def annotation_files_in_capitals(draft: Draft) -> None:
    for split, content in draft.coco.items():
        draft.files[f"Annotations/{split.upper()}.JSON"] = json.dumps(content).encode()
    draft.coco.clear()


# YOLO


def _replace(draft: Draft, ending: str, change: Callable[[bytes], bytes]) -> None:
    for path in [path for path in draft.files if path.endswith(ending)]:
        draft.files[path] = change(draft.files[path])


def _lists(draft: Draft, change: Callable[[str], bytes]) -> None:
    """List the images of each split in a file that data.yaml names."""
    for split in SPLITS:
        lines = [f"./{draft.image_path(key)}\n" for key in draft.images if key[0] == split]
        draft.files[f"{split}.txt"] = change("".join(lines))
    draft.files["data.yaml"] = b"train: train.txt\nval: val.txt\nnames: [red, blue]\n"


@odd("yolo", "maps")
def text_with_a_byte_order_mark(draft: Draft) -> None:
    for ending in (".txt", ".yaml"):
        _replace(draft, ending, lambda text: b"\xef\xbb\xbf" + text)


@odd("yolo", "maps")
def text_in_utf_16(draft: Draft) -> None:
    for ending in (".txt", ".yaml"):
        _replace(draft, ending, lambda text: text.decode().encode("utf-16"))


@odd("yolo", "maps", "voc")
def text_of_windows_lines(draft: Draft) -> None:
    for ending in (".txt", ".yaml", ".xml"):
        _replace(draft, ending, lambda text: text.replace(b"\n", b"\r\n"))


@odd("yolo", "maps")
def text_of_old_macintosh_lines(draft: Draft) -> None:
    for ending in (".txt", ".yaml"):
        _replace(draft, ending, lambda text: text.replace(b"\n", b"\r"))


@odd("yolo", code="broken-file", words=("data.yaml", "line 4"))
def yaml_in_latin_1(draft: Draft) -> None:
    draft.files["data.yaml"] += "# Größe\n".encode("latin-1")


@odd("yolo", code="broken-file", words=("data.yaml", "line 4"))
def yaml_in_gbk(draft: Draft) -> None:
    draft.files["data.yaml"] += "# 类别\n".encode("gbk")


@odd("yolo", code="broken-file", words=("b.txt",))
def labels_in_latin_1(draft: Draft) -> None:
    draft.files["labels/train/b.txt"] += "é".encode("latin-1")


@odd("yolo", code="bad-annotations", words=("data.yaml",))
def yaml_that_is_none(draft: Draft) -> None:
    draft.files["data.yaml"] = b"names: [red, blue\ntrain: {"


@odd("yolo")
def yaml_of_numbered_names(draft: Draft) -> None:
    draft.files["data.yaml"] = b"path: .\ntrain: images/train\nval: [images/val]\nnames:\n" + (
        b"  0: red\n  1: blue\n"
    )


@odd("yolo")
def no_yaml(draft: Draft) -> None:
    del draft.files["data.yaml"]
    draft.files["classes.txt"] = b"\xef\xbb\xbfred\r\nblue\r\n"


@odd("yolo")
def lists_of_images(draft: Draft) -> None:
    _lists(draft, lambda text: text.encode())


@odd("yolo")
def lists_of_images_written_by_windows(draft: Draft) -> None:
    _lists(draft, lambda text: text.replace("/", "\\").replace("\n", "\r\n").encode("utf-8-sig"))


@odd("yolo")
def lists_of_images_that_are_links(draft: Draft) -> None:
    _lists(draft, lambda text: text.encode())
    linked_images(draft)


@odd("yolo")
def labels_beside_what_images_link_to(draft: Draft) -> None:
    for key in list(draft.images):
        path = draft.image_path(key)
        _, content = draft.images.pop(key)
        label = path.replace("images", "labels").replace(".jpg", ".txt")
        draft.outside[path] = content
        draft.outside[label] = draft.files.pop(label)
        draft.links[path] = "../" * (path.count("/") + 1) + f"outside/{path}"


@odd("yolo", code="bad-image", words=("train.txt", "nowhere.jpg"))
def a_list_that_names_nothing(draft: Draft) -> None:
    _lists(draft, lambda text: (text + "./images/nowhere.jpg\n").encode())


@odd("yolo")
def folders_and_labels_in_capitals(draft: Draft) -> None:
    for key in list(draft.images):
        path = draft.image_path(key)
        draft.files[path.replace("images", "Images")] = draft.images.pop(key)[1]
    for path in [path for path in draft.files if path.startswith("labels/")]:
        name = path.replace("labels", "Labels").replace(".txt", ".TXT")
        draft.files[name] = draft.files.pop(path)
    draft.files["data.yaml"] = b"train: Images/train\nval: Images/val\nnames: [red, blue]\n"


@odd("yolo", code="bad-annotations", words=("b.txt", "line 1", "2"))
def a_class_beyond_the_names(draft: Draft) -> None:
    draft.files["labels/train/b.txt"] = b"2 .5 .5 .2 .2\n"


@odd("yolo", code="bad-annotations", words=("b.txt",))
def a_label_of_nan(draft: Draft) -> None:
    draft.files["labels/train/b.txt"] = b"1 nan .5 .2 .2\n"


@odd("yolo", code="bad-annotations", words=("b.txt",))
def a_label_of_words(draft: Draft) -> None:
    draft.files["labels/train/b.txt"] = b"blue .5 .5 .2 .2\n"


@odd("yolo", code="no-data", words=("train",))
def no_labels_to_train_on(draft: Draft) -> None:
    for path in [path for path in draft.files if path.startswith("labels/train")]:
        del draft.files[path]


@odd("yolo", code="no-data", words=("train",))
def empty_labels_to_train_on(draft: Draft) -> None:
    for path in [path for path in draft.files if path.startswith("labels/train")]:
        draft.files[path] = b"\n"


# Pascal VOC


def _xml(draft: Draft, change: Callable[[str], bytes]) -> None:
    _replace(draft, ".xml", lambda text: change(text.decode()))


def _declared(encoding: str, mark: str = "é") -> Callable[[str], bytes]:
    def encode(text: str) -> bytes:
        head = f'<?xml version="1.0" encoding="{encoding}"?>\n'
        text = text.replace("<annotation>", f"<annotation><note>{mark}</note>")
        return (head + text).encode(encoding)

    return encode


@odd("voc")
def xml_in_latin_1(draft: Draft) -> None:
    _xml(draft, _declared("ISO-8859-1"))


@odd("voc")
def xml_in_gbk(draft: Draft) -> None:
    _xml(draft, _declared("gb2312", "类别"))


@odd("voc")
def xml_in_utf_16(draft: Draft) -> None:
    _xml(draft, _declared("utf-16"))


@odd("voc")
def xml_with_a_byte_order_mark(draft: Draft) -> None:
    _xml(draft, lambda text: text.encode("utf-8-sig"))


@odd("voc", code="broken-file", words=(".xml",))
def xml_in_an_encoding_that_is_not_named(draft: Draft) -> None:
    _xml(draft, lambda text: text.replace("red", "röd").encode("latin-1"))


@odd("voc", code="broken-file", words=("a.xml",))
def xml_cut_off(draft: Draft) -> None:
    draft.files["Annotations/a.xml"] = draft.files["Annotations/a.xml"][:-30]


@odd("voc")
def xml_in_capitals(draft: Draft) -> None:
    for path in [path for path in draft.files if path.endswith(".xml")]:
        draft.files[path.replace(".xml", ".XML")] = draft.files.pop(path)


@odd("voc")
def file_names_of_other_case_in_xml(draft: Draft) -> None:
    _xml(draft, lambda text: text.replace(".jpg", ".JPG").encode())


@odd("voc")
def lists_with_a_byte_order_mark(draft: Draft) -> None:
    _replace(draft, ".txt", lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))


@odd("voc", code="bad-annotations", words=("a.xml",))
def boxes_without_numbers(draft: Draft) -> None:
    text = draft.files["Annotations/a.xml"]
    draft.files["Annotations/a.xml"] = text.replace(b"<xmin>5<", b"<xmin>left<")


@odd("voc", code="no-data")
def no_objects_in_xml(draft: Draft) -> None:
    for key in SCENES:
        name = draft.images[key][0]
        text = f"<annotation><filename>{name}</filename></annotation>"
        draft.files[f"Annotations/{key[1]}.xml"] = text.encode()


# Label maps


def _maps(draft: Draft, change: Callable[[np.ndarray], bytes]) -> None:
    for key in SCENES:
        draft.files[f"{draft.maps(key[0])}/{key[1]}.png"] = change(label_map(key))


@odd("maps")
def label_maps_in_capitals(draft: Draft) -> None:
    for path in [path for path in draft.files if path.endswith(".png")]:
        draft.files[path.replace(".png", ".PNG")] = draft.files.pop(path)


@odd("maps")
def label_maps_of_other_case(draft: Draft) -> None:
    for path in [path for path in draft.files if path.endswith(".png")]:
        folder, _, name = path.rpartition("/")
        draft.files[f"{folder}/{name.upper()}"] = draft.files.pop(path)


@odd("maps")
def linked_label_maps(draft: Draft) -> None:
    for split in SPLITS:
        for path in [path for path in draft.files if path.startswith(draft.maps(split))]:
            draft.outside[f"maps/{split}/{Path(path).name}"] = draft.files.pop(path)
        draft.links[draft.maps(split)] = f"../../outside/maps/{split}"


@odd("maps")
def label_maps_with_a_palette(draft: Draft) -> None:
    def change(labels: np.ndarray) -> bytes:
        image, file = Image.fromarray(labels), io.BytesIO()
        image.putpalette(np.arange(768, dtype=np.uint8).tobytes())
        image.save(file, "PNG")
        return file.getvalue()

    _maps(draft, change)


@odd("maps")
def label_maps_of_16_bits(draft: Draft) -> None:
    _maps(draft, lambda labels: encoded(labels.astype(np.uint16), "PNG"))


@odd("maps")
def label_maps_with_bytes_after_the_end(draft: Draft) -> None:
    _maps(draft, lambda labels: encoded(labels, "PNG") + b"\0" * 5000)


@odd("maps")
def label_maps_with_an_orientation(draft: Draft) -> None:
    _maps(draft, lambda labels: encoded(labels, "PNG", exif=exif(6)))


@odd("maps")
def a_label_map_of_ignored_pixels(draft: Draft) -> None:
    """Ignore all pixels of one of three training images, which comparisons leave out."""
    ignored = encoded(np.full((HEIGHT, WIDTH), 255, np.uint8), "PNG")
    draft.files[f"{draft.maps('train')}/b.png"] = ignored


@odd("maps", code="no-data", words=("training", "3 label maps"))
def ignored_pixels_alone(draft: Draft) -> None:
    for stem in "abc":
        ignored = encoded(np.full((HEIGHT, WIDTH), 255, np.uint8), "PNG")
        draft.files[f"{draft.maps('train')}/{stem}.png"] = ignored


@odd("maps", code="bad-image", words=("b.png",))
def a_label_map_cut_off(draft: Draft) -> None:
    path = f"{draft.maps('train')}/b.png"
    draft.files[path] = draft.files[path][:-30]


@odd("maps", code="bad-labels", words=("b.png", "48 x 64", "64 x 48"))
def a_turned_label_map(draft: Draft) -> None:
    labels = np.ascontiguousarray(label_map(("train", "b")).T)
    draft.files[f"{draft.maps('train')}/b.png"] = encoded(labels, "PNG")


@odd("maps", code="bad-labels", words=("b.png", "9"))
def a_value_without_a_name(draft: Draft) -> None:
    labels = np.where(label_map(("train", "b")) == 2, 9, 0).astype(np.uint8)
    draft.files[f"{draft.maps('train')}/b.png"] = encoded(labels, "PNG")


@odd("maps", code="bad-labels", words=("b.jpg",))
def no_label_map(draft: Draft) -> None:
    del draft.files[f"{draft.maps('train')}/b.png"]


@odd("maps", code="bad-labels", words=("127", "classes.json"))
def values_of_0_127_and_255(draft: Draft) -> None:
    del draft.files["classes.txt"]
    _maps(draft, lambda labels: encoded(np.array([0, 127, 255], np.uint8)[labels], "PNG"))


@odd("maps", code="broken-file", words=("classes.txt", "line 1"))
def classes_in_latin_1(draft: Draft) -> None:
    draft.files["classes.txt"] = "Straße\nred\nblue\n".encode("latin-1")


@odd("maps", code="bad-labels", words=("classes.json",))
def classes_nested_without_end(draft: Draft) -> None:
    del draft.files["classes.txt"]
    draft.files["classes.json"] = b"[" * 100_000


@odd("maps")
def classes_in_json_with_a_mark(draft: Draft) -> None:
    del draft.files["classes.txt"]
    classes = {"ground": 0, "red": 1, "blue": 2}
    draft.files["classes.json"] = json.dumps(classes).encode("utf-8-sig")


CASES = [
    ("clean", form) for form in FORMATS
] + [(name, form) for name, oddity in ODDITIES.items() for form in oddity.formats]  # fmt: skip
CAN_LINK = hasattr(os, "symlink")
