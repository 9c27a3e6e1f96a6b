"""Check the second output: the familiarity of each test image against the same in float64."""

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto, numpy_helper
from scipy.spatial import distance
from torch import nn

from stages.check_parity import sessions
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, attempt, not_run, unreadable
from stages.check_parity.subjects import Subjects
from stages.shared.contrasts import WithContrasts
from stages.shared.shipped_files import FAMILIARITY, ON_CROPS

BATCH = 32


def familiarity_rows(root: Path, subjects: Subjects, models: Mapping[str, ModelProto], limit: float) -> list[Row]:
    """The same claim on the CPU and on CUDA, over the test split's crops."""
    rows = []
    for provider in ("cpu", "cuda"):
        claim = Claim(f"ONNX Runtime {provider.upper()}", "fp32", ON_CROPS.name, "familiarity agrees with float64")
        if provider == "cuda" and not sessions.count_devices()[0]:
            rows += not_run([claim], "no CUDA device")
        elif ON_CROPS.path not in models:
            rows += unreadable([claim])
        else:
            rows += attempt(claim, partial(_rows, claim, root, subjects, models[ON_CROPS.path], provider, limit))
    return rows


def _rows(claim: Claim, root: Path, subjects: Subjects, model: ModelProto, provider: str, limit: float) -> list[Row]:
    path = root / ON_CROPS.path
    session = sessions.cpu_session(path) if provider == "cpu" else sessions.cuda_session(path, tf32=False)
    name, starts = session.get_inputs()[0].name, range(0, len(subjects.crops), BATCH)
    blocks = (np.array(subjects.crops[start : start + BATCH]) for start in starts)
    found = np.concatenate([session.run([FAMILIARITY], {name: block})[0] for block in blocks])
    expected = familiarity(model, *describe(subjects.model, subjects.batches(BATCH)))
    error = float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")
    if error <= limit:
        return [Row(claim, PASSED, "", error, limit)]
    return [Row(claim, FAILED, f"off by {error:.2g}, limit {limit:g}", error if np.isfinite(error) else None, limit)]


def familiarity(model: ModelProto, features: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """(n,) of float64 features (n, d) and contrasts (n, e), by the parameters in the file."""
    constants = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    whitened = [unit @ constants["whitening_of_features"], contrasts @ constants["whitening_of_contrasts"]]
    means = constants["class_means"].reshape(-1, constants["class_means"].shape[-1])
    scores = -distance.cdist(np.concatenate(whitened, axis=1), means, "sqeuclidean").min(axis=1)
    above = (scores[:, None] - constants["held_out_scores"][0]) * constants["one_by_gaps"][0]
    return np.asarray(above.clip(0, 1).mean(axis=1))


@torch.inference_mode()
def describe(model: nn.Module, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of normalised images, float64: what the last layer takes (n, d), of maps (SqueezeNet) their means; and contrasts (n, e)."""
    model, seen = copy.deepcopy(model).double(), []
    kind = nn.Linear if any(isinstance(module, nn.Linear) for module in model.modules()) else nn.Conv2d
    last = [module for module in model.modules() if isinstance(module, kind)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network, contrasts = WithContrasts(model), []
    for images in batches:
        contrasts.append(network(torch.from_numpy(images).double())[1].numpy())
    features = [(block.mean((2, 3)) if block.ndim == 4 else block).numpy() for block in seen]
    return np.concatenate(features), np.concatenate(contrasts)
