"""The preprocess stage on small drawn folders: what comes out is what training and evaluation need, or a named error."""

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.preprocess.__main__ import main
from stages.preprocess.find import find_images
from stages.preprocess.store import shrink
from stages.shared.artifacts import MANIFEST, TEST_SPLIT, TRAIN_SPLIT
from stages.shared.dataset import load_manifest, load_test_files, load_test_split, load_train_split
from stages.shared.params import load_params
from tests.preprocess_project import (
    CROP,
    IMAGES,
    MAX_SIDE,
    PHOTOS,
    RESIZE,
    draw,
    draw_splits,
    enter_project,
    noise,
    outputs,
    report,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


def test_training_images_stand_on_the_canvas_as_they_were(project):
    draw_splits()
    main()
    split, manifest = load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST)
    assert split.pixels.shape == (6, 30, 30, 3)
    assert manifest.side == 30
    assert manifest.train_paths == tuple(f"train/{name}/{i}.png" for name in ("hot", "not") for i in range(3))
    np.testing.assert_array_equal(split.labels, [0, 0, 0, 1, 1, 1])
    for row, entry in enumerate(manifest.train):
        original = np.asarray(Image.open(IMAGES / entry.path))
        height, width = split.sizes[row]
        assert (height, width) == original.shape[:2]
        np.testing.assert_array_equal(split.pixels[row, :height, :width], original)
        assert np.count_nonzero(split.pixels[row]) == original.size


def expected_crop(image: Image.Image) -> np.ndarray:
    """Torchvision's on Pillow's image, whose width is resized first, which Pillow 13 does not do by itself for a tall one."""
    across = image.resize((RESIZE, image.height), Image.Resampling.BILINEAR)
    return np.asarray(T.Compose([T.Resize([RESIZE, RESIZE]), T.CenterCrop(CROP)])(across))


def test_test_images_are_bitwise_what_torchvision_feeds(project):
    draw_splits()
    draw("test/hot/large.png", noise(1, 300, 211))
    draw("test/not/photo.jpg", noise(2, 90, 50))
    main()
    split, files = load_test_split(TEST_SPLIT), load_test_files(TEST_SPLIT)
    assert split.pixels.shape == (6, CROP, CROP, 3)
    assert "test/hot/large.png" in [file.path for file in files]
    for row, entry in enumerate(files):
        assert np.array_equal(split.pixels[row], expected_crop(Image.open(IMAGES / entry.path)))
        assert split.labels[row] == (entry.path.split("/")[1] == "not")


def test_large_training_images_are_downscaled_with_antialias(project):
    draw_splits()
    draw("train/hot/large.png", noise(1, 96, 120))
    main()
    split, manifest = load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST)
    row = manifest.train_paths.index("train/hot/large.png")
    image = torch.from_numpy(noise(1, 96, 120)).permute(2, 0, 1)
    expected = T.Resize([38, 48], antialias=True)(image).permute(1, 2, 0)
    assert split.pixels.shape[1] == manifest.side == MAX_SIDE
    assert split.sizes[row].tolist() == [38, 48]
    np.testing.assert_array_equal(split.pixels[row, :38, :48], expected)
    assert report()["downscaled"] == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 64))
def test_shrinking_keeps_the_aspect_within_a_pixel(height, width, max_side):
    image = np.zeros((height, width, 3), np.uint8)
    shrunk = shrink(image, max_side)
    assert shrunk.dtype == np.uint8
    if max(height, width) <= max_side:
        assert shrunk is image
    else:
        assert max(shrunk.shape[:2]) == max_side
        scale = max_side / max(height, width)
        assert abs(shrunk.shape[0] - height * scale) <= 0.5 or shrunk.shape[0] == 1
        assert abs(shrunk.shape[1] - width * scale) <= 0.5 or shrunk.shape[1] == 1


def test_extreme_aspect_ratios_are_kept(project):
    draw_splits()
    draw("train/hot/line.png", noise(1, 1, 20_000))
    draw("train/not/dot.png", noise(2, 1, 1))
    draw("test/hot/line.png", noise(3, 20_000, 1))
    main()
    split, paths = load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST).train_paths
    assert split.sizes[paths.index("train/hot/line.png")].tolist() == [1, MAX_SIDE]
    assert split.sizes[paths.index("train/not/dot.png")].tolist() == [1, 1]
    assert report()["test"]["images"] == 5


def test_two_runs_write_the_same_bytes(project):
    draw_splits()
    draw("train/hot/broken.png", noise(1))
    (IMAGES / "train/hot/broken.png").write_bytes(b"\x89PNG")
    main()
    first = outputs()
    assert {str(path) for path in first} == {
        *("train/pixels.npy", "train/sizes.npy", "train/labels.npy", "test/images/pixels.npy", "test/labels.npy"),
        *("test/files.json", "test/labels_before_fixes.npy", "manifest.json", "report.json"),
    }
    main()
    assert outputs() == first


def test_content_digest_covers_shape_and_pixels_and_not_the_file(project):
    pixels = noise(1, 4, 9)
    draw_splits()
    draw("test/hot/a.png", pixels)
    draw("test/hot/b.bmp", pixels)
    draw("test/hot/c.png", pixels.reshape(9, 4, 3))
    main()
    digests = {entry.path: entry.sha256 for entry in load_test_files(TEST_SPLIT)}
    assert digests["test/hot/a.png"] == hashlib.sha256(b"(4, 9, 3)" + pixels.tobytes()).hexdigest()
    assert digests["test/hot/a.png"] == digests["test/hot/b.bmp"] != digests["test/hot/c.png"]


