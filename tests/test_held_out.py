"""Folds and validation come back as they were written, or the file that is at fault and the stage to run are named."""

from pathlib import Path

import numpy as np
import pytest

from stages.shared.held_out import Validation, load_folds, load_validation, save_folds, save_validation

FOLDS = np.array([0, 1, -1, 0])
VALIDATION = Validation(np.array([3, 0]), np.array([1, 0]), np.array([[0.25, -1.5], [1e-30, 7]], dtype=np.float32))


def test_what_is_read_is_what_was_written(tmp_path: Path):
    save_folds(tmp_path / "folds.npz", FOLDS)
    np.testing.assert_array_equal(load_folds(tmp_path / "folds.npz", 4), FOLDS, strict=True)
    save_validation(tmp_path / "validation.npz", VALIDATION)
    found = load_validation(tmp_path / "validation.npz")
    for name in ("rows", "labels", "logits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(VALIDATION, name), strict=True)


def test_folds_of_another_split_are_refused(tmp_path: Path):
    save_folds(tmp_path / "folds.npz", FOLDS)
    with pytest.raises(
        ValueError, match=r"folds\.npz: folds of 4 images, but the training split has 9; run inspect again"
    ):
        load_folds(tmp_path / "folds.npz", 9)


def test_a_missing_file_is_named_and_the_stage_that_makes_it(tmp_path: Path):
    with pytest.raises(ValueError, match=r"folds\.npz: no such file; run inspect"):
        load_folds(tmp_path / "folds.npz", 4)
    with pytest.raises(ValueError, match=r"finetune/validation\.npz: no such file; run train finetune"):
        load_validation(tmp_path / "finetune" / "validation.npz")


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "no archive", "another's"])
def test_a_damaged_file_is_named_and_the_stage_to_run_again(tmp_path: Path, damage: str):
    path = tmp_path / "finetune" / "validation.npz"
    save_validation(path, VALIDATION)
    whole = bytearray(path.read_bytes())
    if damage == "another's":
        save_folds(path, FOLDS)
    elif damage == "one byte changed":
        place = whole.index(VALIDATION.logits.tobytes())
        whole[place] ^= 1
        path.write_bytes(whole)
    else:
        path.write_bytes(b"no archive" if damage == "no archive" else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"finetune/validation\.npz: damaged \(.+\); run train finetune again"):
        load_validation(path)
