"""Check numbers: each runtime's logits against float64, batch 1 against 32, and the same run twice."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper

from stages.check_parity import sessions
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, attempt, distance, judge, not_run, unreadable
from stages.check_parity.subjects import Subjects
from stages.shared.inference import predict_logits
from stages.shared.shipped_files import CORE, FILES, LOGITS, NORMALIZED, ShippedFile

BATCH = 32
NUM_SINGLE, NUM_AGAIN = 32, 256  # images that are also run one by one, and a second time
AGREES = "agrees with float64"

Limits = Mapping[str, float]
Models = Mapping[str, ModelProto]
Open = Callable[[bytes, Path], onnxruntime.InferenceSession]  # a model's bytes and a place for a profile


def torch_rows(subjects: Subjects, limits: Limits) -> list[Row]:
    """torch's own float32, judged as any other runtime: where it is off too, the exported file is not to blame."""
    on_cpu, on_cuda = (Claim(f"torch {device}", "fp32", "checkpoint", AGREES) for device in ("CPU", "CUDA"))
    rows = attempt(on_cpu, partial(_torch_rows, on_cpu, subjects, "cpu", limits["fp32"]))
    if not torch.cuda.is_available():
        return [*rows, *not_run([on_cuda], "no CUDA device")]
    return [*rows, *attempt(on_cuda, partial(_torch_rows, on_cuda, subjects, "cuda", limits["fp32"]))]


def networks() -> list[ShippedFile]:
    """The files whose networks differ: model.onnx and model.crops.onnx hold core.onnx's."""
    return [file for file in FILES if file == CORE or file.is_reduced]


def cpu_rows(subjects: Subjects, models: Models, limits: Limits) -> list[Row]:
    rows = []
    for file in networks():
        claim = Claim("ONNX Runtime CPU", file.precision, file.name, AGREES)
        rows += _checked(claim, file, _open_cpu, subjects, models, limits)
    return rows


@dataclass(frozen=True)
class CudaMode:
    """One way to run a file on CUDA."""

    file: ShippedFile
    precision: str  # of the arithmetic: tf32 is float32 with 10 bits in the products
    channels_last: bool = False

    @property
    def name(self) -> str:
        return "channels last" if self.channels_last else ""


def cuda_modes() -> list[CudaMode]:
    """Each network made for CUDA in its own precision, float32 also with TF32, and each again channels last."""
    files = [file for file in networks() if "cuda" in file.devices]
    modes = [CudaMode(file, file.precision) for file in files] + [CudaMode(CORE, "tf32")]
    return modes + [replace(mode, channels_last=True) for mode in modes]


def cuda_rows(subjects: Subjects, models: Models, limits: Limits) -> list[Row]:
    """CUDA in every mode, and TensorRT; each with every proof that it ran there."""
    modes = cuda_modes()
    claims = [Claim("ONNX Runtime CUDA", mode.precision, mode.file.name, AGREES, mode=mode.name) for mode in modes]
    # TensorRT chooses TF32 kernels where they are faster, so it is held to that limit
    tensorrt = Claim("ONNX Runtime TensorRT", "tf32", CORE.name, AGREES)
    count, why = sessions.count_devices()
    if not count:
        return not_run([*claims, tensorrt], "no CUDA device", why)
    error = sessions.provider_error("cuda")
    if error:
        reason = f"there is a CUDA device, but ONNX Runtime's CUDA provider does not load: {error}"
        return [Row(claim, FAILED, f"{reason}; install onnxruntime-gpu[cuda,cudnn]") for claim in [*claims, tensorrt]]
    rows = []
    for mode, claim in zip(modes, claims, strict=True):
        opener = partial(_open_cuda, tf32=mode.precision == "tf32", channels_last=mode.channels_last)
        rows += _checked(claim, mode.file, opener, subjects, models, limits)
    error = sessions.provider_error("tensorrt")
    if error:
        return [*rows, *not_run([tensorrt], "TensorRT's libraries are not installed", error)]
    return [*rows, *_checked(tensorrt, CORE, _open_tensorrt, subjects, models, limits)]


def _checked(
    claim: Claim, file: ShippedFile, opener: Open, subjects: Subjects, models: Models, limits: Limits
) -> list[Row]:
    if file.path in models:
        core, limit = core_of(models[file.path]), limits[claim.precision]
        return attempt(claim, partial(_session_rows, claim, opener, core, subjects, limit, limits["fp32"]))
    if file.name in subjects.not_shipped:
        return not_run([claim], "not shipped", subjects.not_shipped[file.name])
    return unreadable([claim])


def _session_rows(
    claim: Claim, opener: Open, core: bytes, subjects: Subjects, limit: float, torch_limit: float
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        session = opener(core, Path(folder) / "profile")
        logits = sessions.run_all(session, subjects.batches(BATCH))
        again = sessions.run_all(session, subjects.batches(BATCH, NUM_AGAIN))
        single = sessions.run_all(session, subjects.batches(1, NUM_SINGLE))
        proof = sessions.end_proof(session)
    torch_error = distance(subjects.float32, subjects.float64).error
    judged = partial(judge, limit=limit, torch_error=torch_error, torch_limit=torch_limit)
    first = judged(claim, distance(logits, subjects.float64))
    first.details.update(proof)
    alone = replace(claim, check="batch 1 agrees with batch 32")
    return [
        first,
        judged(alone, distance(single, logits[:NUM_SINGLE])),
        _repeat_row(claim, logits[: len(again)], again, limit),
    ]


def _open_cpu(core: bytes, _profile: Path) -> onnxruntime.InferenceSession:
    return sessions.cpu_session(core)


def _open_cuda(core: bytes, profile: Path, *, tf32: bool, channels_last: bool) -> onnxruntime.InferenceSession:
    return sessions.cuda_session(core, tf32=tf32, channels_last=channels_last, profile=profile)


def _open_tensorrt(core: bytes, _profile: Path) -> onnxruntime.InferenceSession:
    return sessions.tensorrt_session(core)


def _repeat_row(claim: Claim, logits: np.ndarray, again: np.ndarray, limit: float) -> Row:
    """A second run must agree within the limit; whether it agrees bit for bit is reported."""
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
    """The network alone, from normalised images to logits."""
    if model.graph.input[0].name == NORMALIZED:
        return model.SerializeToString()
    needed: set[str] = {LOGITS}
    nodes: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and NORMALIZED not in node.output:
            needed.update(node.input)
            nodes.insert(0, node)
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (NORMALIZED, LOGITS))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(nodes, "core", [next(ends)], [next(ends)], tensors)
    core = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return core.SerializeToString()
