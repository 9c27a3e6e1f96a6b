"""Rows on speed: how long a batch takes, by runtime; each also shows that the timed path gives the reference's answer."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

from stages.check_parity import cuda, sessions
from stages.check_parity.judge import Claim, Row, attempt, distance, judge, not_run
from stages.check_parity.logits import CORE
from stages.check_parity.subjects import Subjects

BATCHES = (1, 32)
SECONDS = 0.4  # of timed runs a row
MIN_RUNS, MAX_RUNS, WARMUPS = 3, 200, 3

Step = Callable[[], None]  # one timed run
Timed = tuple[Step, Callable[[], np.ndarray]]  # and the logits (batch, classes) that it left
Make = Callable[[np.ndarray], Timed]  # for images float32 (batch, 3, crop, crop)


def latency_rows(
    subjects: Subjects, models: Mapping[str, ModelProto], limit: float, *, compiled_on_cpu: bool
) -> list[Row]:
    """ONNX Runtime and torch on the CPU; on CUDA also with IO binding, with a CUDA graph, and torch compiled."""
    core = models[CORE].SerializeToString() if CORE in models else None
    rows = []
    for runtime, make in {**_torch_makers(subjects), **(_onnx_makers(core) if core else {})}.items():
        if "CUDA" in runtime and not cuda.count_devices()[0]:
            rows += not_run(_claims(runtime), "no CUDA device")
        elif runtime == "torch CPU compiled" and not compiled_on_cpu:
            rows += not_run(_claims(runtime), "compiling takes longer than this stage should; add --compile")
        else:
            rows += [row for claim in _claims(runtime) for row in _timed(claim, make, subjects, limit)]
    return rows


def _torch_makers(subjects: Subjects) -> dict[str, Make]:
    return {
        "torch CPU eager": partial(_torch_run, subjects.model, "cpu", False),
        "torch CPU compiled": partial(_torch_run, subjects.model, "cpu", True),
        "torch CUDA eager": partial(_torch_run, subjects.model, "cuda", False),
        "torch CUDA compiled": partial(_torch_run, subjects.model, "cuda", True),
    }


def _onnx_makers(core: bytes) -> dict[str, Make]:
    on_cuda = partial(sessions.cuda_session, core, tf32=False)
    return {
        "ONNX Runtime CPU": lambda images: _plain_run(sessions.cpu_session(core), images),
        "ONNX Runtime CUDA": lambda images: _plain_run(on_cuda(), images),
        "ONNX Runtime CUDA, IO binding": lambda images: _bound_run(on_cuda(), images),
        "ONNX Runtime CUDA, CUDA graph": lambda images: _bound_run(on_cuda(cuda_graph=True), images),
    }


def _claims(runtime: str) -> list[Claim]:
    subject = "checkpoint" if runtime.startswith("torch") else Path(CORE).name
    return [Claim(runtime, "fp32", subject, f"latency, batch {batch}") for batch in BATCHES]


def _timed(claim: Claim, make: Make, subjects: Subjects, limit: float) -> list[Row]:
    chosen = np.arange(int(claim.check.rsplit(" ", 1)[1])) % len(subjects.images)

    def rows() -> list[Row]:
        step, answer = make(subjects.images[chosen])
        seconds = _measure(step)
        torch_error = distance(subjects.float32, subjects.float64).error
        found = distance(answer(), subjects.float64[chosen])
        row = judge(claim, found, limit, torch_error=torch_error, torch_limit=limit)
        row.details.update(_summary(seconds, len(chosen)))
        return [row]

    return attempt(claim, rows)


def _summary(seconds: list[float], batch: int) -> dict[str, float]:
    p50, p99 = (float(np.percentile(seconds, q)) for q in (50, 99))
    return {
        "p50_ms": round(1000 * p50, 3),
        "p99_ms": round(1000 * p99, 3),
        "images_per_second": round(batch / p50, 1),
        "runs": len(seconds),
    }


def _measure(step: Step) -> list[float]:
    for _ in range(WARMUPS):
        step()
    seconds: list[float] = []
    while len(seconds) < MIN_RUNS or (sum(seconds) < SECONDS and len(seconds) < MAX_RUNS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _plain_run(session: onnxruntime.InferenceSession, images: np.ndarray) -> Timed:
    feed, answers = {session.get_inputs()[0].name: images}, [np.empty(0)]

    def step() -> None:
        answers[0] = session.run(None, feed)[0]

    return step, lambda: answers[0]


def _bound_run(session: onnxruntime.InferenceSession, images: np.ndarray) -> Timed:
    """Input and output stay on the device, at fixed addresses, which a CUDA graph needs."""
    num_classes = session.get_outputs()[0].shape[1]
    source = onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    target = onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(images), num_classes], np.float32, "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, source)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, target)

    def step() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return step, target.numpy


def _torch_run(model: torch.nn.Module, device: str, compiled: bool, images: np.ndarray) -> Timed:
    """Input and output stay on the device."""
    model = model.to(device=device, dtype=torch.float32)
    call = torch.compile(model, mode="reduce-overhead" if device == "cuda" else "default") if compiled else model
    batch = torch.from_numpy(images).to(device=device, memory_format=torch.channels_last)
    answers = [torch.empty(0)]

    @torch.inference_mode()
    def step() -> None:
        answers[0] = call(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return step, lambda: answers[0].float().cpu().numpy()
