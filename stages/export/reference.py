"""The stored reference: what the network computes, in float64, on the test split; parity is judged against it.

It is bound to the weights and to the crops by their digests. The crops themselves are not copied: they are
preprocess/test/pixels.npy, a tracked output already, and a hundred megabytes for the default experiment.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from stages.shared.checkpoint import Facts
from stages.shared.files import replacing
from stages.shared.inference import predict_logits


def compute_reference(model: nn.Module, crops: np.ndarray, facts: Facts) -> dict[str, np.ndarray]:
    """Logits (images, classes): `float64` and `float32` by torch on the CPU; `float32_cuda` (TF32 off) where there is a device."""
    cpu = torch.device("cpu")
    predict = partial(predict_logits, model, crops, facts.transform, batch_size=32)
    logits = {"float32": predict(device=cpu), "float64": predict(device=cpu, precision=torch.float64)}
    if torch.cuda.is_available():
        logits["float32_cuda"] = predict(device=torch.device("cuda"))
    return logits


def save_reference(path: Path, logits: dict[str, np.ndarray], crops: np.ndarray, binding: dict[str, str]) -> None:
    """One safetensors file; `binding` (digests, class names) goes into its metadata with the crops' own digest."""
    metadata = {**binding, "crops_sha256": crops_digest(crops)}
    with replacing(path) as part:
        part.write_bytes(save(logits, metadata={"facts": json.dumps(metadata, sort_keys=True)}))


def crops_digest(crops: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(crops).data).hexdigest()
