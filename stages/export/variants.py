"""Make the network in float16 and int8, and ship what is accurate and fast enough.

They are judged on training images, and not on those that calibrated the ranges of their activations.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from stages.export.graph import check_and_save, clean
from stages.shared.metrics import accuracy, relative_error
from stages.shared.shipped_files import FILES, LOGITS, NORMALIZED, ShippedFile

BATCH = 32
# Of parity's limits: an image that is not judged here may be off by more (seen of int8: 0.35 here, 0.89 in parity; 0.24 and 0.53).
MARGINS = {"fp16": 0.5, "int8": 0.25}
ROUNDS = 5  # of timed runs, float32 and the variant in turns; the fastest of each counts


@dataclass(frozen=True)
class Judged:
    """Training images that a variant is judged on."""

    images: np.ndarray  # float32 (n, 3, crop, crop), normalised
    labels: np.ndarray  # (n,)
    reference: np.ndarray  # (n, classes), float64 logits of the network as it was trained


@dataclass(frozen=True)
class Demands:
    """The conditions that params.yaml sets for a variant."""

    max_accuracy_drop: float  # top-1, as a fraction
    max_errors: Mapping[str, float]  # max |Δlogit| / max |reference logit|, by precision
    min_speedup: float  # of a file for CPUs against float32; 0 asks for nothing


def half_precision(core: ModelProto, _images: np.ndarray) -> ModelProto:
    """Weights and arithmetic in float16; input and output stay float32. Of use on CUDA, on a CPU it is slower."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # some builds leave it out

    copy = ModelProto.FromString(core.SerializeToString())
    return clean(convert_float_to_float16(copy, keep_io_types=True))


