"""Check the second output: the familiarity of each test image against the same in float64."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper
from scipy.spatial import distance

from stages.check_parity import sessions
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, attempt, not_run, unreadable
from stages.check_parity.subjects import Subjects
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
    expected = familiarity(model, subjects.features, subjects.contrasts)
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
