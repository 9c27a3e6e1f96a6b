"""Say what is wrong on this machine, and what to do about it: `python -m flows.doctor`. Exits 1 where something must be done.

Looks and changes nothing; torch and ONNX Runtime are asked in a process of their own.
"""

import base64
import contextlib
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from packaging.requirements import Requirement
from packaging.version import Version

from flows.mend import refuse_conflict
from flows.project import read_yaml
from flows.settings import load_schedule
from masking import masked

PYTHONS = ((3, 11), (3, 13))  # first and last that the project is tested on
BREAKING = {  # versions that Prefect's own bounds admit and that break it
    "fastapi": ("0.151", "Prefect's server refuses its own client's requests with it (and from 0.155 does not import)"),
    "sqlalchemy": ("2.1", "Prefect's scheduler starts no runs with it"),
}
GIGABYTE = 10**9
DISK_LEAST, DISK_COMFORTABLE = 2 * GIGABYTE, 10 * GIGABYTE
TIMEOUT = 5.0  # seconds for each look at the network

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

WEIGHTS = """
import json, sys, torchvision
architecture, name = sys.argv[1:]
known = torchvision.models.get_model_weights(architecture)
print(json.dumps({"url": known[name].url if name in known.__members__ else None, "names": list(known.__members__)}))
"""


@dataclass(frozen=True)
class Finding:
    """One look at the machine, told to a person."""

    level: str  # ok, warn, fail
    subject: str
    message: str  # what is wrong, and what to do


def examine(root: Path) -> list[Finding]:
    return [
        check_python(sys.version_info[:2]),
        *check_pins(root / "constraints.txt"),
        *check_runtimes(),
        check_disk(shutil.disk_usage(root).free),
        *check_dvc(root),
        check_server(os.environ.get("PREFECT_API_URL") or load_schedule().api_url),
        *check_sources(root),
    ]


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


def check_dvc(root: Path) -> list[Finding]:
    try:
        refuse_conflict(root / "dvc.lock")
        with Repo(str(root)) as repo:
            try:
                with repo.lock:
                    lock = Finding("ok", "dvc lock", "free")
            except LockError:
                lock = Finding("warn", "dvc lock", "held by a DVC process; a run waits until that one is done")
            return [lock, *_remotes(repo.config["remote"], repo.config["core"].get("remote"))]
    except ValueError as error:
        return [Finding("fail", "dvc.lock", str(error))]
    except DvcException as error:
        return [Finding("fail", "dvc", f"{error}; run from the project's root, in a git clone")]


def _remotes(remotes: dict[str, dict[str, str]], default: str | None) -> list[Finding]:
    if not remotes:
        advice = "none: results stay on this machine; `dvc remote add --default NAME URL` shares them"
        return [Finding("warn", "dvc remote", advice)]
    findings = []
    for name, remote in remotes.items():
        url = remote["url"]
        if "://" not in url and not Path(url).is_dir():
            findings.append(
                Finding("fail", f"dvc remote {name}", f"{url}: no such folder; mount it, or `dvc remote modify`")
            )
        else:
            shown = masked(url)
            findings.append(Finding("ok", f"dvc remote {name}", f"{shown}{' (default)' if name == default else ''}"))
    return findings


def check_server(api_url: str) -> Finding:
    shown = masked(api_url)
    try:
        with urllib.request.urlopen(_request(f"{api_url}/health"), timeout=TIMEOUT) as response:
            if json.load(response) is True:
                return Finding("ok", "prefect server", f"answers at {shown}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
            advice = "a run starts one of its own (some 15 s); `make serve` keeps one, with the schedule"
            return Finding("warn", "prefect server", f"none at {shown}: {advice}")
    return Finding(
        "fail", "prefect server", f"{shown}: what answers is not Prefect; correct PREFECT_API_URL or the port"
    )


def check_sources(root: Path) -> list[Finding]:
    """The dataset and the source weights, where params.yaml names an address or a path."""
    params, mirror = read_yaml(root / "params.yaml"), os.environ.get("MIRROR_BASE")
    dataset, weights = str(params["dataset"]["source"]), str(params["model"]["weights"])
    is_name = weights != "synthetic" and re.fullmatch(r"\w+", weights) and not (root / weights).exists()
    return [
        check_source("dataset.source", dataset, root, mirror),
        check_named_weights(str(params["model"]["architecture"]), weights, root, mirror)
        if is_name
        else check_source("model.weights", weights, root, mirror),
    ]


def check_named_weights(architecture: str, name: str, root: Path, mirror: str | None) -> Finding:
    """Weights that torchvision knows by name: downloaded already, or to be had where torchvision says that they are."""
    source = root / "artifacts/download/model/source.json"
    with contextlib.suppress(OSError, ValueError):
        if (
            json.loads(source.read_text("utf-8")).get("source") == name
            and source.with_name("weights.safetensors").exists()
        ):
            return Finding("ok", "model.weights", f"{name} (downloaded)")
    command = [sys.executable, "-c", WEIGHTS, architecture, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding("fail", "model.weights", f"torchvision cannot say where {name} is: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["url"] is None:
        names = ", ".join(found["names"])
        return Finding("fail", "model.weights", f"{name}: neither a file nor torchvision's; {architecture} has {names}")
    return check_source("model.weights", found["url"], root, mirror)


def check_source(key: str, source: str, root: Path, mirror: str | None) -> Finding:
    if "://" not in source:
        if (root / source).exists():
            return Finding("ok", key, source)
        if source == "synthetic":
            return Finding("ok", key, "synthetic (made here)")
        return Finding("fail", key, f"{source}: no such file or folder; correct it in params.yaml")
    address = source
    try:
        if mirror is not None:
            base = urlsplit(mirror)
            address = urlunsplit(base._replace(path=f"{base.path.rstrip('/')}/{Path(urlsplit(source).path).name}"))
        urllib.request.urlopen(_request(address, "HEAD"), timeout=TIMEOUT).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        advice = "name a local path in params.yaml, or set MIRROR_BASE to an address that serves the same files"
        reason = getattr(error, "reason", error) if isinstance(error, OSError) else "not a whole http(s) address"
        return Finding("fail", key, f"{masked(address)}: {reason}; {advice}")
    return Finding("ok", key, f"{masked(address)} answers")


def _request(address: str, method: str = "GET") -> urllib.request.Request:
    """User and password travel in a header: urllib would take them for a part of the host, and show them."""
    parts = urlsplit(address)
    userinfo, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), method=method)
    if userinfo:
        token = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def main() -> int:
    findings = examine(Path.cwd())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level:4}  {finding.subject:{width}}  {finding.message}")
    return int(any(finding.level == "fail" for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
