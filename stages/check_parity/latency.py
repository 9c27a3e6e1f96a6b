"""Rows on speed: how long a batch takes, by runtime; each also shows that the timed path gives the reference's answer."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

from stages.check_parity import cuda, sessions
from stages.check_parity.judge import Row, attempt, distance, judge, not_run
from stages.check_parity.logits import CORE
from stages.check_parity.subjects import Subjects

BATCHES = (1, 32)
SECONDS = 0.4  # of timed runs a row
MIN_RUNS, MAX_RUNS, WARMUPS = 3, 200, 3
CHECK = "latency, batch {}"

Step = Callable[[], None]
Path_ = tuple[Step, Callable[[], np.ndarray]]  # one timed run, and the logits it left


def latency_rows(
    subjects: Subjects, models: Mapping[str, ModelProto], limits: Mapping[str, float], compiled: bool
) -> list[Row]:
    """ONNX Runtime and torch on the CPU; on CUDA also with IO binding, with a CUDA graph, and torch compiled."""
    core = models[CORE].SerializeToString() if CORE in models else None
    on_cpu: dict[str, Callable[[np.ndarray], Path_]] = {
        "torch CPU eager": lambda images: _torch_path(subjects.model, images, "cpu", False)
    }
    if core is not None:
        on_cpu |= {"ONNX Runtime CPU": lambda images: _plain_path(sessions.cpu_session(core), images)}
    rows = [row for runtime, make in on_cpu.items() for row in _timed(runtime, make, subjects, limits)]
    if compiled:
        rows += _timed(
            "torch CPU compiled", lambda images: _torch_path(subjects.model, images, "cpu", True), subjects, limits
        )
    else:
        rows += not_run(_names("torch CPU compiled"), "compiling takes longer than this stage should; add --compile")
    return [*rows, *_cuda_rows(subjects, core, limits)]


def _cuda_rows(subjects: Subjects, core: bytes | None, limits: Mapping[str, float]) -> list[Row]:
    makers: dict[str, Callable[[np.ndarray], Path_]] = {
        "torch CUDA eager": lambda images: _torch_path(subjects.model, images, "cuda", False),
        "torch CUDA compiled": lambda images: _torch_path(subjects.model, images, "cuda", True),
    }
    if core is not None:
        makers |= {
            "ONNX Runtime CUDA": lambda images: _plain_path(sessions.cuda_session(core, tf32=False), images),
            "ONNX Runtime CUDA, IO binding": lambda images: _bound_path(
                sessions.cuda_session(core, tf32=False), images
            ),
            "ONNX Runtime CUDA, CUDA graph": lambda images: _bound_path(
                sessions.cuda_session(core, tf32=False, cuda_graph=True), images
            ),
        }
    if not cuda.count_devices()[0]:
        return not_run([name for runtime in makers for name in _names(runtime)], "no CUDA device")
    return [row for runtime, make in makers.items() for row in _timed(runtime, make, subjects, limits)]


def _timed(
    runtime: str, make: Callable[[np.ndarray], Path_], subjects: Subjects, limits: Mapping[str, float]
) -> list[Row]:
    rows = []
    for name, batch in zip(_names(runtime), BATCHES, strict=True):
        images = subjects.images[np.arange(batch) % len(subjects.images)]
        reference = subjects.float64[np.arange(batch) % len(subjects.images)]
        rows += attempt(lambda n=name, i=images, r=reference: [_row(make(i), r, n, subjects, limits["fp32"])], **name)  # type: ignore[misc]
    return rows


def _row(path: Path_, reference: np.ndarray, name: dict[str, str], subjects: Subjects, limit: float) -> Row:
    step, answer = path
    seconds = _measure(step)
    torch_error = distance(subjects.float32, subjects.float64).error
    row = judge(distance(answer(), reference), limit, torch_error=torch_error, torch_limit=limit, **name)
    row.details.update(
        p50_ms=round(1000 * float(np.percentile(seconds, 50)), 3),
        p99_ms=round(1000 * float(np.percentile(seconds, 99)), 3),
        images_per_second=round(len(reference) / float(np.percentile(seconds, 50)), 1),
        runs=len(seconds),
    )
    return row


def _measure(step: Step) -> list[float]:
    for _ in range(WARMUPS):
        step()
    seconds: list[float] = []
    while len(seconds) < MIN_RUNS or (sum(seconds) < SECONDS and len(seconds) < MAX_RUNS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _plain_path(session: onnxruntime.InferenceSession, images: np.ndarray) -> Path_:
    feed, answers = {session.get_inputs()[0].name: images}, [np.empty(0)]

    def step() -> None:
        answers[0] = session.run(None, feed)[0]

    return step, lambda: answers[0]


def _bound_path(session: onnxruntime.InferenceSession, images: np.ndarray) -> Path_:
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


def _torch_path(model: torch.nn.Module, images: np.ndarray, device: str, compiled: bool) -> Path_:
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


def _names(runtime: str) -> list[dict[str, str]]:
    return [
        {
            "runtime": runtime,
            "precision": "fp32",
            "subject": "checkpoint" if "torch" in runtime else Path(CORE).name,
            "check": CHECK.format(batch),
        }
        for batch in BATCHES
    ]
