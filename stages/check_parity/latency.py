"""Time every runtime, and show that the timed path gives the reference's answer."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime
import torch

from stages.check_parity import sessions
from stages.check_parity.judge import Claim, Row, attempt, distance, judge, not_run, unreadable
from stages.check_parity.logits import Models, core_of, cuda_modes, networks
from stages.check_parity.subjects import Subjects
from stages.shared.shipped_files import ShippedFile
from stages.shared.transforms import network_input

BATCHES = (1, 32)
SECONDS = 0.4  # of timed runs a row
MIN_RUNS, MAX_RUNS, WARMUPS = 3, 200, 3

Step = Callable[[], None]  # one timed run
Open = Callable[..., onnxruntime.InferenceSession]
Timed = tuple[Step, Callable[[], np.ndarray]]  # and the logits (batch, classes) that it left


@dataclass(frozen=True)
class Contestant:
    """One way to run the network that is timed."""

    runtime: str
    mode: str
    precision: str
    device: str  # cpu or cuda
    make: Callable[..., Timed]  # of images float32 (batch, 3, crop, crop); for a file, of its network's bytes and them
    file: ShippedFile | None = None  # None is the checkpoint itself
    compiles: bool = False  # which takes longer than this stage should, on a CPU


def latency_rows(
    subjects: Subjects, models: Models, limits: Mapping[str, float], *, compiled_on_cpu: bool
) -> list[Row]:
    """torch and ONNX Runtime in each precision, on the CPU and on CUDA; there also with IO binding and with a CUDA graph."""
    rows = []
    for contestant in [*_torch_contestants(subjects), *_cpu_contestants(), *_cuda_contestants()]:
        file, make = contestant.file, contestant.make
        subject = file.name if file else "checkpoint"
        claims = [
            Claim(contestant.runtime, contestant.precision, subject, f"latency, batch {batch}", batch, contestant.mode)
            for batch in BATCHES
        ]
        if contestant.device == "cuda" and not sessions.count_devices()[0]:
            rows += not_run(claims, "no CUDA device")
        elif contestant.compiles and contestant.device == "cpu" and not compiled_on_cpu:
            rows += not_run(claims, "compiling takes longer than this stage should; add --compile")
        elif file and file.name in subjects.not_shipped:
            rows += not_run(claims, "not shipped", subjects.not_shipped[file.name])
        elif file and file.path not in models:
            rows += unreadable(claims)
        else:
            run = partial(make, core_of(models[file.path])) if file else make
            rows += [row for claim in claims for row in _timed(claim, run, subjects, limits)]
    return rows


def _torch_contestants(subjects: Subjects) -> list[Contestant]:
    return [
        Contestant(
            f"torch {device.upper()}",
            "compiled" if compiled else "",
            "fp32",
            device,
            partial(_torch_run, subjects.model, device, compiled),
            compiles=compiled,
        )
        for device in ("cpu", "cuda")
        for compiled in (False, True)
    ]


def _cpu_contestants() -> list[Contestant]:
    files = [file for file in networks() if "cpu" in file.devices]
    return [Contestant("ONNX Runtime CPU", "", file.precision, "cpu", _cpu_run, file) for file in files]


def _cuda_contestants() -> list[Contestant]:
    return [
        Contestant(
            "ONNX Runtime CUDA",
            ", ".join(word for word in (mode.name, how) if word),
            mode.precision,
            "cuda",
            partial(
                run, partial(sessions.cuda_session, tf32=mode.precision == "tf32", channels_last=mode.channels_last)
            ),
            mode.file,
        )
        for mode in cuda_modes()
        for how, run in (("", _cuda_run), ("IO binding", _bound_run), ("CUDA graph", _graph_run))
    ]


def _timed(
    claim: Claim, make: Callable[[np.ndarray], Timed], subjects: Subjects, limits: Mapping[str, float]
) -> list[Row]:
    assert claim.batch
    chosen = np.arange(claim.batch) % len(subjects.crops)

    def rows() -> list[Row]:
        step, answer = make(network_input(subjects.crops[chosen], subjects.facts.transform))
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


def _cuda_run(opener: Open, core: bytes, images: np.ndarray) -> Timed:
    return _plain_run(opener(core), images)


def _bound_run(opener: Open, core: bytes, images: np.ndarray) -> Timed:
    return _fixed_run(opener(core), images)


def _graph_run(opener: Open, core: bytes, images: np.ndarray) -> Timed:
    return _fixed_run(opener(core, cuda_graph=True), images)


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
    model = copy.deepcopy(model).to(device=device, dtype=torch.float32)
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
