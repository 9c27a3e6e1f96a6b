"""Load what parity compares, and check that it belongs together: checkpoint, exported files, crops and reference."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from stages.shared import artifacts
from stages.shared.checkpoint import Facts, digest, load_checkpoint
from stages.shared.dataset import load_test_files, load_test_pixels
from stages.shared.encoded import Crops
from stages.shared.files import read_json
from stages.shared.reference import load_reference
from stages.shared.transforms import network_input


@dataclass(frozen=True)
class Subjects:
    model: nn.Module  # float32, CPU, eval mode
    facts: Facts
    weights_digest: str
    sha256: dict[str, str]  # of each exported file, as export.json says, by its path under artifacts/
    not_shipped: dict[str, str]  # names of variants that export left out, and why
    crops: Crops  # uint8 (images, crop, crop, 3)
    paths: list[Path]  # the test split's source files, in the crops' order
    float64: np.ndarray  # (images, classes) logits
    float32: np.ndarray  # (images, classes) logits, torch on the CPU, at export
    features: np.ndarray  # (images, d) float64, before the last layer
    contrasts: np.ndarray  # (images, e) float64

    def batches(self, size: int, most: int | None = None) -> Iterator[np.ndarray]:
        """The crops (the first `most` of them) as the network takes them: float32 (size, 3, crop, crop), the last one smaller."""
        stop = min(len(self.crops), most or len(self.crops))
        for start in range(0, stop, size):
            yield network_input(self.crops[start : min(start + size, stop)], self.facts.transform)


def load_subjects(recipe: str, images_dir: Path) -> Subjects:
    """The subjects of a recipe; `images_dir` holds the test split's source files. Raises ValueError when the checkpoint, the files, the crops and the reference do not belong together."""
    model, facts = load_checkpoint(artifacts.train_dir(recipe) / "checkpoint.safetensors")
    sidecar = read_json(artifacts.EXPORT / "export.json")
    crops = load_test_pixels(artifacts.TEST_SPLIT)
    weights_digest = digest(model)
    reference = load_reference(artifacts.EXPORT / "reference.safetensors", crops, weights_digest)
    return Subjects(
        model=model,
        facts=facts,
        weights_digest=weights_digest,
        sha256={name: values["sha256"] for name, values in sidecar["files"].items()},
        not_shipped={row["file"]: row["reason"] for row in sidecar["variants"] if not row["shipped"]},
        crops=crops,
        paths=[find_file(images_dir, file.path) for file in load_test_files(artifacts.TEST_SPLIT)],
        **vars(reference),
    )


def find_file(images_dir: Path, name: str) -> Path:
    """The file that preprocess lists as `name`: bytes that are not UTF-8 stand there as \\xNN."""
    if (images_dir / name).exists():
        return images_dir / name
    original = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), name.encode())
    return images_dir / os.fsdecode(original)
