"""Which files are shipped: the network in float16 and int8, each only while its test accuracy holds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from stages.export.deploy import deployable
from stages.export.graph import check_and_save
from stages.export.reduced import half_precision, quantize_int8, run_core
from stages.shared.checkpoint import Facts
from stages.shared.metrics import accuracy


def ship_variants(
    folder: Path,
    core: ModelProto,
    facts: Facts,
    metadata: Mapping[str, str],
    *,
    calibration: np.ndarray,  # uint8 (n, crop, crop, 3), training images
    crops: np.ndarray,  # uint8 (m, crop, crop, 3), test images
    labels: np.ndarray,  # (m,)
    full_accuracy: float,
    max_drop: float,
) -> list[dict[str, Any]]:
    """Write each variant whose top-1 drops by no more than `max_drop`; returns the numbers of all of them."""
    makers: Mapping[str, tuple[Callable[[], ModelProto], Callable[[ModelProto], ModelProto]]] = {
        "core.fp16.onnx": (lambda: half_precision(core), lambda reduced: reduced),
        "model.int8.onnx": (
            lambda: quantize_int8(core, calibration, facts.mean, facts.std),
            lambda reduced: deployable(reduced, facts.resize, facts.crop, facts.mean, facts.std),
        ),
    }
    rows = []
    for name, (make, complete) in makers.items():
        (folder / name).unlink(missing_ok=True)
        row: dict[str, Any] = {"file": name, "accuracy": 0.0, "accuracy_drop": full_accuracy, "shipped": False}
        try:
            reduced = make()
            logits = run_core(reduced, crops, facts.mean, facts.std)
        except Exception as error:  # a converter that does not know an architecture must not stop the export
            rows.append({**row, "reason": f"it could not be made: {' '.join(str(error).split()):.200}"})
            continue
        rows.append({**row, **_judge(logits, labels, full_accuracy, max_drop)})
        if rows[-1]["shipped"]:
            check_and_save(folder / name, complete(reduced), metadata)
    return rows


def _judge(logits: np.ndarray, labels: np.ndarray, full_accuracy: float, max_drop: float) -> dict[str, Any]:
    finite = bool(np.isfinite(logits).all())
    found = accuracy(logits, labels) if finite else 0.0
    drop = full_accuracy - found
    shipped = finite and drop <= max_drop + 1e-12
    if not finite:
        reason = "its logits are not finite"
    else:
        reason = "" if shipped else f"top-1 drops by {drop:.4f}, more than export.max_accuracy_drop {max_drop:g}"
    return {"accuracy": found, "accuracy_drop": drop, "shipped": shipped, "reason": reason}


def choose_evenly(num_images: int, limit: int) -> Sequence[int]:
    """At most `limit` indices spread evenly over all images, so that every class is among them."""
    return np.unique(np.linspace(0, num_images - 1, min(limit, num_images)).round().astype(int)).tolist()
