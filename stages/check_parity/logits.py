"""Rows on numbers: each runtime's logits against float64, batch 1 against 32, and the same run twice."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, utils

from stages.check_parity import cuda, sessions
from stages.check_parity.judge import FAILED, NO_DEVICE, PASSED, Row, attempt, distance, judge, not_run
from stages.check_parity.subjects import Subjects
from stages.shared.inference import predict_logits

BATCH = 32
NUM_SINGLE = 32  # images that are also run one by one
CORE, HALF, INT8 = "export/core.onnx", "export/core.fp16.onnx", "export/model.int8.onnx"


def torch_rows(subjects: Subjects, limits: Mapping[str, float]) -> list[Row]:
    """torch's own float32, judged as any other runtime: it is the one that names the guilty side."""
    rows = attempt(lambda: [_torch_row(subjects, "cpu", limits["fp32"])], **_torch_name("cpu"))
    if not torch.cuda.is_available():
        return [*rows, *not_run([_torch_name("cuda")], NO_DEVICE.removeprefix("not run: "))]
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    rows += attempt(lambda: [_torch_row(subjects, "cuda", limits["fp32"])], **_torch_name("cuda"))
    subjects.model.to("cpu")
    return rows


def cpu_rows(subjects: Subjects, models: Mapping[str, ModelProto], limits: Mapping[str, float]) -> list[Row]:
    rows = []
    for name, precision in ((CORE, "fp32"), (HALF, "fp16"), (INT8, "int8")):
        named = {"runtime": "ONNX Runtime CPU", "precision": precision, "subject": Path(name).name}
        if name not in models:
            rows += _absent(subjects, named)
            continue
        source = _core_of(models[name])
        limit = limits[precision]
        rows += attempt(
            lambda s=source, n=named, l=limit: _session_rows(sessions.cpu_session(s), subjects, n, l, limits["fp32"]),
            **named,
            check="agrees with float64",
        )  # type: ignore[misc]
    return rows


def cuda_rows(subjects: Subjects, models: Mapping[str, ModelProto], limits: Mapping[str, float]) -> list[Row]:
    """CUDA in float32, TF32 and float16, and TensorRT; each with every proof that it ran there."""
    claims = [(CORE, "fp32"), (CORE, "tf32"), (HALF, "fp16")]
    named = [
        {"runtime": "ONNX Runtime CUDA", "precision": precision, "subject": Path(name).name}
        for name, precision in claims
    ]
    tensorrt = {"runtime": "ONNX Runtime TensorRT", "precision": "fp32", "subject": "core.onnx"}
    count, why = cuda.count_devices()
    if not count:
        return not_run([row | {"check": "agrees with float64"} for row in [*named, tensorrt]], "no CUDA device", why)
    error = cuda.provider_error("cuda")
    if error:
        reason = f"there is a CUDA device, but ONNX Runtime's CUDA provider does not load: {error}; install onnxruntime-gpu[cuda,cudnn]"
        return [Row(**row, check="agrees with float64", verdict=FAILED, reason=reason) for row in [*named, tensorrt]]
    rows = []
    for (name, precision), row in zip(claims, named, strict=True):
        if name not in models:
            rows += _absent(subjects, row)
            continue
        make = _cuda_maker(_core_of(models[name]), precision)
        rows += attempt(
            lambda m=make, n=row, p=precision: _proved_rows(m, subjects, n, limits[p], limits["fp32"]),
            **row,
            check="agrees with float64",
        )  # type: ignore[misc]
    return [*rows, *_tensorrt_rows(subjects, models, tensorrt, limits)]


def _tensorrt_rows(
    subjects: Subjects, models: Mapping[str, ModelProto], row: dict[str, str], limits: Mapping[str, float]
) -> list[Row]:
    error = cuda.provider_error("tensorrt")
    named = row | {"check": "agrees with float64"}
    if error:
        return not_run([named], "TensorRT's libraries are not installed", error)
    if CORE not in models:
        return _absent(subjects, row)

    def make() -> list[Row]:
        session = sessions.tensorrt_session(_core_of(models[CORE]), half=False)
        return _session_rows(session, subjects, row, limits["tf32"], limits["fp32"])

    return attempt(make, **named)


