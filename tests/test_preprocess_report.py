"""Images that are skipped, doubled or turned are counted and named in preprocess's report."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.preprocess.__main__ import main
from stages.shared.artifacts import MANIFEST, TEST_SPLIT, TRAIN_SPLIT
from stages.shared.dataset import load_manifest, load_test_files, load_train_split
from tests.preprocess_project import IMAGES, draw, draw_splits, enter_project, noise, report


@pytest.fixture
def project(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


def test_training_copies_of_test_images_are_removed_counted_and_named(project):
    draw_splits()
    draw("train/hot/copy.bmp", np.asarray(Image.open(IMAGES / "test/hot/1.png")))
    draw("train/not/largest.bmp", noise(5, 47, 40))
    shutil.copy(IMAGES / "train/not/largest.bmp", IMAGES / "test/not/largest.bmp")
    main()
    manifest = load_manifest(MANIFEST)
    assert len(manifest.train) == 6
    assert len(load_test_files(TEST_SPLIT)) == 5
    assert manifest.side == 30  # the canvas of what is left, and the rows of what is left
    for row, entry in enumerate(manifest.train):
        original = np.asarray(Image.open(IMAGES / entry.path))
        np.testing.assert_array_equal(load_train_split(TRAIN_SPLIT).pixels[row, : len(original), :30], original)
    assert report()["duplicates"]["removed_from_train"] == 2
    assert report()["names"]["removed_from_train"] == [
        "train/hot/copy.bmp = test/hot/1.png",
        "train/not/largest.bmp = test/not/largest.bmp",
    ]


def test_copies_within_a_split_stay_and_are_counted(project):
    draw_splits()
    for name in ("x", "y"):
        shutil.copy(IMAGES / "train/hot/0.png", IMAGES / f"train/hot/{name}.png")
    shutil.copy(IMAGES / "test/hot/0.png", IMAGES / "test/hot/x.png")
    main()
    assert report()["duplicates"] == {
        "within_train": 2,
        "within_test": 1,
        "removed_from_train": 0,
        "conflicting_labels": 0,
    }
    assert report()["train"]["images"] == 8


def test_one_content_under_two_labels_is_named(project):
    draw_splits()
    shutil.copy(IMAGES / "train/hot/0.png", IMAGES / "train/not/x.png")
    shutil.copy(IMAGES / "test/hot/0.png", IMAGES / "train/not/y.png")
    main()
    assert report()["duplicates"]["conflicting_labels"] == 2
    assert sorted(report()["names"]["conflicting_labels"]) == [
        "test/hot/0.png = train/not/y.png",
        "train/hot/0.png = train/not/x.png",
    ]
    assert "train/not/y.png" not in load_manifest(MANIFEST).train_paths


def test_unusable_files_are_skipped_counted_and_named(project):
    draw_splits()
    (IMAGES / "train/hot/notes.txt").write_text("hello")
    (IMAGES / "train/hot/cut.png").write_bytes((IMAGES / "train/hot/0.png").read_bytes()[:500])
    (IMAGES / "test/not/late.bmp").write_bytes(b"BM")
    (IMAGES / "train/hot/bomb.ppm").write_bytes(b"P6 60000 60000 255 ")
    (IMAGES / "README.md").write_text("about")
    (IMAGES / "extra" / "hot").mkdir(parents=True)
    (IMAGES / "train/loose.png").write_bytes(b"")
    main()
    result = report()
    assert result["skipped"] == {"not_image": 1, "too_large": 1, "corrupt": 2, "outside_classes": 3}
    assert [Path(text.split(": ")[0]).name for text in result["names"]["corrupt"]] == ["late.bmp", "cut.png"]
    assert "notes.txt: content is none of JPEG" in result["names"]["not_image"][0]
    assert "bomb.ppm: holds more than 67,108,864 pixels" in result["names"]["too_large"][0]
    assert result["names"]["outside_classes"] == ["README.md", "extra", "train/loose.png"]
    assert result["train"] == {"images": 6, "classes": {"hot": 3, "not": 3}}


def test_a_failed_image_leaves_no_gap_in_the_rows(project):
    draw_splits()
    (IMAGES / "train/hot/1.png").write_bytes((IMAGES / "train/hot/1.png").read_bytes()[:900])  # found only on decoding
    main()
    split, manifest = load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST)
    assert len(split) == len(manifest.train) == 5
    for row, entry in enumerate(manifest.train):
        original = np.asarray(Image.open(IMAGES / entry.path))
        np.testing.assert_array_equal(split.pixels[row, : len(original), :30], original)


def test_names_in_the_report_are_capped(project):
    draw_splits()
    for i in range(130):
        (IMAGES / f"train/hot/{i:03}.txt").write_text("hello")
    main()
    assert report()["skipped"]["not_image"] == 130
    assert len(report()["names"]["not_image"]) == 101
    assert report()["names"]["not_image"][-1] == "and 30 more"


def test_modes_and_turned_images_are_counted_and_stored_upright(project):
    draw_splits()
    exif = Image.Exif()
    exif[0x0112] = 6
    draw("train/hot/turned.png", noise(1, 20, 30), exif=exif)
    draw("train/not/gray.png", noise(2)[..., 0])
    draw("test/not/deep.png", noise(3)[..., 0].astype(np.uint16) * 257)
    main()
    split, paths = load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST).train_paths
    row = paths.index("train/hot/turned.png")
    assert split.sizes[row].tolist() == [30, 20]
    np.testing.assert_array_equal(split.pixels[row, :30, :20], np.rot90(noise(1, 20, 30), -1))
    assert report()["exif_rotated"] == 1
    assert report()["modes"] == {"I;16": 1, "L": 1, "RGB": 11}


def test_nested_folders_belong_to_their_class_and_hidden_ones_to_none(project):
    draw_splits()
    draw("train/hot/more/deep/x.png", noise(50))
    draw("train/.cache/x.png", noise(51))
    draw("__MACOSX/train/x.png", noise(52))
    main()
    assert "train/hot/more/deep/x.png" in load_manifest(MANIFEST).train_paths
    assert report()["names"]["outside_classes"] == ["__MACOSX", "train/.cache"]
    assert report()["train"]["images"] == 7


def test_links_are_not_followed(project):
    draw_splits()
    draw("../elsewhere/x.png", noise(60))
    (IMAGES / "train/hot/link.png").symlink_to((IMAGES / "../elsewhere/x.png").resolve())
    (IMAGES / "train/not/folder").symlink_to((IMAGES / "../elsewhere").resolve())
    main()
    assert report()["train"]["images"] == 6


def test_names_that_are_not_utf8_are_escaped(project):
    draw_splits()
    folder = os.fsencode(IMAGES / "train" / "hot")
    try:
        Path(os.fsdecode(folder + b"/caf\xe9.png")).write_bytes((IMAGES / "train/hot/0.png").read_bytes())
        Path(os.fsdecode(folder + b"/caf\xe9.txt")).write_bytes(b"hello")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    main()
    assert "train/hot/caf\\xe9.png" in load_manifest(MANIFEST).train_paths
    assert "caf\\xe9.txt" in report()["names"]["not_image"][0]
