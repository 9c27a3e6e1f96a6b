"""Each image gets its split by its content or its folder's name, never by the order of files."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.preprocess import store
from stages.preprocess.__main__ import main
from stages.preprocess.find import Source
from stages.preprocess.split import split_images
from stages.shared.artifacts import MANIFEST, TEST_SPLIT, TRAIN_SPLIT
from stages.shared.dataset import load_manifest, load_test_files, load_test_split, load_train_split
from tests.preprocess_project import (
    CROP,
    IMAGES,
    RESIZE,
    draw,
    enter_project,
    noise,
    report,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


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


def test_splits_by_names_that_nobody_knows_are_not_taken_for_classes(project):
    draw_folders("training_set", "test_set")
    with pytest.raises(
        ValueError, match=r"test_set and training_set hold the same folders \(hot, not\); if they are splits"
    ):
        main()
    shutil.rmtree(IMAGES / "test_set" / "hot")  # two classes, one of which has the other's name inside
    main()
    assert load_manifest(MANIFEST).class_names == ("test_set", "training_set")


def test_classes_may_have_equal_subfolders(project):
    draw_folders("cat", "dog")
    main()
    assert load_manifest(MANIFEST).class_names == ("cat", "dog")


def test_a_class_may_be_called_train(project):
    for name in ("bus", "train"):
        for i in range(3):
            draw(f"{name}/{i}.png", noise([name == "bus", i]))
    main()
    assert load_manifest(MANIFEST).class_names == ("bus", "train")
