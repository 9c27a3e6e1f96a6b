"""The steps of acceptance, in their order: what each runs, and how long it may take."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.acceptance import capture, pipeline, speed
from benchmarks.acceptance.claims import NOT_RUN, Claim, hold, report
from benchmarks.acceptance.packages import missing_packages
from benchmarks.acceptance.setup import ROOT, Setup
from benchmarks.roofline import measure_peaks
from stages.shared.reproducibility import describe_machine

PACKAGES = ("triton", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "safetensors", "timm")
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,memory.total,driver_version"


@dataclass(frozen=True)
class Step:
    claims: Callable[[Setup], Iterator[Claim]]
    seconds: int  # its time limit
    runs_stages: bool = False


def machine_claims(setup: Setup) -> Iterator[Claim]:
    """Versions, device, clocks, and the peaks that the device's floor is derived from."""
    missing = missing_packages()
    yield hold("the packages that the steps import", not missing, "; ".join(missing) or "all here")
    for name, value in describe_machine(setup.torch_device).items():
        yield report(name, value)
    for package in PACKAGES:
        try:
            yield report(package, version(package))
        except PackageNotFoundError:
            yield Claim(package, "", f"{NOT_RUN}: not installed")
    if setup.device == "cuda":
        yield report("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
        query = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
        yield report(CLOCKS, subprocess.run(query, capture_output=True, text=True).stdout.strip())
    peaks = measure_peaks(setup.torch_device)
    yield report("a large bfloat16 product", f"{peaks['flops'] / 1e12:.3g} TFLOP/s")
    yield report("a large copy, read and written", f"{peaks['bytes'] / 1e12:.3g} TB/s")


def device_tests(setup: Setup) -> Iterator[Claim]:
    """Every test that is marked gpu; on a CPU, the same file's tests of the CPU."""
    if setup.device == "cuda":
        files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
        chosen = [*files, "-m", "gpu"]
    else:
        chosen = ["tests/test_cuda.py", "-m", "not slow"]
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *chosen]
    with subprocess.Popen(
        pytest, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            if found := re.match(
                r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b(.*?) *(\[ *\d+%\])?$", line.rstrip()
            ):
                name, outcome, reason = found.groups()[:3]
                if outcome == "SKIPPED":
                    yield Claim(Path(name).name, "", f"{NOT_RUN}: {reason.strip(' ()') or 'skipped'}")
                else:
                    yield hold(Path(name).name, outcome == "PASSED", outcome.lower())
    yield hold("pytest's exit code", run.returncode == 0, str(run.returncode), "0")


STEPS = {
    "machine": Step(machine_claims, 90),
    "capture": Step(capture.claims, 120),
    "tests": Step(device_tests, 330),
    "pipeline": Step(pipeline.drawn_claims, 530, runs_stages=True),
    "real": Step(pipeline.real_claims, 530, runs_stages=True),
    "devices": Step(pipeline.device_claims, 530, runs_stages=True),
    "parity": Step(pipeline.parity_claims, 530, runs_stages=True),
    "training": Step(speed.training_claims, 530),
    "profile": Step(speed.profile_claims, 120),
    "evaluation": Step(speed.evaluation_claims, 240),
    "growth": Step(speed.growth_claims, 150),
    "startup": Step(speed.startup_claims, 140),
    "accuracy": Step(speed.accuracy_claims, 530),
}
