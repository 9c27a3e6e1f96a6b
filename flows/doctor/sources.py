"""Look at the dataset and the source weights that params.yaml names."""

import base64
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from flows.checkout import local_path
from flows.doctor.finding import Finding
from flows.project import read_yaml
from masking import masked

TIMEOUT = 5.0  # seconds for each look at the network

WEIGHTS = """
import json, sys, torchvision
architecture, name = sys.argv[1:]
known = torchvision.models.get_model_weights(architecture)
print(json.dumps({"url": known[name].url if name in known.__members__ else None, "names": list(known.__members__)}))
"""


def check_sources(root: Path) -> list[Finding]:
    """The dataset and the source weights, where params.yaml names an address or a path."""
    params, mirror = read_yaml(root / "params.yaml"), os.environ.get("MIRROR_BASE")
    dataset, weights = local_path(params, "dataset", "source"), local_path(params, "model", "weights")
    return [
        check_source("dataset.source", dataset, root, mirror),
        check_named_weights(str(params["model"]["architecture"]), weights, root, mirror)
        if is_torchvisions_name(weights, root)
        else check_source("model.weights", weights, root, mirror),
    ]


def is_torchvisions_name(weights: str, root: Path) -> bool:
    """True for what may be a name such as IMAGENET1K_V1, which torchvision knows."""
    return weights != "synthetic" and bool(re.fullmatch(r"\w+", weights)) and not (root / weights).exists()


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
        return Finding("fail", key, f"{source}: no such file or folder; correct the path")
    address = source
    try:
        if mirror is not None:
            base = urlsplit(mirror)
            address = urlunsplit(base._replace(path=f"{base.path.rstrip('/')}/{Path(urlsplit(source).path).name}"))
        urllib.request.urlopen(request(address, "HEAD"), timeout=TIMEOUT).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        advice = "name a local path in params.yaml, or set MIRROR_BASE to an address that serves the same files"
        reason = getattr(error, "reason", error) if isinstance(error, OSError) else "not a whole http(s) address"
        return Finding("fail", key, f"{masked(address)}: {reason}; {advice}")
    return Finding("ok", key, f"{masked(address)} answers")


def request(address: str, method: str = "GET") -> urllib.request.Request:
    """User and password travel in a header: urllib would take them for a part of the host, and show them."""
    parts = urlsplit(address)
    userinfo, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), method=method)
    if userinfo:
        token = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request
