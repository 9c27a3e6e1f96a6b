"""The figures that d2l printed, and whether our run saw the same data.

"Fine-Tuning", Dive into Deep Learning: https://d2l.ai/chapter_computer-vision/fine-tuning.html; measured there on one CUDA GPU, after five epochs.
"""

from pathlib import Path
from typing import Any

DATA_CHECKSUM = "sha1=fba480ffa8aa7e0febbb511d181409f899b9baa5"  # of d2l's hotdog.zip

ROWS: dict[str, dict[str, Any]] = {
    "finetune": {"train_loss": 0.238, "train_accuracy": 0.912, "test_accuracy": 0.880, "examples_per_second": 1876.0},
    "scratch": {"train_loss": 0.400, "train_accuracy": 0.820, "test_accuracy": 0.849, "examples_per_second": 2093.3},
}


def published_row(recipe: str, *, same_data: bool) -> dict[str, Any] | None:
    """The published figures of `recipe`, captioned; None where d2l has no such recipe."""
    if recipe not in ROWS:
        return None
    caption = "published (d2l)" if same_data else "published (d2l, other data)"
    return {"caption": caption, "same_data": same_data, **ROWS[recipe], "device": "one CUDA GPU"}


def is_published_data(source: str) -> bool:
    """True where `dataset.source` is d2l's archive: by the checksum that download verifies, which folders do not have."""
    address, _, checksum = source.rpartition("#")
    return checksum.lower() == DATA_CHECKSUM and not Path(address).is_dir()
