"""Compute and store what the network makes of the test split in float64, without labels; parity is judged by it.

It is bound to the weights and to the crops by their digests. The crops themselves are not copied: they are
preprocess/test/images, a tracked output already, and a hundred megabytes for the default experiment.
"""

import copy
import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from stages.shared.contrasts import WithContrasts
from stages.shared.encoded import Crops
from stages.shared.files import replacing
from stages.shared.inference import predict_logits
from stages.shared.memory import with_fitting_batch
from stages.shared.transforms import Transform, normalize

CHUNK = 256  # images that are digested at a time
BATCH = 32


@dataclass(frozen=True)
class Reference:
    float64: np.ndarray  # (images, classes) logits
    float32: np.ndarray  # (images, classes) logits, torch on the CPU
    features: np.ndarray  # (images, d) float64: what the last layer takes; of maps (SqueezeNet), their means
    contrasts: np.ndarray  # (images, e) float64


@torch.inference_mode()
def compute_reference(model: nn.Module, crops: Crops, transform: Transform) -> Reference:
    """What a copy of `model` makes of uint8 crops (n, crop, crop, 3), on the CPU."""
    exact, last = copy.deepcopy(model).double().eval(), dict[str, torch.Tensor]()
    kind = nn.Linear if any(isinstance(module, nn.Linear) for module in exact.modules()) else nn.Conv2d
    head = [module for module in exact.modules() if isinstance(module, kind)][-1]
    # A mirrored network's own image comes last.
    head.register_forward_pre_hook(lambda _, inputs: last.update(features=inputs[0].clone()))
    network = WithContrasts(exact)

    def run(size: int) -> list[np.ndarray]:
        found = []
        for start in range(0, len(crops), size):
            pixels = torch.from_numpy(np.array(crops[start : start + size])).permute(0, 3, 1, 2)
            logits, contrasts = network(normalize(pixels, transform.mean, transform.std, torch.float64))
            features = last["features"]
            found.append((logits, features.mean((2, 3)) if features.ndim == 4 else features, contrasts))
        return [torch.cat(parts).numpy() for parts in zip(*found, strict=True)]

    float64, features, contrasts = with_fitting_batch(run, BATCH)
    float32 = predict_logits(model, crops, transform, device=torch.device("cpu"), batch_size=BATCH)
    return Reference(float64, float32, features, contrasts)


def save_reference(path: Path, reference: Reference, crops: Crops, weights_digest: str) -> None:
    """Write one safetensors file; `crops` are uint8 (images, crop, crop, 3)."""
    facts = {"weights_digest": weights_digest, "crops_sha256": _digest(crops)}
    with replacing(path) as part:
        part.write_bytes(save(dict(vars(reference)), metadata={"facts": json.dumps(facts, sort_keys=True)}))


def load_reference(path: Path, crops: Crops, weights_digest: str) -> Reference:
    """Raises ValueError when the file is missing, damaged, or made from other weights or crops."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["facts"])
            reference = Reference(**{field.name: file.get_tensor(field.name) for field in fields(Reference)})
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
