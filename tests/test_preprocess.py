"""The preprocess stage on small drawn folders: what comes out is what training and evaluation need, or a named error."""

import hashlib
import json
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

from stages.preprocess import store
from stages.preprocess.__main__ import main
from stages.preprocess.find import Source, find_images
from stages.preprocess.split import split_images
from stages.preprocess.store import shrink
from stages.shared.artifacts import MANIFEST, PREPROCESS_REPORT, SOURCE_DATASET, TEST_SPLIT, TRAIN_SPLIT
from stages.shared.dataset import load_manifest, load_test_files, load_test_split, load_train_split
from stages.shared.params import load_params

PROJECT = Path(__file__).parent.parent
PHOTOS = PROJECT.parent / "shared" / "real" / "hotdog-small.zip"
IMAGES = SOURCE_DATASET / "images"
RESIZE, CROP, MAX_SIDE = 40, 32, 48


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder with small sizes in its params.yaml, as the working folder."""
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    for key, value in (("resize: 256", RESIZE), ("crop: 224", CROP), ("max_side: 512", MAX_SIDE)):
        assert text.count(key) == 1
        text = text.replace(key, f"{key.split(':')[0]}: {value}")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    shutil.copy(PROJECT / "fixes.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    IMAGES.mkdir(parents=True)
    return tmp_path


def noise(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(
        1, 256, (height, width, 3), dtype=np.uint8
    )  # no zeros, as on the canvas


def draw(path, pixels, **options):
    path = IMAGES / path
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def draw_splits(train=3, test=2):
    """hot/ and not/ in train/ and test/, every image with a content of its own."""
    for number, name in enumerate(("hot", "not")):
        for split, count in (("train", train), ("test", test)):
            for i in range(count):
                draw(f"{split}/{name}/{i}.png", noise([number, split == "test", i], 20 + i, 30))


def report():
    return json.loads(PREPROCESS_REPORT.read_text(encoding="utf-8"))


def outputs():
    return {
        path.relative_to(MANIFEST.parent): path.read_bytes() for path in MANIFEST.parent.rglob("*") if path.is_file()
    }


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


def test_test_images_are_bitwise_what_torchvision_feeds(project):
    draw_splits()
    draw("test/hot/large.png", noise(1, 300, 211))
    draw("test/not/photo.jpg", noise(2, 90, 50))
    main()
    split, files = load_test_split(TEST_SPLIT), load_test_files(TEST_SPLIT)
    transform = T.Compose([T.PILToTensor(), T.Resize([RESIZE, RESIZE], antialias=True), T.CenterCrop(CROP)])
    assert split.pixels.shape == (6, CROP, CROP, 3)
    assert "test/hot/large.png" in [file.path for file in files]
    for row, entry in enumerate(files):
        expected = transform(Image.open(IMAGES / entry.path)).permute(1, 2, 0)
        assert torch.equal(torch.from_numpy(split.pixels[row].copy()), expected)
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
        *("train/pixels.npy", "train/sizes.npy", "train/labels.npy", "test/pixels.npy", "test/labels.npy"),
        *("test/files.json", "manifest.json", "report.json"),
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


# --- the split ---


def image(label, content, path="", split=None):
    source = Source(path or f"{label}/{content}.png", Path("unused"), label, split)
    return store.Image(source, hashlib.sha256(str(content).encode()).hexdigest(), (1, 1), "RGB", False, False)


CONTENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=40)


@given(CONTENTS, st.floats(0.01, 0.99), st.randoms(use_true_random=False))
def test_drawn_split_ignores_file_order_and_names(contents, fraction, random):
    named = [image(label, content, f"{i}.png") for i, (label, content) in enumerate(contents)]
    renamed = [image(label, content, f"{random.random()}.png") for label, content in contents]
    random.shuffle(renamed)
    results = []
    for images in (named, renamed):
        try:
            split = split_images(images, [], fraction)
            results.append([sorted((i.source.label, i.sha256) for i in part) for part in (split.train, split.test)])
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


@given(st.dictionaries(st.integers(0, 3), st.integers(1, 40), min_size=2), st.floats(0.01, 0.99))
def test_drawn_split_is_stratified_and_leaves_each_class_in_both(counts, fraction):
    images = [image(label, f"{label} {i}") for label, count in counts.items() for i in range(count)]
    if max(counts.values()) == 1:
        with pytest.raises(ValueError, match="the test split is empty: no class has two different images; add images"):
            split_images(images, [], fraction)
        return
    split = split_images(images, [], fraction)
    assert len(split.train) + len(split.test) == len(images)
    for label, count in counts.items():
        in_test = sum(i.source.label == label for i in split.test)
        assert abs(in_test - count * fraction) <= 1
        assert 1 <= in_test < count or (count, in_test) == (1, 0)


def test_adding_an_image_moves_few_others():
    images = [image(0, i) for i in range(100)]
    before = {i.sha256 for i in split_images(images, ["a"], 0.2).test}
    after = {i.sha256 for i in split_images([*images, image(0, "new")], ["a"], 0.2).test}
    assert len(before ^ after) <= 2


def test_class_folders_alone_are_split_by_content(project):
    for name, seed in (("hot", 0), ("not", 1)):
        for i in range(10):
            draw(f"{name}/{i}.png", noise([seed, i]))
    draw("hot/copy of 3.png", noise([0, 3]))
    main()
    manifest, train, test = load_manifest(MANIFEST), load_train_split(TRAIN_SPLIT), load_test_split(TEST_SPLIT)
    assert len(train) + len(test) == 21
    assert np.bincount(test.labels).tolist() in ([2, 2], [3, 2])  # a copy counts with its original
    assert not {e.sha256 for e in manifest.train} & {e.sha256 for e in load_test_files(TEST_SPLIT)}
    assert report()["duplicates"]["removed_from_train"] == 0
    assert list(manifest.train_paths) == sorted(manifest.train_paths)
    transform = T.Compose([T.Resize([RESIZE, RESIZE], antialias=True), T.CenterCrop(CROP)])
    for row, entry in enumerate(load_test_files(TEST_SPLIT)):
        pixels = torch.from_numpy(np.array(Image.open(IMAGES / entry.path))).permute(2, 0, 1)
        np.testing.assert_array_equal(test.pixels[row], transform(pixels).permute(1, 2, 0))
    for row, entry in enumerate(manifest.train):
        np.testing.assert_array_equal(train.pixels[row, :20, :30], np.asarray(Image.open(IMAGES / entry.path)))
        assert train.labels[row] == entry.label


def test_a_class_of_one_image_is_trained_on(project):
    for i in range(5):
        draw(f"hot/{i}.png", noise(i))
    draw("not/only.png", noise(9))
    main()
    assert report()["train"]["classes"] == {"hot": 4, "not": 1}
    assert report()["test"]["classes"] == {"hot": 1, "not": 0}


# --- what is skipped, doubled or turned ---


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


# --- sets that cannot be used ---


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
        transform = T.Compose([T.PILToTensor(), T.Resize([RESIZE, RESIZE], antialias=True), T.CenterCrop(CROP)])
        expected = transform(Image.open(IMAGES / entry.path).convert("RGB")).permute(1, 2, 0)
        assert torch.equal(torch.from_numpy(pixels.copy()), expected)


# --- the folders' names ---


def draw_folders(*names):
    for number, name in enumerate(names):
        for label in ("hot", "not"):
            for i in range(2):
                draw(f"{name}/{label}/{i}.png", noise([number, label == "hot", i]))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("TRAINING", "eval"), ("train", "Validation"), ("Training", "dev")],
)
def test_usual_names_of_the_splits_are_understood_in_any_case(project, train, test):
    draw_folders(train, test)
    main()
    assert all(path.startswith(f"{train}/") for path in load_manifest(MANIFEST).train_paths)
    assert all(file.path.startswith(f"{test}/") for file in load_test_files(TEST_SPLIT))
    assert load_manifest(MANIFEST).class_names == ("hot", "not")
    assert report()["split_folders"] == {"train": {train: 4}, "test": {test: 4}}


def test_a_validation_folder_stands_in_for_a_missing_test_and_says_so(project, capsys):
    draw_folders("train", "val")
    main()
    assert report()["remarks"] == ["val/ serves as the test split, for there is no test/"]
    assert "val/ serves as the test split" in capsys.readouterr().out


def test_validation_photos_are_trained_on_and_counted_by_folder(project):
    draw_folders("train", "valid", "test")
    shutil.rmtree(IMAGES / "valid" / "not")  # a validation folder may lack a class
    main()
    assert report()["split_folders"] == {"train": {"train": 4, "valid": 2}, "test": {"test": 4}}
    assert report()["skipped"]["outside_classes"] == 0
    assert report()["remarks"] == ["valid/ is part of training, whose folds are what recipes are validated on"]
    assert "valid/hot/0.png" in load_manifest(MANIFEST).train_paths


def test_two_folders_for_one_split_are_refused(project):
    draw_folders("train", "Training", "test")
    with pytest.raises(ValueError, match="Training and train both mean the training split; put one into the other"):
        main()


def test_a_class_may_be_called_train(project):
    for name in ("bus", "train"):
        for i in range(3):
            draw(f"{name}/{i}.png", noise([name == "bus", i]))
    main()
    assert load_manifest(MANIFEST).class_names == ("bus", "train")


# --- the fix list ---


def digest_of(path):
    pixels = np.asarray(Image.open(IMAGES / path))
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def write_fixes(*entries):
    lines = [json.dumps({"sha256": digest_of(entry["file"]), **entry}) for entry in entries]
    Path("fixes.yaml").write_text("".join(f"- {line}\n" for line in lines))


def test_the_fix_list_drops_relabels_and_moves_and_is_counted(project):
    draw_splits()
    write_fixes(
        {"file": "train/hot/0.png", "action": "drop"},
        {"file": "train/hot/1.png", "action": "relabel", "label": "not", "reason": "seen"},
        {"file": "test/not/0.png", "action": "relabel", "label": "hot"},
        {"file": "train/not/2.png", "action": "move", "split": "test"},
    )
    main()
    labels = {entry.path: entry.label for entry in load_manifest(MANIFEST).train}
    assert labels == {"train/hot/1.png": 1, "train/hot/2.png": 0, "train/not/0.png": 1, "train/not/1.png": 1}
    split, files = load_test_split(TEST_SPLIT), [file.path for file in load_test_files(TEST_SPLIT)]
    assert split.labels[files.index("test/not/0.png")] == 0
    row = files.index("train/not/2.png")
    expected = store.resize_center_crop(np.asarray(Image.open(IMAGES / files[row])), RESIZE, CROP)
    np.testing.assert_array_equal(split.pixels[row], expected)
    assert report()["fixes"] == {"drop": 1, "relabel": 2, "move": 1, "of_test_images": 1, "not_found": []}


def test_a_fix_does_not_touch_an_image_that_was_replaced(project):
    draw_splits()
    write_fixes(
        {"file": "train/hot/0.png", "action": "drop"}, {"file": "train/not/0.png", "action": "move", "split": "test"}
    )
    draw("train/hot/0.png", noise(123))
    draw("train/not/0.png", noise(124))
    main()
    assert {"train/hot/0.png", "train/not/0.png"} <= set(load_manifest(MANIFEST).train_paths)
    assert report()["fixes"]["not_found"] == ["train/hot/0.png", "train/not/0.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop: me", "expected a list of entries"),
        ("- a: [", "not valid YAML"),
        ("- {file: a.png, action: drop}", "entry 1: needs action, file, sha256"),
        ("- {file: a.png, sha256: b, action: burn}", "entry 1: action 'burn'; allowed are drop, relabel, move"),
        ("- {file: a.png, sha256: b, action: relabel, label: cat}", "label 'cat'; the classes are hot, not"),
        ("- {file: a.png, sha256: b, action: move}", "split None; allowed are train, test"),
        ("- {file: a, sha256: b, action: drop}\n- {file: a, sha256: c, action: drop}", "entry 2: a second one for a"),
    ],
)
def test_a_fix_list_that_cannot_be_meant_is_refused_with_its_entry(project, text, message):
    draw_splits()
    Path("fixes.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        main()


def test_a_missing_fix_list_is_named(project):
    draw_splits()
    Path("fixes.yaml").unlink()
    with pytest.raises(ValueError, match=r"dataset\.fixes: fixes\.yaml: no such file"):
        main()
