"""Store the network's float64 logits of the test split, without labels; parity is judged by them.

It is bound to the weights and to the crops by their digests. The crops themselves are not copied: they are
preprocess/test/images, a tracked output already, and a hundred megabytes for the default experiment.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stages.shared.encoded import Crops
from stages.shared.files import replacing

CHUNK = 256  # images that are digested at a time


@dataclass(frozen=True)
class Reference:
    float64: np.ndarray  # (images, classes) logits
    float32: np.ndarray  # (images, classes) logits, torch on the CPU


def save_reference(path: Path, reference: Reference, crops: Crops, weights_digest: str) -> None:
    """Write one safetensors file; `crops` are uint8 (images, crop, crop, 3)."""
    facts = {"weights_digest": weights_digest, "crops_sha256": _digest(crops)}
    with replacing(path) as part:
        tensors = {"float64": reference.float64, "float32": reference.float32}
        part.write_bytes(save(tensors, metadata={"facts": json.dumps(facts, sort_keys=True)}))


def load_reference(path: Path, crops: Crops, weights_digest: str) -> Reference:
    """Raises ValueError when the file is missing, damaged, or made from other weights or crops."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["facts"])
            reference = Reference(file.get_tensor("float64"), file.get_tensor("float32"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run export") from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a whole reference ({error}); run export again") from None
    for what, found, expected in (
        ("weights", facts["weights_digest"], weights_digest),
        ("crops", facts["crops_sha256"], _digest(crops)),
    ):
        if found != expected:
            raise ValueError(f"{path}: made from other {what} ({found:.12}…, now {expected:.12}…); run export again")
    return reference


def _digest(crops: Crops) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(crops), CHUNK):
        digest.update(np.ascontiguousarray(crops[start : start + CHUNK]).data)
    return digest.hexdigest()
