"""The stored data set comes back as it was stored, or the error names the file and what to do."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.shared.dataset import (
    Entry,
    Manifest,
    TestFile,
    TestSplit,
    TrainSplit,
    chunks_of_crops,
    fixed_crops,
    load_manifest,
    load_test_files,
    load_test_pixels,
    load_test_split,
    load_train_split,
    pack_canvas,
    save_manifest,
    save_test_files,
)
from stages.shared.transforms import Transform

MANIFEST = Manifest(
    class_names=("hotdog", "not-hotdog"),
    digest="0" * 64,
    transform=Transform(32, 24, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    max_side=64,
    side=8,
    train=(Entry("train/hotdog/ä.png", 0, "1" * 64), Entry("train/not-hotdog/b.png", 1, "2" * 64)),
)


def store_train(folder, num=3, side=8):
    np.save(folder / "pixels.npy", np.arange(num * side * side * 3).reshape(num, side, side, 3).astype(np.uint8))
    np.save(folder / "sizes.npy", np.full((num, 2), side, np.int32))
    np.save(folder / "labels.npy", np.arange(num, dtype=np.int64) % 2)


def test_train_split_is_memory_mapped_and_whole(tmp_path):
    store_train(tmp_path)
    split = load_train_split(tmp_path)
    assert isinstance(split.pixels, np.memmap)
    assert len(split) == 3
    np.testing.assert_array_equal(split.pixels, np.load(tmp_path / "pixels.npy"))
    np.testing.assert_array_equal(split.labels, [0, 1, 0])


def store_test(folder):
    store_train(folder)
    (folder / "images").mkdir()
    (folder / "pixels.npy").rename(folder / "images/pixels.npy")


def test_test_split_is_memory_mapped_and_whole(tmp_path):
    store_test(tmp_path)
    split = load_test_split(tmp_path)
    assert isinstance(split.pixels, np.memmap)
    assert len(split) == 3


@pytest.mark.parametrize("name", ["pixels", "sizes", "labels"])
def test_a_missing_file_is_named(tmp_path, name):
    store_train(tmp_path)
    (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(ValueError, match=rf"{name}\.npy: no such file; run preprocess"):
        load_train_split(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 64, 200])
def test_a_file_cut_short_is_named(tmp_path, keep):
    store_train(tmp_path)
    whole = (tmp_path / "pixels.npy").read_bytes()
    (tmp_path / "pixels.npy").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"pixels\.npy: not a whole array file .*run preprocess again"):
        load_train_split(tmp_path)


def test_a_pickled_array_is_refused(tmp_path):
    store_train(tmp_path)
    np.save(tmp_path / "labels.npy", np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels\.npy: not a whole array"):
        load_train_split(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels", np.zeros(2, np.int64), r"labels are int64 \(2,\), expected int64 \(3,\)"),
        ("labels", np.zeros(3, np.int32), "labels are int32"),
        ("labels", np.array([0, -1, 0]), "label -1 is negative"),
        ("sizes", np.full((3, 2), 9, np.int32), "sizes reach from 9 to 9, expected 1 to 8"),
        ("sizes", np.zeros((3, 2), np.int32), "sizes reach from 0 to 0"),
        ("sizes", np.ones((3, 2), np.int64), "sizes are int64"),
        ("sizes", np.ones((2, 2), np.int32), r"sizes are int32 \(2, 2\)"),
        ("pixels", np.zeros((3, 8, 8, 3), np.float32), "pixels are float32"),
        ("pixels", np.zeros((3, 8, 7, 3), np.uint8), r"pixels are uint8 \(3, 8, 7, 3\)"),
        ("pixels", np.zeros((3, 8, 8), np.uint8), "pixels are uint8"),
        ("pixels", np.zeros((3, 8, 8, 4), np.uint8), "pixels are uint8"),
    ],
)
def test_inconsistent_files_are_refused_with_the_folder_named(tmp_path, name, array, message):
    store_train(tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(ValueError, match=f"{tmp_path.name}: .*{message}.*run preprocess again"):
        load_train_split(tmp_path)


def test_inconsistent_test_split_is_refused(tmp_path):
    store_test(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(4, np.int64))
    with pytest.raises(ValueError, match=r"labels are int64 \(4,\).*run preprocess again"):
        load_test_split(tmp_path)


def test_splits_can_be_built_from_plain_arrays():
    pixels, sizes = pack_canvas([np.ones((2, 3, 3), np.uint8)], side=4)
    assert len(TrainSplit(pixels, sizes, np.array([1]))) == 1
    assert len(TestSplit(pixels, np.array([1]))) == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=5), st.integers(0, 4))
def test_canvas_holds_each_image_top_left_and_zeros_elsewhere(shapes, slack):
    images = [
        np.random.default_rng(row).integers(1, 256, (*shape, 3), dtype=np.uint8) for row, shape in enumerate(shapes)
    ]
    side = max((max(shape) for shape in shapes), default=1) + slack
    pixels, sizes = pack_canvas(images, side)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (len(images), side, side, 3))
    assert sizes.dtype == np.int32
    for row, image in enumerate(images):
        height, width = sizes[row]
        np.testing.assert_array_equal(pixels[row, :height, :width], image)
        assert np.count_nonzero(pixels[row]) == image.size  # every pixel of the image is at least 1


def test_manifest_survives_the_round_trip(tmp_path):
    save_manifest(tmp_path / "manifest.json", MANIFEST)
    assert load_manifest(tmp_path / "manifest.json") == MANIFEST
    assert MANIFEST.train_paths == ("train/hotdog/ä.png", "train/not-hotdog/b.png")


def test_test_files_survive_the_round_trip(tmp_path):
    files = (TestFile("test/hotdog/ä.png", "3" * 64), TestFile("test/hotdog/c.png", "4" * 64))
    save_test_files(tmp_path, files)
    assert load_test_files(tmp_path) == files


@pytest.mark.parametrize("text", ["", "{", "1", '[{"a": 1}]', "[3]"])
def test_anything_else_is_no_list_of_test_files(tmp_path, text):
    with pytest.raises(ValueError, match=r"files\.json: no such file; run preprocess"):
        load_test_files(tmp_path)
    (tmp_path / "files.json").write_text(text)
    with pytest.raises(ValueError, match=r"files\.json: not a list of test files .*run preprocess again"):
        load_test_files(tmp_path)


def test_test_images_are_read_without_their_labels(tmp_path):
    store_test(tmp_path)
    (tmp_path / "labels.npy").unlink()
    assert load_test_pixels(tmp_path).shape == (3, 8, 8, 3)
    with pytest.raises(ValueError, match=r"labels\.npy: no such file"):
        load_test_split(tmp_path)


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json: no such file; run preprocess"):
        load_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("key", ["class_names", "digest", "side", "train"])
def test_manifest_without_a_key_is_refused(tmp_path, key):
    save_manifest(tmp_path / "manifest.json", MANIFEST)
    values = json.loads((tmp_path / "manifest.json").read_text())
    del values[key]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest .*run preprocess again"):
        load_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"train": 3}', '{"train": [{"a": 1}], "side": 8}', "\x80"])
def test_anything_else_is_not_a_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="not a manifest"):
        load_manifest(tmp_path / "manifest.json")


def test_training_images_are_cropped_without_the_canvas_around_them():
    pixels = np.zeros((2, 100, 100, 3), np.uint8)
    pixels[0, :40, :60], pixels[1, :90, :90] = 200, 100
    train = TrainSplit(pixels, np.array([[40, 60], [90, 90]], np.int32), np.array([0, 1]))
    crops = fixed_crops(train, [1, 0], Transform(36, 32, (0.5,) * 3, (0.5,) * 3))
    assert crops.shape == (2, 32, 32, 3)
    assert (crops[0] == 100).all()
    assert (crops[1] == 200).all()


@pytest.mark.parametrize("rows", [range(5), np.array([4, 0, 2]), []])
def test_chunks_of_crops_are_the_crops_a_few_at_a_time(rows):
    pixels, sizes = pack_canvas([np.full((40 + row, 60, 3), row, np.uint8) for row in range(5)], 64)
    train, transform = TrainSplit(pixels, sizes, np.zeros(5, np.int64)), Transform(36, 32, (0.5,) * 3, (0.5,) * 3)
    chunks = list(chunks_of_crops(train, rows, transform, 2))
    assert all(len(chunk) == 2 for chunk in chunks[:-1])
    assert [int(crop[0, 0, 0]) for chunk in chunks for crop in chunk] == list(rows)
