"""Planted faults are where the list says, and what is found of them is counted as it should be."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.planted_faults.__main__ import identity, rates, read_lines
from benchmarks.planted_faults.measure import found_labels, found_leaks, found_odd
from benchmarks.planted_faults.plant import CHANGES, SPOILT, Planted, plant
from benchmarks.planted_faults.worth import Photos, measure, regained, scores, summarize


@pytest.fixture
def images(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    for split, num in (("train", 20), ("test", 30)):
        for name in ("hot", "not"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for row in range(num):
                pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{row}.png")
    return tmp_path / "images"


def test_faults_are_where_the_list_says_and_the_same_for_the_same_seed(images, tmp_path):
    planted = plant(images, tmp_path / "planted", seed=1)
    assert plant(images, tmp_path / "again", seed=1) == planted
    assert (len(planted.flipped), len(planted.leaks), len(planted.odd)) == (2, 6, 10)
    assert {change for _, change in planted.leaks.values()} == set(CHANGES)
    assert set(planted.odd.values()) == set(SPOILT)
    root = tmp_path / "planted"
    for file, true in planted.flipped.items():
        given, name = file.split("/")[1], file.split("/")[2].removeprefix(f"{true}-")
        assert given != true
        assert (root / file).read_bytes() == (images / "train" / true / name).read_bytes()
        assert not (root / "train" / true / name).exists()
    for file, (shown, _) in planted.leaks.items():
        assert (root / file).exists()
        assert (root / shown).read_bytes() == (images / shown).read_bytes()
    assert len(list((root / "train").rglob("*.png"))) == 40 + 6 + 10


PLANTED = Planted(
    flipped={"train/a/1.png": "b", "train/b/2.png": "a"},
    leaks={"train/a/leak-0.png": ("test/a/5.png", "resized"), "train/a/leak-1.png": ("test/a/6.png", "mirrored")},
    odd={"train/a/odd-0.png": "blank", "train/a/odd-1.png": "dark"},
)
REPORT = {
    "num_train": 24,
    "label_issues": [{"file": f, "proposed": "b"} for f in ("train/a/1.png", "train/a/9.png", "train/a/odd-1.png")],
    "leaks": [
        {"train": "train/a/leak-0.png", "test": "test/a/5.png"},
        {"train": "train/a/leak-1.png", "test": "test/a/9.png"},  # another picture than the one it shows
        {"train": "train/b/3.png", "test": "test/b/3.png"},
    ],
    "odd": [{"file": "train/a/odd-0.png", "reasons": ["blank"]}, {"file": "train/a/odd-1.png", "reasons": ["tiny"]}],
}


def test_only_what_was_planted_and_named_rightly_counts_as_found():
    assert found_labels(REPORT, PLANTED) == {"flips": 2, "flips_found": 1, "flips_put_right": 1, "flags": 2}
    leaks = found_leaks(REPORT, PLANTED)
    assert (leaks["leaks"], leaks["leaks_found"], leaks["clean_images"], leaks["clean_held_for_leaks"]) == (2, 1, 20, 1)
    assert found_odd(REPORT, PLANTED) == {"odd": 2, "odd_found": 1, "odd_flags": 2}


def test_rates_are_of_all_runs_together():
    run = {**found_labels(REPORT, PLANTED), **found_leaks(REPORT, PLANTED), **found_odd(REPORT, PLANTED)}
    accuracy = {"accuracy_clean": 0.9, "accuracy_faulty": 0.8, "accuracy_fixed": 0.85, "accuracy_reviewed": 0.9}
    missed = {**run, **accuracy, "flips_found": 0, "flags": 0}
    found = rates([{"task": "t", "seed": 0, **run, **accuracy}, {"task": "t", "seed": 1, **missed}])
    assert (found["recall"], found["precision"], found["leaks_found"]) == (0.25, 0.5, 0.5)
    assert (found["regained"], found["regained_with_a_person"]) == (0.5, 1.0)


def test_runs_that_name_no_size_were_judged_at_the_crop(tmp_path):
    run = {"task": "t", "seed": 0, "flipped": 0.05}
    (tmp_path / "planted.jsonl").write_text(json.dumps(run) + "\n" + json.dumps({**run, "size": 224}) + "\n")
    assert [identity(run) for run in read_lines(tmp_path / "planted.jsonl")] == [
        ("t", 0, 0.05, 112),
        ("t", 0, 0.05, 224),
    ]


def test_what_was_regained_of_a_cost_within_chance_is_not_said():
    run = {**found_labels(REPORT, PLANTED), **found_leaks(REPORT, PLANTED), **found_odd(REPORT, PLANTED)}
    accuracy = {"accuracy_clean": 0.9, "accuracy_fixed": 0.85, "accuracy_reviewed": 0.9}
    noisy = [
        {"task": "t", "seed": row, **run, **accuracy, "accuracy_faulty": faulty}
        for row, faulty in enumerate((0.8, 0.92))
    ]
    found = rates(noisy)
    assert (found["cost"], found["cost_standard_error"], found["regained"]) == (0.04, 0.06, None)


def test_a_list_put_right_by_a_person_gives_back_what_flipped_labels_cost():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 2
    shown = (generator.normal(size=(300, 20)) + 2 * labels[:, None] * (np.arange(20) < 5)).astype(np.float32)
    train, digests = shown[:200], [f"{row:03}" for row in range(200)]
    photos = Photos([train, train], train, train, labels[:200], digests, shown[200:], labels[200:])
    run = measure(photos, 0.1, seed=0)
    assert run["flips"] == 20
    assert 10 <= run["flips_found"] <= run["flags"] <= 30
    assert scores(photos, photos.labels)[1] < run["faulty"][1]
    assert run["reviewed"][1] < run["faulty"][1]


def test_an_interval_is_of_the_paired_differences():
    arms = {"clean": (0.9, 0.3), "fixed": (0.8, 0.5), "reviewed": (0.9, 0.3), "again": (0.9, 0.3)}
    counts = {"flips": 4, "flags": 4, "flips_found": 2}
    runs = [{**counts, **arms, "faulty": (faulty, 0.5)} for faulty in (0.8, 0.79, 0.81)]
    accuracy = summarize(runs)["accuracy"]
    assert accuracy["cost"] == [0.1, 0.0058]
    assert accuracy["regained_fixed"][0] == 0.0
    assert accuracy["regained_reviewed"] == [1.0, 1.0, 1.0]
    assert regained(np.array([0.1, -0.1]), np.array([0.1, -0.09])) is None
