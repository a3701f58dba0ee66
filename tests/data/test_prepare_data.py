"""tools/prepare_data.py: what the demo set contains, and downloads from a real local server."""

import hashlib
import io
import json
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from support.running import Outcome, assert_error, command, run_here, run_tool

from backbones.errors import InputError
from backbones.openmmlab.data.download import Archive, prepare_archives, reserved, unpack
from backbones.openmmlab.data.shapes import (
    DEMO_GROUNDS,
    DEMO_SHAPES,
    MIN_PIXELS,
    draw_scene,
    polygon_coverage,
    shape_outline,
    write_demo,
)
from backbones.transfer import fetch

SPLITS = (("train", "training", 60), ("val", "validation", 12))


def prepare(*arguments: object) -> Outcome:
    return run_here("prepare_data.py", *arguments)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# The demo set


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepare")
    assert prepare("demo", "--root", root, "--train", 60, "--val", 12).status == 0
    return root / "demo"


@pytest.fixture(scope="module")
def scenes(demo) -> list[tuple[np.ndarray, np.ndarray, list[tuple[dict, np.ndarray]]]]:
    """Picture, label map and (annotation, mask) pairs of every picture, read as a loader would."""
    found = []
    for split, ade_split, count in SPLITS:
        coco = COCO(demo / f"annotations/instances_{split}2017.json")
        images = sorted((demo / "images" / ade_split).iterdir())
        assert len(coco.imgs) == len(images) == count
        for image, path in zip(coco.loadImgs(sorted(coco.imgs)), images, strict=True):
            coco_file = demo / f"{split}2017" / image["file_name"]
            assert coco_file.read_bytes() == path.read_bytes()
            label = Image.open(demo / "annotations" / ade_split / f"{path.stem}.png")
            assert label.mode == "L"
            notes = coco.loadAnns(coco.getAnnIds(image["id"]))
            picture = np.asarray(Image.open(coco_file))
            assert picture.shape == (image["height"], image["width"], 3) == (160, 160, 3)
            masks = [(note, coco.annToMask(note).astype(bool)) for note in notes]
            found.append((picture, np.asarray(label), masks))
    return found


def test_both_layouts_say_the_same_of_every_pixel(scenes):
    for _, label, notes in scenes:
        assert label.min() >= 1 and label.max() <= 8  # all labelled
        owners = np.sum([mask for _, mask in notes], axis=0)
        assert owners.max() == 1  # visible parts do not overlap
        for kind in range(1, 5):
            union = np.zeros_like(label, bool)
            for note, mask in notes:
                union |= mask & (note["category_id"] == kind)
            np.testing.assert_array_equal(label == kind, union)


def test_boxes_and_areas_are_those_of_the_visible_pixels(scenes):
    for _, _, notes in scenes:
        for note, mask in notes:
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert note["bbox"] == box
            assert note["area"] == mask.sum() >= MIN_PIXELS
            assert note["iscrowd"] == 0


def test_the_labels_lie_on_the_coloured_shapes(scenes):
    right = []
    for picture, label, _ in scenes:
        saturation = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[:, :, 1] / 255
        vivid = (
            cv2.blur(saturation, (3, 3)) > 0.45
        )  # shapes have at least 0.55, grounds at most 0.35
        right.append(np.mean(vivid == (label <= 4)))
    assert np.mean(right) > 0.97


def test_the_ground_labels_name_the_textures(scenes):
    """Gradients are smooth; stripes have one direction (structure tensor), the others none."""
    seen = {"gradient": [], "noise": [], "stripes": [], "checks": []}
    for picture, label, _ in scenes:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        grey = cv2.GaussianBlur(grey, (0, 0), 1)
        dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        for value, kind in enumerate(DEMO_GROUNDS, start=5):
            # Away from shapes, their shadows and the other ground.
            clear = cv2.erode((label == value).astype(np.uint8), np.ones((13, 13)), borderValue=0)
            if clear.sum() > 2000:
                x, y = dx[clear > 0], dy[clear > 0]
                strength = np.sqrt(np.mean(x**2 + y**2))
                direction = np.hypot(np.mean(x**2 - y**2), 2 * np.mean(x * y)) / strength**2
                seen[kind].append((strength, direction))
    low, high = {}, {}
    for kind, found in seen.items():
        assert len(found) >= 8
        low[kind], high[kind] = np.min(found, axis=0), np.max(found, axis=0)
    others = ("noise", "stripes", "checks")
    assert high["gradient"][0] < min(low[kind][0] for kind in others)
    assert low["stripes"][1] > 0.8 > 0.5 > max(high["noise"][1], high["checks"][1])


