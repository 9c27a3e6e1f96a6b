"""Look at this machine: Python, the pinned packages, torch and ONNX Runtime, the disk."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from flows.doctor.finding import Finding

PYTHONS = ((3, 11), (3, 13))  # first and last that the project is tested on
BREAKING = {  # versions that Prefect's own bounds admit and that break it
    "fastapi": ("0.151", "Prefect's server refuses its own client's requests with it (and from 0.155 does not import)"),
    "sqlalchemy": ("2.1", "Prefect's scheduler starts no runs with it"),
}
GIGABYTE = 10**9
DISK_LEAST, DISK_COMFORTABLE = 2 * GIGABYTE, 10 * GIGABYTE

RUNTIMES = """
import contextlib, json, sys, torch, onnxruntime
onnxruntime.set_default_logger_severity(4)
with contextlib.redirect_stdout(sys.stderr):
    onnxruntime.preload_dlls()
found = {"cuda": torch.cuda.is_available(), "torch": torch.__version__, "providers": onnxruntime.get_available_providers()}
if found["cuda"]:
    from onnx import TensorProto, helper
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "look", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    found |= {"device": torch.cuda.get_device_name(), "loaded": session.get_providers()}
print(json.dumps(found))
"""


def check_python(version: tuple[int, int]) -> Finding:
    found, first, last = (".".join(map(str, v)) for v in (version, *PYTHONS))
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Finding("ok", "python", found)
    return Finding(
        "fail", "python", f"{found} is not among {first} to {last}; make .venv anew with PYTHON=python{last}"
    )


def check_pins(constraints: Path) -> list[Finding]:
    """Each installed package against its `name==version` line; what is pinned but not installed is another platform's."""
    if not constraints.exists():
        return [Finding("fail", "pins", f"{constraints} is missing; check it out again")]
    findings, num_right = [], 0
    for line in constraints.read_text("utf-8").splitlines():
        if not (text := line.split("#")[0].strip()):
            continue
        pin = Requirement(text)
        try:
            found = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if pin.marker and not pin.marker.evaluate():
            continue
        if pin.specifier.contains(found, prereleases=True):
            num_right += 1
        else:
            findings.append(_wrong_version(pin.name.lower(), found, str(pin.specifier)))
    return [*findings, Finding("ok", "pins", f"{num_right} packages have the pinned version")]


def _wrong_version(name: str, found: str, wanted: str) -> Finding:
    first_bad, why = BREAKING.get(name, ("", ""))
    if first_bad and Version(found) >= Version(first_bad):
        return Finding("fail", name, f"{found}: {why}; remove .venv and run make again (pinned: {wanted})")
    return Finding("warn", name, f"{found}, pinned {wanted}; remove .venv and run make again, unless you chose it")


def check_runtimes() -> list[Finding]:
    done = subprocess.run([sys.executable, "-c", RUNTIMES], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [Finding("fail", "torch, onnxruntime", f"do not work: {last}; remove .venv and run make again")]
    return judge_runtimes(json.loads(done.stdout.splitlines()[-1]), has_device=Path("/dev/nvidiactl").exists())


def judge_runtimes(found: dict[str, object], has_device: bool) -> list[Finding]:
    if not found["cuda"] and has_device:
        wrong = f"there is an NVIDIA device, but torch {found['torch']} cannot use it; update the driver (nvidia-smi says which)"
        return [Finding("fail", "cuda", wrong)]
    if not found["cuda"]:
        note = "no NVIDIA device: everything runs on the CPU, and parity on CUDA is not checked"
        return [Finding("warn", "cuda", note)]
    loaded, available = list(found["loaded"]), list(found["providers"])  # type: ignore[call-overload]
    device = Finding("ok", "cuda", f"{found['device']}, torch {found['torch']}")
    if "CUDAExecutionProvider" in loaded:
        return [device, Finding("ok", "onnxruntime", "the CUDA provider loads")]
    if "CUDAExecutionProvider" not in available:
        why = "this onnxruntime is built without CUDA; uninstall onnxruntime and install onnxruntime-gpu[cuda,cudnn]"
    else:
        why = "the CUDA provider does not load (a CUDA library is missing); install onnxruntime-gpu[cuda,cudnn]"
    return [device, Finding("fail", "onnxruntime", why)]


def check_disk(free: int) -> Finding:
    """free: bytes."""
    amount = f"{free / GIGABYTE:.1f} GB free"
    if free < DISK_LEAST:
        return Finding("fail", "disk", f"{amount}; make room: `dvc gc --workspace` drops results that no one refers to")
    if free < DISK_COMFORTABLE:
        return Finding("warn", "disk", f"{amount}; a larger data set may not fit: `dvc gc --workspace` makes room")
    return Finding("ok", "disk", amount)
