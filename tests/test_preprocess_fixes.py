"""The fix list: what a person decided about single images is done, and counted, each time."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.preprocess import store
from stages.preprocess.__main__ import main
from stages.shared.artifacts import MANIFEST, TEST_SPLIT
from stages.shared.dataset import (
    NOT_IN_TEST,
    load_labels_before_fixes,
    load_manifest,
    load_test_files,
    load_test_split,
)
from tests.preprocess_project import (
    CROP,
    IMAGES,
    RESIZE,
    draw,
    draw_splits,
    enter_project,
    noise,
    report,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


def digest_of(path):
    pixels = np.asarray(Image.open(IMAGES / path))
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def write_fixes(*entries):
    lines = [json.dumps({"sha256": digest_of(entry["file"]), **entry}) for entry in entries]
    Path("fixes.yaml").write_text("".join(f"- {line}\n" for line in lines))


def test_a_class_of_which_the_fix_list_leaves_nothing_is_named_with_that_reason(project):
    draw_splits()
    write_fixes(*({"file": f"test/hot/{index}.png", "action": "drop"} for index in range(2)))
    with pytest.raises(ValueError, match=r"test/hot \(the fix list leaves none of its 2 files\)"):
        main()


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
    counts = {"drop": 1, "relabel": 2, "move": 1, "of_test_images": 1, "dropped_test_images": 0}
    assert report()["fixes"] == {**counts, "not_found": []}
    before = dict(zip(files, load_labels_before_fixes(TEST_SPLIT, len(files)).tolist(), strict=True))
    assert (before["test/not/0.png"], before["train/not/2.png"], before["test/hot/0.png"]) == (1, NOT_IN_TEST, 0)


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
