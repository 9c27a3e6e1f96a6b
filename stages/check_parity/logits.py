"""Rows on numbers: each runtime's logits against float64, batch 1 against 32, and the same run twice."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, utils

from stages.check_parity import cuda, sessions
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, attempt, distance, judge, not_run, unreadable
from stages.check_parity.subjects import Subjects
from stages.shared.inference import predict_logits

BATCH = 32
NUM_SINGLE = 32  # images that are also run one by one
CORE, HALF, INT8 = "export/core.onnx", "export/core.fp16.onnx", "export/model.int8.onnx"
AGREES = "agrees with float64"

Limits = Mapping[str, float]
Models = Mapping[str, ModelProto]
Open = Callable[[bytes, Path], onnxruntime.InferenceSession]  # a model's bytes and a place for a profile


def torch_rows(subjects: Subjects, limits: Limits) -> list[Row]:
    """torch's own float32, judged as any other runtime: it is the one that names the guilty side."""
    on_cpu, on_cuda = (Claim(f"torch {device}", "fp32", "checkpoint", AGREES) for device in ("CPU", "CUDA"))
    rows = attempt(on_cpu, partial(_torch_rows, on_cpu, subjects, "cpu", limits["fp32"]))
    if not torch.cuda.is_available():
        return [*rows, *not_run([on_cuda], "no CUDA device")]
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    rows += attempt(on_cuda, partial(_torch_rows, on_cuda, subjects, "cuda", limits["fp32"]))
    return rows


def cpu_rows(subjects: Subjects, models: Models, limits: Limits) -> list[Row]:
    rows = []
    for name, precision in ((CORE, "fp32"), (HALF, "fp16"), (INT8, "int8")):
        claim = Claim("ONNX Runtime CPU", precision, Path(name).name, AGREES)
        rows += _checked(claim, name, _open_cpu, subjects, models, limits, precision)
    return rows


def cuda_rows(subjects: Subjects, models: Models, limits: Limits) -> list[Row]:
    """CUDA in float32, TF32 and float16, and TensorRT; each with every proof that it ran there."""
    wanted = [(CORE, "fp32"), (CORE, "tf32"), (HALF, "fp16")]
    claims = [Claim("ONNX Runtime CUDA", precision, Path(name).name, AGREES) for name, precision in wanted]
    tensorrt = Claim("ONNX Runtime TensorRT", "fp32", Path(CORE).name, AGREES)
    count, why = cuda.count_devices()
    if not count:
        return not_run([*claims, tensorrt], "no CUDA device", why)
    error = cuda.provider_error("cuda")
    if error:
        reason = f"there is a CUDA device, but ONNX Runtime's CUDA provider does not load: {error}"
        return [Row(claim, FAILED, f"{reason}; install onnxruntime-gpu[cuda,cudnn]") for claim in [*claims, tensorrt]]
    rows = []
    for (name, precision), claim in zip(wanted, claims, strict=True):
        opener = partial(_open_cuda, tf32=precision == "tf32")
        rows += _checked(claim, name, opener, subjects, models, limits, precision)
    error = cuda.provider_error("tensorrt")
    if error:
        return [*rows, *not_run([tensorrt], "TensorRT's libraries are not installed", error)]
    # TensorRT chooses TF32 kernels where they are faster
    return [*rows, *_checked(tensorrt, CORE, _open_tensorrt, subjects, models, limits, "tf32")]


def _checked(
    claim: Claim, name: str, opener: Open, subjects: Subjects, models: Models, limits: Limits, precision: str
) -> list[Row]:
    if name in models:
        core, limit = core_of(models[name]), limits[precision]
        return attempt(claim, partial(_session_rows, claim, opener, core, subjects, limit, limits["fp32"]))
    if claim.subject in subjects.not_shipped:
        return not_run([claim], "not shipped", subjects.not_shipped[claim.subject])
    return unreadable([claim])


def _session_rows(
    claim: Claim, opener: Open, core: bytes, subjects: Subjects, limit: float, torch_limit: float
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        session = opener(core, Path(folder) / "profile")
        logits = sessions.run_all(session, subjects.images, BATCH)
        again = sessions.run_all(session, subjects.images, BATCH)
        single = sessions.run_all(session, subjects.images[:NUM_SINGLE], 1)
        proof = sessions.end_proof(session)
    torch_error = distance(subjects.float32, subjects.float64).error
    judged = partial(judge, limit=limit, torch_error=torch_error, torch_limit=torch_limit)
    first = judged(claim, distance(logits, subjects.float64))
    first.details.update(proof)
    alone = replace(claim, check="batch 1 agrees with batch 32")
    return [first, judged(alone, distance(single, logits[:NUM_SINGLE])), _repeat_row(claim, logits, again, limit)]


def _open_cpu(core: bytes, _profile: Path) -> onnxruntime.InferenceSession:
    return sessions.cpu_session(core)


def _open_cuda(core: bytes, profile: Path, *, tf32: bool) -> onnxruntime.InferenceSession:
    return sessions.cuda_session(core, tf32=tf32, profile=profile)


def _open_tensorrt(core: bytes, _profile: Path) -> onnxruntime.InferenceSession:
    return sessions.tensorrt_session(core)


def _repeat_row(claim: Claim, logits: np.ndarray, again: np.ndarray, limit: float) -> Row:
    """Bitwise or not is told; what is required is that a second run is as near as the limit allows."""
    equal, error = bool(np.array_equal(logits, again)), distance(again, logits).error
    reason = "bitwise equal" if equal else f"not bitwise equal: {error:.2g} apart"
    verdict = PASSED if equal or error <= limit else FAILED
    return Row(replace(claim, check="runs the same twice"), verdict, reason, error, limit, {"bitwise_equal": equal})


def _torch_rows(claim: Claim, subjects: Subjects, device: str, limit: float) -> list[Row]:
    logits = predict_logits(
        subjects.model, subjects.crops, subjects.facts.transform, device=torch.device(device), batch_size=BATCH
    )
    stored = distance(subjects.float32, subjects.float64).error
    return [judge(claim, distance(logits, subjects.float64), limit, torch_error=stored, torch_limit=limit)]


def core_of(model: ModelProto) -> bytes:
    """The network alone; of a file with the test transform inside, the part from the normalised images to the logits."""
    if model.graph.input[0].name == "normalized":
        return model.SerializeToString()
    ends = {node.name: node for node in model.graph.node}
    part = utils.Extractor(model).extract_model([ends["normalize"].output[0]], [ends["softmax"].input[0]])
    return part.SerializeToString()