def _session_rows(
    session: onnxruntime.InferenceSession, subjects: Subjects, named: dict[str, str], limit: float, torch_limit: float
) -> list[Row]:
    logits = sessions.run_all(session, subjects.images, BATCH)
    again = sessions.run_all(session, subjects.images, BATCH)
    single = sessions.run_all(session, subjects.images[:NUM_SINGLE], 1)
    torch_error = distance(subjects.float32, subjects.float64).error
    against = {"torch_error": torch_error, "torch_limit": torch_limit}
    return [
        judge(distance(logits, subjects.float64), limit, **against, **named, check="agrees with float64"),
        judge(distance(single, logits[:NUM_SINGLE]), limit, **against, **named, check="batch 1 agrees with batch 32"),
        _repeat_row(logits, again, limit, named),
    ]


def _proved_rows(
    make: Callable[[Path], onnxruntime.InferenceSession],
    subjects: Subjects,
    named: dict[str, str],
    limit: float,
    torch_limit: float,
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        session = make(Path(folder) / "profile")
        nodes = sessions.assigned(session)
        rows = _session_rows(session, subjects, named, limit, torch_limit)
        kernels = sessions.profiled(session, sessions.CUDA)
    rows[0].details.update(nodes=nodes, kernels=kernels)
    return rows


def _cuda_maker(core: bytes, precision: str) -> Callable[[Path], onnxruntime.InferenceSession]:
    return lambda profile: sessions.cuda_session(core, tf32=precision == "tf32", profile=profile)


def _repeat_row(logits: np.ndarray, again: np.ndarray, limit: float, named: dict[str, str]) -> Row:
    """Bitwise or not is told; what is required is that a second run is as near as the limit allows."""
    equal, found = bool(np.array_equal(logits, again)), distance(again, logits)
    verdict = PASSED if equal or found.error <= limit else FAILED
    reason = "bitwise equal" if equal else f"not bitwise equal: {found.error:.2g} apart"
    numbers: dict[str, Any] = {"max_error": found.error, "limit": limit, "details": {"bitwise_equal": equal}}
    return Row(**named, check="runs the same twice", verdict=verdict, reason=reason, **numbers)


def _torch_row(subjects: Subjects, device: str, limit: float) -> Row:
    facts = subjects.facts
    logits = predict_logits(
        subjects.model, subjects.crops, mean=facts.mean, std=facts.std, device=torch.device(device), batch_size=BATCH
    )
    found = distance(logits, subjects.float64)
    stored = distance(subjects.float32, subjects.float64).error
    return judge(found, limit, torch_error=stored, torch_limit=limit, **_torch_name(device))


def _torch_name(device: str) -> dict[str, str]:
    return {
        "runtime": f"torch {device.upper()}",
        "precision": "fp32",
        "subject": "checkpoint",
        "check": "agrees with float64",
    }


def _core_of(model: ModelProto) -> bytes:
    """The network alone; of a file with the test transform inside, the part from the normalised images to the logits."""
    if model.graph.input[0].name == "normalized":
        return model.SerializeToString()
    names = {name for node in model.graph.node for name in node.output}
    start = "normalized" if "normalized" in names else "before_core"
    end = next(node.input[0] for node in model.graph.node if node.name == "softmax")
    return utils.Extractor(model).extract_model([start], [end]).SerializeToString()


def _absent(subjects: Subjects, named: dict[str, str]) -> list[Row]:
    row = named | {"check": "agrees with float64"}
    if named["subject"] in subjects.not_shipped:
        return not_run([row], "not shipped", subjects.not_shipped[named["subject"]])
    return [Row(**row, verdict=FAILED, reason=f"{named['subject']} cannot be read (see its file row)")]