def eight_bits(core: ModelProto, images: np.ndarray, *, reduce_range: bool) -> ModelProto:
    """Static QDQ for CPUs (CUDA has no kernels for it): activations in uint8, weights in int8 per channel.

    Signed activations would be slower than float32. A CPU without VNNI adds pairs of products in 16 bits, which saturate:
    there, weights of 7 bits (`reduce_range`) are the more exact ones.
    """
    logging.getLogger().addFilter(_no_advice)  # to run a pre-processing step that the exporter has already done
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "core.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(core.SerializeToString())
            quantize_static(
                source,
                target,
                _Batches(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_beside_logits(core),
            )
            return clean(onnx.load(target))
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _beside_logits(core: ModelProto) -> list[str]:
    """The names of nodes that the logits do not need: what is computed of the maps for familiarity, too fine for 8 bits."""
    needed = {LOGITS}
    for node in reversed(core.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return [node.name for node in core.graph.node if not needed.intersection(node.output)]


# The ways to make each precision, by name; the one of the smallest error is taken.
Maker = Callable[[ModelProto, np.ndarray], ModelProto]
WAYS: Mapping[str, Mapping[str, Maker]] = {
    "fp16": {"float16": half_precision},
    "int8": {
        "weights of 8 bits": lambda core, images: eight_bits(core, images, reduce_range=False),
        "weights of 7 bits": lambda core, images: eight_bits(core, images, reduce_range=True),
    },
}


def ship_variants(
    root: Path,
    core: ModelProto,
    complete: Callable[[ModelProto], ModelProto],
    metadata: Mapping[str, str],
    of_core: Mapping[str, str],
    *,
    calibration: np.ndarray,  # float32 (m, 3, crop, crop), normalised training images
    judged: Judged,
    demands: Demands,
) -> list[dict[str, Any]]:
    """Write each reduced file that meets `demands` under `root`; return a row on each, with the reason where it does not.

    `complete` makes of a network the file that takes images, and `metadata` is that file's; `of_core` is the network's own.
    """
    rows = []
    for file in FILES:
        if not file.is_reduced:
            continue
        (root / file.path).unlink(missing_ok=True)
        row: dict[str, Any] = {"file": file.name, "way": None, "accuracy_drop": None, "error": None, "shipped": False}
        try:
            way, reduced, logits = _best(file.precision, core, calibration, judged)
        except Exception as cause:  # a converter that does not know an architecture must not stop the export
            rows.append({**row, "reason": f"it could not be made: {' '.join(str(cause).split()):.200}"})
            continue
        error = relative_error(logits, judged.reference)
        drop = accuracy(judged.reference, judged.labels) - accuracy(logits, judged.labels)
        reason = _why_not(file, drop, error, demands) or _too_slow(file, core, reduced, judged.images, demands)
        if not reason:
            whole = file.takes == "image"
            check_and_save(root / file.path, complete(reduced) if whole else reduced, metadata if whole else of_core)
        finite = error if np.isfinite(error) else None
        rows.append(
            {**row, "way": way, "accuracy_drop": drop, "error": finite, "shipped": not reason, "reason": reason}
        )
    return rows


def split_evenly(num_images: int, num_calibration: int, num_judged: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to calibrate on and to judge on, disjoint, both spread over all images, so over all classes."""
    wanted = min(num_calibration + num_judged, num_images)
    rows = np.unique(np.linspace(0, num_images - 1, wanted).round().astype(int))
    every = max(2, round((num_calibration + num_judged) / num_calibration))
    is_calibration = np.arange(len(rows)) % every == 0
    return rows[is_calibration], rows[~is_calibration]


def run_core(core: ModelProto, batches: Iterable[np.ndarray], *outputs: str) -> list[np.ndarray]:
    """Outputs (n, …) of the network for batches of normalised images (b, 3, crop, crop), by ONNX Runtime on the CPU."""
    session = _session(core)
    found = [session.run(outputs, {NORMALIZED: images}) for images in batches]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def in_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def speedup(core: ModelProto, reduced: ModelProto, images: np.ndarray) -> float:
    """The speed of `reduced` over that of `core` on this CPU, with a batch of `images`."""
    sessions, seconds = [_session(model) for model in (core, reduced)], np.full((ROUNDS, 2), np.inf)
    for round_ in range(-1, ROUNDS):
        for place, session in enumerate(sessions):
            start = time.perf_counter()
            session.run([LOGITS], {NORMALIZED: images})
            if round_ >= 0:
                seconds[round_, place] = time.perf_counter() - start
    slow, fast = seconds.min(axis=0)
    return float(slow / fast)


def _best(
    precision: str, core: ModelProto, calibration: np.ndarray, judged: Judged
) -> tuple[str, ModelProto, np.ndarray]:
    """The setting with the smallest error on this machine, the model that it gives, and that model's logits of the judged images."""
    made = {way: make(core, calibration) for way, make in WAYS[precision].items()}
    logits = {way: run_core(model, in_batches(judged.images), LOGITS)[0] for way, model in made.items()}
    best = min(made, key=lambda way: relative_error(logits[way], judged.reference))
    return best, made[best], logits[best]


def _why_not(file: ShippedFile, drop: float, error: float, demands: Demands) -> str:
    if not np.isfinite(error):
        return "its logits are not finite"
    if drop > demands.max_accuracy_drop + 1e-12:
        return f"top-1 drops by {drop:.4f}, more than export.max_accuracy_drop {demands.max_accuracy_drop:g}"
    margin = MARGINS[file.precision]
    limit = margin * demands.max_errors[file.precision]
    return (
        f"its logits are off by {error:.3g}, more than {limit:g}, {margin:g} of parity's limit" if error > limit else ""
    )


def _too_slow(file: ShippedFile, core: ModelProto, reduced: ModelProto, images: np.ndarray, demands: Demands) -> str:
    if "cpu" not in file.devices or not demands.min_speedup:
        return ""
    found = speedup(core, reduced, images[:BATCH])
    return (
        f"it is {found:.2f} times as fast as float32 here, export.min_speedup is {demands.min_speedup:g}"
        if found < demands.min_speedup
        else ""
    )


def _session(core: ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])


class _Batches(CalibrationDataReader):
    """onnxruntime's protocol: one batch a call, None at the end."""

    def __init__(self, images: np.ndarray) -> None:
        starts = range(0, len(images), BATCH)
        self.batches: Iterator[dict[str, np.ndarray]] = (
            {NORMALIZED: images[start : start + BATCH]} for start in starts
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()
