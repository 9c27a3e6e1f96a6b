"""Rows on speed: how long a batch takes, by runtime; each also shows that the timed path gives the reference's answer."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from stages.check_parity import cuda, sessions
from stages.check_parity.judge import Claim, Row, attempt, distance, judge, not_run, unreadable
from stages.check_parity.logits import CORE, HALF, INT8, Models, core_of
from stages.check_parity.subjects import Subjects

BATCHES = (1, 32)
SECONDS = 0.4  # of timed runs a row
MIN_RUNS, MAX_RUNS, WARMUPS = 3, 200, 3

Step = Callable[[], None]  # one timed run
Timed = tuple[Step, Callable[[], np.ndarray]]  # and the logits (batch, classes) that it left
Make = Callable[[np.ndarray], Timed]  # for images float32 (batch, 3, crop, crop)


def latency_rows(
    subjects: Subjects, models: Models, limits: Mapping[str, float], *, compiled_on_cpu: bool
) -> list[Row]:
    """torch and ONNX Runtime in each precision, on the CPU and on CUDA; there also with IO binding and with a CUDA graph."""
    rows = []
    for runtime, precision, make in _torch_makers(subjects):
        claims = _claims(runtime, precision, "checkpoint")
        if runtime == "torch CPU compiled" and not compiled_on_cpu:
            rows += not_run(claims, "compiling takes longer than this stage should; add --compile")
        else:
            rows += _rows(claims, make, subjects, limits)
    for runtime, precision, name, make_session in _onnx_makers():
        claims = _claims(runtime, precision, Path(name).name)
        if name in models:
            rows += _rows(claims, partial(make_session, core_of(models[name])), subjects, limits)
        elif (subject := Path(name).name) in subjects.not_shipped:
            rows += not_run(claims, "not shipped", subjects.not_shipped[subject])
        else:
            rows += unreadable(claims)
    return rows


def _torch_makers(subjects: Subjects) -> list[tuple[str, str, Make]]:
    return [
        (f"torch {device.upper()} {how}", "fp32", partial(_torch_run, subjects.model, device, how == "compiled"))
        for device in ("cpu", "cuda")
        for how in ("eager", "compiled")
    ]


def _onnx_makers() -> list[tuple[str, str, str, Callable[[bytes, np.ndarray], Timed]]]:
    on_cpu = [("ONNX Runtime CPU", precision, name, _cpu_run) for precision, name in (("fp32", CORE), ("int8", INT8))]
    on_cuda = [
        (f"ONNX Runtime CUDA{how}", precision, name, partial(run, precision == "tf32"))
        for precision, name in (("fp32", CORE), ("tf32", CORE), ("fp16", HALF))
        for how, run in (("", _cuda_run), (", IO binding", _bound_run), (", CUDA graph", _graph_run))
    ]
    return [*on_cpu, *on_cuda]


def _claims(runtime: str, precision: str, subject: str) -> list[Claim]:
    return [Claim(runtime, precision, subject, f"latency, batch {batch}") for batch in BATCHES]


def _rows(claims: list[Claim], make: Make, subjects: Subjects, limits: Mapping[str, float]) -> list[Row]:
    if "CUDA" in claims[0].runtime and not cuda.count_devices()[0]:
        return not_run(claims, "no CUDA device")
    return [row for claim in claims for row in _timed(claim, make, subjects, limits)]


def _timed(claim: Claim, make: Make, subjects: Subjects, limits: Mapping[str, float]) -> list[Row]:
    chosen = np.arange(int(claim.check.rsplit(" ", 1)[1])) % len(subjects.images)

    def rows() -> list[Row]:
        step, answer = make(subjects.images[chosen])
        seconds = _measure(step)
        torch_error = distance(subjects.float32, subjects.float64).error
        found = distance(answer(), subjects.float64[chosen])
        row = judge(claim, found, limits[claim.precision], torch_error=torch_error, torch_limit=limits["fp32"])
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


def _cpu_run(core: bytes, images: np.ndarray) -> Timed:
    return _plain_run(sessions.cpu_session(core), images)


def _cuda_run(tf32: bool, core: bytes, images: np.ndarray) -> Timed:
    return _plain_run(sessions.cuda_session(core, tf32=tf32), images)


def _bound_run(tf32: bool, core: bytes, images: np.ndarray) -> Timed:
    return _fixed_run(sessions.cuda_session(core, tf32=tf32), images)


def _graph_run(tf32: bool, core: bytes, images: np.ndarray) -> Timed:
    return _fixed_run(sessions.cuda_session(core, tf32=tf32, cuda_graph=True), images)


def _plain_run(session: onnxruntime.InferenceSession, images: np.ndarray) -> Timed:
    feed, answers = {session.get_inputs()[0].name: images}, [np.empty(0)]

    def step() -> None:
        answers[0] = session.run(None, feed)[0]

    return step, lambda: answers[0]


def _fixed_run(session: onnxruntime.InferenceSession, images: np.ndarray) -> Timed:
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
    call = (
        torch.compile(model, dynamic=False, mode="reduce-overhead" if device == "cuda" else "default")
        if compiled
        else model
    )
    batch = torch.from_numpy(images).to(device=device, memory_format=torch.channels_last)
    answers = [torch.empty(0)]

    @torch.inference_mode()
    def step() -> None:
        answers[0] = call(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return step, lambda: answers[0].float().cpu().numpy()
