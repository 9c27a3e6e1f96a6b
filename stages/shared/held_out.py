"""The training images that are held out, and what was predicted of them: inspect deals the folds, train predicts.

folds.npz        fold int64 (n,): each training image's fold, from 0; LEFT_OUT for one that takes no part in training
validation.npz   row int64 (m,), label int64 (m,), logits float32 (m, classes): of a recipe, see Validation
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from stages.shared.files import replacing

LEFT_OUT = -1


@dataclass(frozen=True)
class Validation:
    """The logits of images by models that were trained without them; of none where a recipe is not validated."""

    rows: np.ndarray  # (m,) int64, of the training split
    labels: np.ndarray  # (m,) int64
    logits: np.ndarray  # (m, classes) float32, calibrated


def save_folds(path: Path, folds: np.ndarray) -> None:
    _save(path, fold=folds)


def load_folds(path: Path, num_images: int) -> np.ndarray:
    """(num_images,) int64. Raises ValueError naming the file that is missing, damaged or of another training split."""
    (folds,) = _load(path, ("fold",), "inspect")
    if folds.shape != (num_images,):
        raise ValueError(
            f"{path}: folds of {len(folds)} images, but the training split has {num_images}; run inspect again"
        )
    return folds


def save_validation(path: Path, validation: Validation) -> None:
    _save(path, row=validation.rows, label=validation.labels, logits=validation.logits)


def load_validation(path: Path) -> Validation:
    """Raises ValueError naming the file that is missing or damaged; its folder is the recipe's."""
    return Validation(*_load(path, ("row", "label", "logits"), f"train {path.parent.name}"))


def _save(path: Path, **arrays: Any) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, names: tuple[str, ...], stage: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [np.asarray(file[name]) for name in names]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run {stage}") from None
    except (ValueError, TypeError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); run {stage} again") from None