def test_shapes_vary_in_number_size_and_occlusion(scenes):
    counts = [len(notes) for _, _, notes in scenes]
    assert min(counts) == 1 and max(counts) == 6
    areas = np.array([n["area"] for _, _, notes in scenes for n, _ in notes]) / 160**2
    small, large = np.mean(areas < 0.02), np.mean(areas > 0.1)
    assert small > 0.2 and large > 0.1 and small + large < 0.8
    # Circles, squares and triangles are convex: one that is not has another shape before it.
    hidden = []
    for _, _, notes in scenes:
        for note, mask in notes:
            if note["category_id"] != 4:
                y, x = np.nonzero(mask)
                hull = cv2.convexHull(np.stack([x, y], axis=1).astype(np.int32))
                filled = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), hull, 1)
                hidden.append(mask.sum() < 0.9 * filled.sum())
    assert 0.1 < np.mean(hidden) < 0.6


def test_every_class_occurs_under_its_own_name(demo, scenes):
    data = json.loads((demo / "annotations/instances_train2017.json").read_text())
    assert {"info", "licenses", "images", "annotations", "categories"} == set(data)
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert names == dict(enumerate(DEMO_SHAPES, start=1))
    assert [n["id"] for n in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    pixels = np.bincount(np.stack([label for _, label, _ in scenes]).ravel(), minlength=9)
    assert len(pixels) == 1 + len(DEMO_SHAPES) + len(DEMO_GROUNDS)
    assert (pixels[1:] > 0.02 * pixels.sum()).all()


@pytest.mark.parametrize("shape", DEMO_SHAPES)
def test_a_shape_covers_its_area_at_its_place(shape):
    outline = shape_outline(shape, 20.3, 0.4) + (30.7, 40.2)
    x, y = outline.T
    whole = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    cover = polygon_coverage(outline, 80)
    assert cover.sum() == pytest.approx(whole, rel=0.02)
    rows, columns = np.mgrid[:80, :80] + 0.5
    assert (cover * columns).sum() / cover.sum() == pytest.approx(30.7, abs=0.1)
    assert (cover * rows).sum() / cover.sum() == pytest.approx(40.2, abs=0.1)


@pytest.mark.parametrize("kind, shape", list(enumerate(DEMO_SHAPES)))
def test_a_class_folder_holds_pictures_of_its_one_large_shape(demo, kind, shape):
    for split, _, count in SPLITS:
        paths = sorted((demo / "classes" / split / shape).iterdir())
        assert len(paths) == 2 * count
        assert len({path.read_bytes() for path in paths}) == 2 * count
        assert all(Image.open(path).size == (64, 64) for path in paths)
    for seed in range(20):
        _, label, ((found, mask),) = draw_scene(64, np.random.default_rng(seed), only=kind)
        assert found == kind + 1 and (label == found).sum() == mask.sum()
        assert 0.08 < mask.mean() < 0.5


def test_pictures_depend_on_the_seed_and_not_on_their_number(demo, tmp_path):
    for name, seed, train in (("same", 0, 5), ("other", 1, 5)):
        (tmp_path / name).mkdir()
        write_demo(tmp_path / name, 160, dict(train=train, val=3), seed)
    first, same, other = contents(demo), contents(tmp_path / "same"), contents(tmp_path / "other")
    pictures = [name for name in same if name.endswith((".jpg", ".png"))]
    assert len(pictures) == (4 + 4 * 2) * 8  # picture, copy, label map, segments; two of each shape
    assert all(same[name] == first[name] for name in pictures)
    assert all(other[name] != first[name] for name in pictures)
    assert first["train2017/000000000001.jpg"] != first["val2017/000000000001.jpg"]


def test_a_second_run_keeps_the_set_and_other_arguments_replace_it(tmp_path):
    few = ["demo", "--root", str(tmp_path), "--train", "2", "--val", "1"]
    assert prepare(*few).status == 0
    before = (tmp_path / "demo").stat().st_ino
    assert prepare(*few).out.endswith("demo is already there\n")
    assert (tmp_path / "demo").stat().st_ino == before
    assert prepare(*few, "--size", 64).status == 0
    assert Image.open(tmp_path / "demo/train2017/000000000002.jpg").size == (64, 64)
    assert {p.name for p in tmp_path.iterdir()} == {"demo", ".prepare_data.lock"}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/mine.txt").write_text("kept")
    assert_error(prepare("demo", "--root", tmp_path), "broken-file", tmp_path / "demo")
    assert contents(tmp_path / "demo") == {"mine.txt": b"kept"}


# Downloads


class Handler(BaseHTTPRequestHandler):
    """Serves server.files in ranges, cut short as server.cuts says, and notes what it sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range") if server.ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            server.sent.append((asked, 0))
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(server.claimed or len(body) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        piece = body[start : start + server.cuts.pop(0) if server.cuts else None]
        server.sent.append((asked, len(piece)))
        self.wfile.write(piece)
        if server.claimed:
            server.stalled.wait(30)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.cuts, server.sent, server.ranges = {}, [], [], True
        server.claimed, server.stalled = None, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.stalled.set()
        server.shutdown()


def zipped(*members: str) -> bytes:
    """A zip file, each of its members 40 kB that do not compress."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, name in enumerate(members):
            archive.writestr(name, np.random.default_rng(number).bytes(40_000))
    return file.getvalue()


@pytest.fixture
def archive(server) -> Archive:
    body = zipped("set/a/1.bin", "set/a/2.bin", "set/b.bin", "__MACOSX/junk")
    server.files["/set.zip"] = body
    md5 = hashlib.md5(body).hexdigest()
    return Archive(f"{server.url}/set.zip", len(body), md5, "real/set")


def test_download_unpack_and_nothing_the_second_time(server, archive, tmp_path, capsys):
    prepare_archives(tmp_path, (archive,))
    assert set(contents(tmp_path)) == {
        "downloads/set.zip",
        "real/set/a/1.bin",
        "real/set/a/2.bin",
        "real/set/b.bin",
    }
    assert (tmp_path / "real/set/a/1.bin").read_bytes() == np.random.default_rng(0).bytes(40_000)
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["set"]
    prepare_archives(tmp_path, (archive,))
    assert "is already there" in capsys.readouterr().out
    assert server.sent == [(None, archive.size)]


@pytest.mark.parametrize("known", [True, False], ids=["known size", "unknown size"])
def test_a_partial_file_is_continued(server, archive, tmp_path, known):
    body = server.files["/set.zip"]
    archive = archive if known else replace(archive, size=None)
    (tmp_path / "set.zip.part").write_bytes(body[:70_000])
    path = fetch(archive, tmp_path)
    assert path.read_bytes() == body
    assert server.sent == [("bytes=70000-", len(body) - 70_000)]
    assert [p.name for p in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.parametrize("known", [True, False], ids=["known size", "unknown size"])
def test_a_complete_partial_file_is_only_checked(server, archive, tmp_path, known):
    body = server.files["/set.zip"]
    archive = archive if known else replace(archive, size=None)
    (tmp_path / "set.zip.part").write_bytes(body)
    assert fetch(archive, tmp_path).read_bytes() == body
    assert sum(sent for _, sent in server.sent) == 0


def test_a_broken_connection_is_taken_up_again(server, archive, tmp_path):
    body = server.files["/set.zip"]
    server.cuts = [50_000, 0, 20_000]
    assert fetch(archive, tmp_path, patience=0.01).read_bytes() == body
    rest = len(body) - 70_000
    assert server.sent == [
        (None, 50_000),
        ("bytes=50000-", 0),
        ("bytes=50000-", 20_000),
        ("bytes=70000-", rest),
    ]


def test_a_server_without_ranges_sends_all_of_it(server, archive, tmp_path):
    server.ranges = False
    (tmp_path / "set.zip.part").write_bytes(b"x" * 1000)
    assert fetch(archive, tmp_path).read_bytes() == server.files["/set.zip"]


def test_a_connection_that_stays_broken_ends_and_keeps_what_came(server, archive, tmp_path):
    server.cuts = [50_000] + [0] * 9
    with pytest.raises(InputError, match="50000") as caught:
        fetch(archive, tmp_path, patience=0.001)
    assert (caught.value.code, caught.value.where) == ("download-failed", archive.url)
    assert server.sent == [(None, 50_000)] + 5 * [("bytes=50000-", 0)]
    assert (tmp_path / "set.zip.part").stat().st_size == 50_000


def test_a_wrong_checksum_is_not_kept(archive, tmp_path):
    wrong = replace(archive, md5="0" * 32)
    with pytest.raises(InputError, match=archive.md5) as caught:
        fetch(wrong, tmp_path)
    assert caught.value.code == "download-failed"
    assert not any(tmp_path.iterdir())


def test_a_file_put_there_by_hand_is_checked_and_used(server, archive, tmp_path):
    place = tmp_path / "set.zip"
    place.write_bytes(server.files["/set.zip"])
    assert fetch(archive, tmp_path) == place
    place.write_bytes(b"x" * archive.size)
    with pytest.raises(InputError) as caught:
        fetch(archive, tmp_path)
    assert (caught.value.code, caught.value.where) == ("broken-file", str(place))
    assert place.exists() and not server.sent


def test_a_file_of_another_size_is_not_even_begun(archive, tmp_path):
    with pytest.raises(InputError, match=rf"{archive.size} .* 99") as caught:
        fetch(replace(archive, size=99), tmp_path)
    assert caught.value.code == "download-failed"
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_the_download(server, archive, tmp_path):
    server.claimed = 10**18
    huge = replace(archive, size=10**18)
    with pytest.raises(InputError, match="2000000000.0 GB") as caught:
        fetch(huge, tmp_path, copies=2)
    assert caught.value.code == "no-space"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("member", ["../evil", "set/../../evil", "/evil", "set\\..\\..\\evil"])
def test_a_member_outside_the_folder_is_refused(tmp_path, member):
    path = tmp_path / "bad.zip"
    path.write_bytes(zipped("set/good", member))
    with pytest.raises(InputError) as caught:
        unpack(path, tmp_path / "real/set")
    assert caught.value.code == "broken-file"
    assert set(contents(tmp_path)) == {"bad.zip"}


def test_a_damaged_or_foreign_zip_leaves_nothing(tmp_path):
    good = zipped("set/a", "set/b")
    path = tmp_path / "set.zip"
    flipped = bytearray(good)
    flipped[60_000] ^= 1
    for body in (good[:50_000], bytes(flipped), zipped("other/a")):
        path.write_bytes(body)
        with pytest.raises(InputError) as caught:
            unpack(path, tmp_path / "real/set")
        assert (caught.value.code, caught.value.where) == ("broken-file", str(path))
        assert set(contents(tmp_path)) == {"set.zip"}


# What the user sees


def test_no_server_no_file_and_another_file_are_one_line_each(server, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        nobody = f"http://127.0.0.1:{closed.server_port}"
    place = tmp_path / "downloads/ADEChallengeData2016.zip"
    for mirror, word in ((nobody, "refused"), (f"{server.url}/folder/", "404")):
        done = prepare("ade20k", "--root", tmp_path, "--mirror", mirror)
        url = f"{mirror.rstrip('/')}/ADEChallengeData2016.zip"
        assert_error(done, "download-failed", word, url, place)
    server.files["/annotations_trainval2017.zip"] = b"<html>log in first</html>"
    done = prepare("coco", "--root", tmp_path, "--mirror", server.url)
    assert_error(done, "download-failed", "25 bytes", 252907541)
    assert set(contents(tmp_path)) == {".prepare_data.lock"}


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["demo", "--root", "absent/data"], "not-found", "absent"),
        (["coco", "--root", "file"], "write-failed", "file"),
        (["ade20k", "--root", "file/data"], "not-found", "file"),
    ],
)
def test_a_root_that_cannot_be_is_one_line(tmp_path, monkeypatch, arguments, code, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert_error(prepare(*arguments), code, name)
    assert set(contents(tmp_path)) == {"file"}


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--size", "10"], ["demo", "--val", "0"], ["coco", "--mirror", "here"], ["voc"], []],
)
def test_a_wrong_argument_is_named(arguments):
    outcome = prepare(*arguments)
    assert outcome.status == 2 and "error: " in outcome.last_line


