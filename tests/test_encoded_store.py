"""Training images stored encoded: the same pictures as in the other store, or an error that names the file."""

import io
import json
import os
import resource
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from stages.download import dataset
from stages.preprocess import shards
from stages.preprocess.__main__ import main
from stages.preprocess.shards import ShardWriter, decodes_to, take_rows, to_png
from stages.shared.artifacts import MANIFEST, PREPROCESS_REPORT, SOURCE_DATASET, TEST_SPLIT, TRAIN_SPLIT
from stages.shared.checkpoint import digest
from stages.shared.dataset import (
    TrainSplit,
    fixed_crops,
    load_manifest,
    load_test_files,
    load_test_pixels,
    load_test_split,
    load_train_split,
)
from stages.shared.encoded import EncodedCrops, EncodedImages
from stages.shared.image_source import image_source
from stages.shared.params import load_params
from stages.shared.sampling import plan_epoch
from stages.shared.streaming import row_copier, to_device
from stages.shared.transforms import Transform, resize_center_crop
from stages.train.unaugmented import cropped
from tests.experiment import ROOT as PROJECT
from tests.test_training import model_and_head, train

IMAGES = SOURCE_DATASET / "images"
STORED_AGAIN = {"train/hot/turned.jpg", "train/hot/large.jpg", "train/hot/lossless.png"}
TRANSFORM = Transform(40, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def picture(seed, height=36, width=48):
    """Smooth, as photos are, so that JPEG has something to keep."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def store(folder, images, shard_bytes=2**30):
    """The files of `images` in shards, and the images as they decode."""
    files = [jpeg(pixels) for pixels in images]
    with mock.patch.object(shards, "SHARD_BYTES", shard_bytes), ShardWriter(folder) as writer:
        for file in files:
            writer.append(file)
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def opened(folder, **options):
    return EncodedImages(folder, np.load(folder / "index.npy"), side=64, **options)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Training photos of many kinds in two classes, and sizes to match in params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROJECT / "fixes.yaml", tmp_path)
    set_params()
    for number, name in enumerate(("hot", "not")):
        for split, count in (("train", 5), ("test", 2)):
            for i in range(count):
                draw(f"{split}/{name}/{i}.jpg", picture([number, split == "test", i]), quality=85)
    draw("train/hot/turned.jpg", picture(50), exif=turned(6))
    draw("train/hot/gray.jpg", picture(51)[..., 0])
    draw("train/hot/large.jpg", picture(52, 90, 120))
    draw("train/hot/lossless.png", picture(53))
    draw("train/not/progressive.jpg", picture(54), progressive=True, subsampling=0)
    (IMAGES / "train/not/cmyk.jpg").parent.mkdir(exist_ok=True)
    Image.fromarray(picture(55)).convert("CMYK").save(IMAGES / "train/not/cmyk.jpg")
    (IMAGES / "train/not/torn.jpg").write_bytes(jpeg(picture(56))[:300])
    return tmp_path


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def set_params(form="encoded", limit=4.0):
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    for old, new in (
        *(("resize: 256", "resize: 40"), ("crop: 224", "crop: 32"), ("max_side: 512", "max_side: 48")),
        *(("store: auto", f"store: {form}"), ("pixels_limit_gb: 4.0", f"pixels_limit_gb: {limit}")),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    Path("params.yaml").write_text(text, encoding="utf-8")


def draw(path, pixels, **options):
    (IMAGES / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(IMAGES / path, **options)


def outputs():
    return {str(path): path.read_bytes() for path in sorted(MANIFEST.parent.rglob("*")) if path.is_file()}


def both_stores():
    """The training split from either store, and its manifest."""
    splits = []
    for form in ("pixels", "encoded"):
        set_params(form)
        main()
        splits.append((load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST)))
    return splits


def test_both_stores_hold_the_same_pictures_row_by_row(project):
    (pixels, first), (encoded, second) = both_stores()
    assert isinstance(encoded.pixels, EncodedImages)
    assert first.train == second.train
    assert first.side == second.side
    assert first.digest != second.digest  # what was stored again is not quite what it was
    np.testing.assert_array_equal(pixels.sizes, encoded.sizes)
    np.testing.assert_array_equal(pixels.labels, encoded.labels)
    for row, (height, width) in enumerate(pixels.sizes):
        own, other = pixels.pixels[row][:height, :width], encoded.pixels[row]
        assert own.shape == other.shape
        difference = np.abs(own.astype(int) - other).mean()
        assert difference < 6, first.train_paths[row]
        assert (difference > 0) == (first.train_paths[row] in STORED_AGAIN)


def test_test_images_are_bitwise_those_of_the_other_store(project):
    for name, image in (("turned", picture(60)), ("large", picture(61, 90, 120)), ("small", picture(62, 8, 8))):
        draw(f"test/not/{name}.jpg", image, exif=turned(6 if name == "turned" else 1))
    draw("test/hot/lossless.png", picture(63))
    both = []
    for form in ("pixels", "encoded"):
        set_params(form)
        main()
        both.append((load_test_split(TEST_SPLIT), load_test_files(TEST_SPLIT)))
    (pixels, files), (crops, same_files) = both
    assert files == same_files
    np.testing.assert_array_equal(pixels.labels, crops.labels)
    assert isinstance(crops.pixels, EncodedCrops)
    assert crops.pixels.shape == pixels.pixels.shape == (8, 32, 32, 3)
    for rows in (3, slice(None), slice(1, 5), slice(6, 99), range(2, 4), np.array([7, 0, 0]), []):
        np.testing.assert_array_equal(crops.pixels[rows], pixels.pixels[rows])
    stored = {file.path: bytes(crops.pixels.images.read(row)) for row, file in enumerate(files)}
    as_they_came = {path for path, file in stored.items() if file == (IMAGES / path).read_bytes()}
    assert stored.keys() - as_they_came == {"test/not/turned.jpg", "test/not/large.jpg", "test/hot/lossless.png"}


def test_encoded_test_images_without_their_cut_are_refused(project):
    main()
    (TEST_SPLIT / "images/cut.json").unlink()
    with pytest.raises(ValueError, match=r"images: .*cut\.json.*run preprocess again"):
        load_test_pixels(TEST_SPLIT)


def test_an_image_without_a_split_is_found_in_the_one_that_it_goes_to(project):
    shutil.rmtree(IMAGES)
    for number, name in enumerate(("hot", "not")):
        for i in range(10):
            draw(f"{name}/{i}.jpg", picture([number, i]), quality=85)
    main()
    train, test = load_train_split(TRAIN_SPLIT), load_test_split(TEST_SPLIT)
    assert (len(train), len(test)) == (16, 4)
    for images, paths in (
        (train.pixels, load_manifest(MANIFEST).train_paths),
        (test.pixels.images, [file.path for file in load_test_files(TEST_SPLIT)]),
    ):
        assert [images.read(row) for row in range(len(images))] == [(IMAGES / path).read_bytes() for path in paths]


def test_files_that_decode_to_the_stored_image_are_kept_as_they_came(project):
    main()
    split, manifest = load_train_split(TRAIN_SPLIT), load_manifest(MANIFEST)
    for row, path in enumerate(manifest.train_paths):
        assert (split.pixels.read(row) == (IMAGES / path).read_bytes()) == (path not in STORED_AGAIN), path
    report = json.loads(PREPROCESS_REPORT.read_text())
    assert report["encoded"] == {"as_they_came": len(split) - len(STORED_AGAIN), "jpeg_quality": 90}
    assert report["skipped"]["corrupt"] == 1


def test_a_limit_on_the_pixels_decides_by_itself(project):
    side, num = 48, 16
    for images, expected in ((num + 0.5, False), (num - 0.5, True)):
        set_params("auto", images * side**2 * 3 / 1e9)
        main()
        assert (TRAIN_SPLIT / "index.npy").exists() == expected
        assert (TRAIN_SPLIT / "pixels.npy").exists() != expected


def test_two_runs_write_the_same_shards(project, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    draw("train/hot/copy-of-test.jpg", picture([0, True, 0]), quality=85)  # so that not all rows are kept
    main()
    first = outputs()
    main()
    assert outputs() == first


def test_rows_that_are_not_kept_leave_nothing_in_the_shards(tmp_path):
    images = store(tmp_path / "staged", [picture(seed) for seed in range(5)], shard_bytes=1500)
    (tmp_path / "taken").mkdir()
    take_rows(tmp_path / "staged", [3, 0], tmp_path / "taken")
    taken = opened(tmp_path / "taken")
    assert [np.array_equal(taken[row], images[source]) for row, source in enumerate((3, 0))] == [True, True]
    assert sum(path.stat().st_size for path in (tmp_path / "taken").glob("shard-*")) == taken.index["length"].sum()


def test_a_file_is_kept_only_where_it_decodes_to_just_these_pixels():
    file = jpeg(picture(0))
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    assert decodes_to(file, pixels)
    assert not decodes_to(file, pixels[::-1])
    assert not decodes_to(b"\xff\xd8 no JPEG", pixels)
    assert not decodes_to(b"GIF89a", pixels)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (39, 41), (41, 41), (300, 20), (7, 9)])
def test_the_test_transform_makes_the_same_of_what_is_stored_as_of_the_image(height, width):
    pixels = picture(height, height, width)
    stored = np.asarray(Image.open(io.BytesIO(to_png(pixels, resize=40))))
    assert stored.size <= 40**2 * 3
    np.testing.assert_array_equal(resize_center_crop(stored, 40, 32), resize_center_crop(pixels, 40, 32))


@pytest.mark.parametrize("memory", [0, 3 * 36 * 48 * 3, 10**9])
def test_whatever_is_kept_decoded_and_whoever_looks_ahead_the_images_are_the_same(tmp_path, memory):
    images = store(tmp_path, [picture(seed) for seed in range(9)], shard_bytes=2000)
    encoded = opened(tmp_path, memory=memory)
    order = [4, 4, 0, 8, 7, 1, 2, 3, 5, 6, 0]
    for expected in (order, order[::-1], [0, 1, 2], []):
        encoded.expect(expected)
        for row in order:
            np.testing.assert_array_equal(encoded[row], images[row])
    kept = sum(image.nbytes for image in encoded._kept.values())
    assert kept <= memory
    assert kept == min(memory, 9 * images[0].nbytes)


def test_no_more_images_than_said_are_decoded_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.shared.encoded.AHEAD", 4)
    store(tmp_path, [picture(seed) for seed in range(12)])
    encoded = opened(tmp_path)
    encoded.expect(range(12))
    assert sorted(encoded._decoding) == [0, 1, 2, 3]
    encoded[0]
    assert sorted(encoded._decoding) == [1, 2, 3, 4]


def test_a_batch_of_crops_is_that_of_canvases_with_the_same_images(tmp_path):
    images = store(tmp_path, [picture(seed, 30 + seed, 48) for seed in range(6)])
    encoded, canvases = opened(tmp_path), np.zeros((6, 64, 64, 3), np.uint8)
    for canvas, image in zip(canvases, images, strict=True):
        canvas[: len(image), :48] = image
    sizes = torch.tensor([image.shape[:2] for image in images])
    plan = plan_epoch(sizes, torch.arange(6), seed=0, epoch=1)
    crops = []
    for pixels in (canvases, encoded):
        fetch, cut = image_source(pixels, TRANSFORM, 6, torch.float32, torch.device("cpu"))
        fetch(plan)
        crops.append(cut(plan))
    assert torch.equal(*crops)
    buffer = np.zeros((8, 64, 64, 3), np.uint8)
    row_copier(encoded)(np.arange(6), buffer)
    np.testing.assert_array_equal(buffer[:6], canvases)


def test_images_without_augmentation_are_cut_when_they_are_read(tmp_path):
    store(tmp_path, [picture(seed, 30 + seed, 48) for seed in range(5)])
    sizes = np.array([(30 + seed, 48) for seed in range(5)], np.int32)
    split = TrainSplit(opened(tmp_path), sizes, np.arange(5, dtype=np.int64))
    crops = cropped(split, torch.tensor([4, 1, 3]), TRANSFORM)
    assert isinstance(crops.pixels, EncodedCrops)
    np.testing.assert_array_equal(crops.labels, [4, 1, 3])
    expected = fixed_crops(split, [4, 1, 3], TRANSFORM)
    np.testing.assert_array_equal(crops.pixels[:], expected)
    buffer = np.zeros((4, 32, 32, 3), np.uint8)
    row_copier(crops.pixels)(np.array([2, 0, 1]), buffer)  # as they are brought to a device
    np.testing.assert_array_equal(buffer[:3], expected[[2, 0, 1]])


def test_images_that_a_device_has_room_for_are_brought_there_whole(tmp_path):
    images = store(tmp_path, [picture(seed, 30 + seed, 48) for seed in range(5)])
    resident = to_device(opened(tmp_path), torch.device("cpu"), num_rows=2)
    for canvas, image in zip(resident.numpy(), images, strict=True):
        np.testing.assert_array_equal(canvas[: len(image), :48], image)


def test_test_crops_of_training_images_are_those_of_the_other_store(project):
    (pixels, manifest), (encoded, _) = both_stores()
    rows = [row for row, path in enumerate(manifest.train_paths) if path.removesuffix(".jpg")[-1].isdigit()]
    assert len(rows) == 10
    np.testing.assert_array_equal(*(fixed_crops(split, rows, TRANSFORM) for split in (pixels, encoded)))


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "index"])
def test_a_damaged_shard_is_named(project, monkeypatch, damage):
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    main()
    path = TRAIN_SPLIT / "shard-001.bin"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(whole[:-1])
    elif damage == "flipped":
        path.write_bytes(bytes([*whole[:700], whole[700] ^ 1, *whole[701:]]))
    else:
        np.save(TRAIN_SPLIT / "index.npy", np.zeros(3, np.int64))
    expected = {
        "missing": r"train: shard-001\.bin: no such file",
        "short": rf"train: shard-001\.bin has {len(whole) - 1} bytes of {len(whole)}: it was cut short",
        "flipped": r"train/shard-001\.bin: image \d+ is damaged \(its checksum is not the index's\)",
        "index": "train: index is int64",
    }[damage]
    with pytest.raises(ValueError, match=f"{expected}.*; run preprocess again"):
        fixed_crops(load_train_split(TRAIN_SPLIT), range(16), TRANSFORM)


def test_a_disk_that_fills_up_while_shards_are_written_loses_nothing(project):
    main()
    before, (soft, hard) = outputs(), resource.getrlimit(resource.RLIMIT_FSIZE)
    draw("train/hot/another.jpg", picture(99))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # as a full disk does, a limit ends a write in its middle
    try:
        with pytest.raises(OSError, match="File too large") as error:
            main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename
    assert outputs() == before
    assert not (MANIFEST.parent / ".staging").exists()


def test_shards_that_dvc_protects_are_read_and_not_written_into(project):
    main()
    kept = project / "cache"
    os.link(TRAIN_SPLIT / "shard-000.bin", kept)
    kept.chmod(0o444)
    content = kept.read_bytes()
    assert fixed_crops(load_train_split(TRAIN_SPLIT), [0], TRANSFORM).shape == (1, 32, 32, 3)
    draw("train/hot/0.jpg", picture(99))
    main()
    assert kept.read_bytes() == content
    assert load_params().preprocess.store == "encoded"


def test_many_source_files_are_packed_into_one_and_read_as_if_they_were_not(project, monkeypatch):
    main()
    expected = outputs()
    shutil.move(IMAGES, "photos")
    for images, limit in ((IMAGES, 21), (project / "again/images", 20)):
        monkeypatch.setattr(dataset, "MANY_FILES", limit)
        facts = dataset.bring_dataset(
            images, source="photos", checksum=None, labels=None, num_train=2, num_test=2, side=8, seed=0, cache=project
        )
        assert facts["num_files"] == 21
        assert images.exists() == (limit == 21)
    shutil.rmtree(SOURCE_DATASET)
    shutil.move(project / "again", SOURCE_DATASET)
    (project / ".cache/preprocess/left by a killed run").mkdir(parents=True)
    main()
    report = str(PREPROCESS_REPORT)  # it names the torn file where it was found
    found = outputs()
    found[report] = found[report].replace(b".cache/preprocess", bytes(IMAGES))
    assert found == expected
    assert not (project / ".cache/preprocess").exists()
    (SOURCE_DATASET / "images.tar").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"images\.tar: not a whole tar .*; run download again"):
        main()
    assert outputs().keys() == expected.keys()


def test_a_training_from_shards_is_bitwise_that_from_canvases_and_resumes(tmp_path):
    images = store(tmp_path / "shards", [picture(seed, 40, 40) for seed in range(20)], shard_bytes=3000)
    sizes, labels = np.full((20, 2), 40, np.int32), np.arange(20, dtype=np.int64) % 2
    digests = []
    for pixels, resume_path in (
        (np.stack(images), None),
        (opened(tmp_path / "shards"), None),
        (opened(tmp_path / "shards", memory=10**5), tmp_path / "resume.pt"),
    ):
        split, (model, head) = TrainSplit(pixels, sizes, labels), model_and_head()
        if resume_path:
            train(*model_and_head(), split, epochs=1, mixup=0.2, resume_path=resume_path)
        train(model, head, split, epochs=2, mixup=0.2, resume_path=resume_path)
        digests.append(digest(model))
    assert len(set(digests)) == 1
