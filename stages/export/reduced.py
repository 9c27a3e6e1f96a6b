"""Copies of the network in less than 32 bits, each shipped only while its accuracy holds."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from stages.export.core import INPUT, OUTPUT
from stages.export.graph import sort_nodes, strip
from stages.shared.transforms import normalize

BATCH = 32


def half_precision(core: ModelProto) -> ModelProto:
    """Weights and arithmetic in float16; input and output stay float32. Of use on CUDA, on a CPU it is slower."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # some builds leave it out

    half = convert_float_to_float16(_copy(core), keep_io_types=True)
    strip(half)
    sort_nodes(half)  # the converter appends its casts
    return half


def quantize_int8(core: ModelProto, crops: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> ModelProto:
    """Weights and activations in int8 (static, QDQ, weights per channel), for CPUs: on CUDA its nodes would fall back.

    `crops` are uint8 (n, crop, crop, 3) TRAINING images as the model is fed: the ranges of the activations are taken from them.
    """
    logging.getLogger().addFilter(_no_advice)  # to run a pre-processing step that the exporter has already done
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "core.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(core.SerializeToString())
            quantize_static(
                source,
                target,
                _Crops(crops, mean, std),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            quantized = onnx.load(target)
    finally:
        logging.getLogger().removeFilter(_no_advice)
    strip(quantized)
    _keep_own_opset(quantized)
    return quantized


class _Crops(CalibrationDataReader):
    """onnxruntime's protocol: one batch a call, None at the end."""

    def __init__(self, crops: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = (
            {INPUT: normalized(crops[start : start + BATCH], mean, std)} for start in range(0, len(crops), BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def run_core(core: ModelProto, crops: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Logits (n, classes) of uint8 crops (n, crop, crop, 3), by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])
    batches = (normalized(crops[start : start + BATCH], mean, std) for start in range(0, len(crops), BATCH))
    return np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in batches])


def normalized(crops: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """float32 (n, 3, crop, crop), contiguous, as the core is fed."""
    pixels = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2)
    return normalize(pixels, mean, std, torch.float32).contiguous().numpy()


def _keep_own_opset(model: ModelProto) -> None:
    """The quantizer declares a domain of ONNX Runtime's own that its QDQ form does not use."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _copy(core: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(core)
    return copy


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()