def test_a_failing_write_leaves_nothing(tmp_path):
    # Files of the process end at 2000 bytes, as they would on a full disk.
    done = run_tool("prepare_data.py", "demo", "--root", tmp_path, cwd=tmp_path, largest_file=2000)
    assert_error(done, "write-failed", "File too large")
    assert set(contents(tmp_path)) == {".prepare_data.lock"}


def interrupt(arguments: list[object], ready: Path) -> tuple[int, str]:
    """Run the tool until a file has something in it, send Ctrl-C; exit status and stderr."""
    process = subprocess.Popen(
        command("prepare_data.py", *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(12000):
            if ready.exists() and ready.stat().st_size:
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stderr


def test_ctrl_c_while_drawing_leaves_nothing(tmp_path):
    status, stderr = interrupt(
        ["demo", "--root", tmp_path, "--train", "1000000"],
        tmp_path / ".demo.part/train2017/000000000003.jpg",
    )
    assert status == 130 and "Traceback" not in stderr
    assert set(contents(tmp_path)) == {".prepare_data.lock"}


def test_ctrl_c_in_a_download_keeps_what_came_and_a_second_run_waits_outside(server, tmp_path):
    server.files["/annotations_trainval2017.zip"] = b"x" * 100_000
    server.claimed = 252907541
    part = tmp_path / "downloads/annotations_trainval2017.zip.part"
    arguments = ["coco", "--root", tmp_path, "--mirror", server.url]
    status, stderr = interrupt(arguments, part)
    assert status == 130 and "Traceback" not in stderr
    assert set(part.read_bytes()) == set(b"x")
    with reserved(tmp_path):
        assert_error(prepare(*arguments), "unsupported", tmp_path)
