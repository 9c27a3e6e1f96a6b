"""Everything that parity is about: the checkpoint, the exported files, the crops, and the float64 reference, bound together."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from stages.shared import artifacts
from stages.shared.checkpoint import Facts, digest, load_checkpoint
from stages.shared.dataset import load_test_files, load_test_pixels
from stages.shared.files import read_json
from stages.shared.transforms import normalize


@dataclass(frozen=True)
class Subjects:
    model: nn.Module  # float32, CPU, eval mode
    facts: Facts
    weights_digest: str
    sha256: dict[str, str]  # of each exported file, as export.json says, by its name under artifacts/
    not_shipped: dict[str, str]  # variants that export left out, and why
    crops: np.ndarray  # uint8 (images, crop, crop, 3)
    images: np.ndarray  # float32 (images, 3, crop, crop): the crops, normalised
    paths: list[Path]  # the test split's source files, in the crops' order
    float64: np.ndarray  # (images, classes) logits
    float32: np.ndarray  # (images, classes) logits, torch on the CPU, at export


def load_subjects(recipe: str) -> Subjects:
    """Raises ValueError when the checkpoint, the files, the crops and the reference do not belong together."""
    model, facts = load_checkpoint(artifacts.train_dir(recipe) / "checkpoint.safetensors")
    sidecar = _read_sidecar(artifacts.EXPORT / "export.json")
    crops = load_test_pixels(artifacts.TEST_SPLIT)
    weights_digest = digest(model)
    reference = _read_reference(artifacts.EXPORT / "reference.safetensors", weights_digest, crops)
    return Subjects(
        model=model,
        facts=facts,
        weights_digest=weights_digest,
        sha256={name: values["sha256"] for name, values in sidecar["files"].items()},
        not_shipped={row["file"]: row["reason"] for row in sidecar["variants"] if not row["shipped"]},
        crops=crops,
        images=_normalized(crops, facts),
        paths=[artifacts.SOURCE_DATASET / "images" / file.path for file in load_test_files(artifacts.TEST_SPLIT)],
        float64=reference["float64"],
        float32=reference["float32"],
    )


def _normalized(crops: np.ndarray, facts: Facts) -> np.ndarray:
    pixels = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2)
    return normalize(pixels, facts.transform.mean, facts.transform.std, torch.float32).contiguous().numpy()


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run export") from None


def _read_reference(path: Path, weights_digest: str, crops: np.ndarray) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run export") from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a whole reference ({error}); run export again") from None
    found = {"weights": facts["weights_digest"], "crops": facts["crops_sha256"]}
    expected = {"weights": weights_digest, "crops": hashlib.sha256(np.ascontiguousarray(crops).data).hexdigest()}
    for name, value in expected.items():
        if found[name] != value:
            raise ValueError(f"{path}: made from other {name} ({found[name]:.12}…, now {value:.12}…); run export again")
    return tensors
