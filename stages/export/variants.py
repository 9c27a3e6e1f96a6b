"""Which files are shipped: the network in float16 and int8, each only while its accuracy and its logits hold."""

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
    crops: np.ndarray,  # uint8 (m, crop, crop, 3), training images that were not used for calibration
    labels: np.ndarray,  # (m,)
    reference: np.ndarray,  # (m, classes), float64 logits
    max_drop: float,
    max_errors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Write each variant whose top-1 drops by at most `max_drop` and whose logits are off by at most `max_errors[file]`.

    The error is max |Δlogit| / max |reference logit|, as in check_parity. Returns the numbers of all variants.
    """
    full_accuracy = accuracy(reference, labels)
    makers: Mapping[str, tuple[Callable[[], ModelProto], Callable[[ModelProto], ModelProto]]] = {
        "core.fp16.onnx": (lambda: half_precision(core), lambda reduced: reduced),
        "model.int8.onnx": (
            lambda: quantize_int8(core, calibration, facts.transform.mean, facts.transform.std),
            lambda reduced: deployable(
                reduced, facts.transform.resize, facts.transform.crop, facts.transform.mean, facts.transform.std
            ),
        ),
    }
    rows = []
    for name, (make, complete) in makers.items():
        (folder / name).unlink(missing_ok=True)
        row: dict[str, Any] = {"file": name, "accuracy": None, "accuracy_drop": None, "error": None, "shipped": False}
        try:
            reduced = make()
            logits = run_core(reduced, crops, facts.transform.mean, facts.transform.std)
        except Exception as cause:  # a converter that does not know an architecture must not stop the export
            rows.append({**row, "reason": f"it could not be made: {' '.join(str(cause).split()):.200}"})
            continue
        drop = full_accuracy - accuracy(logits, labels)
        error = float(np.abs(logits - reference).max() / np.abs(reference).max())
        reason = _why_not(drop, error, max_drop, max_errors[name])
        numbers = {
            "accuracy": full_accuracy - drop,
            "accuracy_drop": drop,
            "error": error if np.isfinite(error) else None,
        }
        rows.append({**row, **numbers, "shipped": not reason, "reason": reason})
        if rows[-1]["shipped"]:
            check_and_save(folder / name, complete(reduced), metadata)
    return rows


def _why_not(drop: float, error: float, max_drop: float, max_error: float) -> str:
    if not np.isfinite(error):
        return "its logits are not finite"
    if drop > max_drop + 1e-12:
        return f"top-1 drops by {drop:.4f}, more than export.max_accuracy_drop {max_drop:g}"
    return f"its logits are off by {error:.3g}, more than parity's {max_error:g}" if error > max_error else ""


def choose_evenly(num_images: int, limit: int) -> Sequence[int]:
    """At most `limit` indices spread evenly over all images, so that every class is among them."""
    return np.unique(np.linspace(0, num_images - 1, min(limit, num_images)).round().astype(int)).tolist()