def test_data_digest_follows_content_and_sizes_but_not_names(project):
    def digest():
        main()
        return load_manifest(MANIFEST).digest

    draw_splits()
    first = digest()
    (IMAGES / "train/hot/2.png").rename(IMAGES / "train/hot/9.png")  # still the last of its class
    assert digest() == first
    draw("test/hot/9.png", noise(78))  # no part of what is trained on
    assert digest() == first
    draw("train/hot/9.png", noise(77))
    second = digest()
    assert second != first
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace(f"resize: {RESIZE}", f"resize: {RESIZE + 1}"), encoding="utf-8")
    assert digest() != second


def test_missing_images_say_to_run_download(project):
    IMAGES.rmdir()
    with pytest.raises(ValueError, match="images: no such folder; run download"):
        main()


@pytest.mark.parametrize("folders", [[], ["hot"], ["train/hot", "test/hot"], ["train/hot", "train/not", "test/hot"]])
def test_fewer_than_two_classes_are_refused(project, folders):
    for folder in folders:
        (IMAGES / folder).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"a classifier needs two class folders or more, found (none|hot); add the others"
    ):
        main()


@pytest.mark.parametrize(("present", "absent"), [("train", "test"), ("test", "train")])
def test_one_split_without_the_other_is_refused(project, present, absent):
    for name in ("hot", "not"):
        draw(f"{present}/{name}/0.png", noise(0))
    (IMAGES / "extra").mkdir()
    with pytest.raises(ValueError, match=rf"has {present}/ but not its counterpart \(folders: .*extra.*\); give both"):
        main()


def test_a_class_in_one_split_only_is_refused(project):
    draw_splits()
    (IMAGES / "test/not").rename(IMAGES / "test/nut")
    with pytest.raises(ValueError, match=r"train and .*test differ in class folders: not, nut; give both the same"):
        main()


@pytest.mark.parametrize("folder", ["train/hot", "test/not"])
def test_an_empty_class_is_named(project, folder):
    draw_splits()
    shutil.rmtree(IMAGES / folder)
    (IMAGES / folder).mkdir()
    with pytest.raises(
        ValueError, match=rf"no usable image in class folder .*images/{folder} \(it holds no file\); add images"
    ):
        main()


def test_a_class_without_usable_files_is_named_with_the_first_reason(project):
    for i in range(3):
        draw(f"hot/{i}.png", noise(i))
        (IMAGES / "not").mkdir(exist_ok=True)
        (IMAGES / f"not/{i}.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        ValueError, match=r"images/not \(none of its 3 files can be used, the first because .*not/0\.png: content is"
    ):
        main()


def test_a_class_wholly_in_the_test_split_is_named(project):
    draw_splits()
    for i in range(3):
        shutil.copy(IMAGES / f"train/hot/{i}.png", IMAGES / f"test/hot/copy{i}.png")
    with pytest.raises(
        ValueError, match="class hot: every training image is in the test split too; add training images"
    ):
        main()


def test_a_full_disk_is_told_before_anything_is_decoded(project, monkeypatch):
    draw_splits()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        ValueError, match=r"train\.npy: no room for 0\.0 GB \(No space left on device\); free disk space"
    ):
        main()
    assert list(MANIFEST.parent.iterdir()) == []


def test_a_failed_run_leaves_the_last_result_and_no_scratch(project):
    draw_splits()
    main()
    before = outputs()
    shutil.rmtree(IMAGES / "train/hot")
    (IMAGES / "train/hot").mkdir()
    with pytest.raises(ValueError, match="no usable image"):
        main()
    assert outputs() == before


def test_scratch_of_a_killed_run_is_cleared(project):
    draw_splits()
    (MANIFEST.parent / ".staging" / "train").mkdir(parents=True)
    (MANIFEST.parent / ".staging" / "train" / "pixels.npy").write_bytes(b"half")
    main()
    assert sorted(path.name for path in MANIFEST.parent.iterdir()) == ["manifest.json", "report.json", "test", "train"]


def test_an_earlier_result_is_replaced_and_not_written_into(project):
    draw_splits()
    main()
    kept = project / "cache.npy"
    os.link(TRAIN_SPLIT / "pixels.npy", kept)  # as DVC's cache may hold it
    content = kept.read_bytes()
    draw("train/hot/0.png", noise(99))
    main()
    assert kept.read_bytes() == content
    assert (TRAIN_SPLIT / "pixels.npy").read_bytes() != content


def test_layout_is_read_in_sorted_order(project):
    for name in ("b", "a", "C"):
        for i in (2, 0, 1):
            draw(f"{name}/{i}.png", noise(i))
    layout = find_images(IMAGES)
    assert layout.class_names == ("C", "a", "b")
    assert [source.path for source in layout.sources] == [
        f"{name}/{i}.png" for name in ("C", "a", "b") for i in range(3)
    ]
    assert [source.label for source in layout.sources] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_handful_of_real_photos_goes_through(project):
    if not PHOTOS.exists():
        pytest.skip(f"{PHOTOS.name}: the real photos are not here")
    with zipfile.ZipFile(PHOTOS) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = [
            n for split in ("train", "test") for c in ("hotdog", "not-hotdog") for n in names if f"/{split}/{c}/" in n
        ][::25]
        for name in chosen:
            path = IMAGES / name.removeprefix("hotdog/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
    main()
    result, params = report(), load_params()
    assert result["train"]["images"] + result["test"]["images"] == len(chosen) >= 8
    assert sum(result["skipped"].values()) == 0
    assert result["canvas_side"] == params.preprocess.max_side
    for entry, pixels in zip(load_test_files(TEST_SPLIT), load_test_split(TEST_SPLIT).pixels, strict=True):
        assert np.array_equal(pixels, expected_crop(Image.open(IMAGES / entry.path).convert("RGB")))
