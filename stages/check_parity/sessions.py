"""Open ONNX Runtime sessions that run where they were told to, or raise.

The driver and the dynamic linker are asked first whether CUDA can run: ONNX Runtime only logs that it cannot, and goes on.
"""

import contextlib
import ctypes
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS_DIR = Path(onnxruntime.__file__).parent / "capi"


def count_devices() -> tuple[int, str]:
    """The driver's count, and why it is 0."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return 0, f"no CUDA driver ({error})"
    count = ctypes.c_int(0)
    initialised = driver.cuInit(0)
    if initialised:
        return 0, f"cuInit returned {initialised}"
    counted = driver.cuDeviceGetCount(ctypes.byref(count))
    return (
        (count.value, "")
        if counted == 0 and count.value
        else (0, f"cuDeviceGetCount returned {counted}, {count.value} devices")
    )


def provider_error(provider: str) -> str:
    """The reason that ONNX Runtime's `provider` (cuda, tensorrt) cannot be loaded for, the missing library named; empty when it can."""
    if not (PROVIDERS_DIR / f"libonnxruntime_providers_{provider}.so").is_file():
        return f"this onnxruntime ({onnxruntime.__version__}) was built without the {provider} provider; install onnxruntime-gpu[cuda,cudnn]"
    try:
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it could not find
                onnxruntime.preload_dlls()
        load_library(PROVIDERS_DIR / "libonnxruntime_providers_shared.so")
        load_library(PROVIDERS_DIR / f"libonnxruntime_providers_{provider}.so")
    except OSError as error:
        return str(error)
    return ""


def load_library(path: Path) -> None:
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def cpu_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=[CPU])


def cuda_session(
    model: Path | bytes,
    *,
    tf32: bool,
    cuda_graph: bool = False,
    channels_last: bool = False,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A session that may not fall back: neither a node at load, nor the whole session, nor a run.

    Raises RuntimeError naming what is not as asked.
    """
    wanted = {
        "use_tf32": str(int(tf32)),
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": str(int(cuda_graph)),
        "prefer_nhwc": str(int(channels_last)),
    }
    session = _strict_session(model, [(CUDA, wanted)], profile)
    check_cuda(session, tf32=tf32)
    return session


def tensorrt_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """TensorRT, and CUDA for the nodes that it does not take. Raises RuntimeError when TensorRT took none."""
    session = _strict_session(model, [(TENSORRT, {}), (CUDA, {"use_tf32": "0"})], None)
    if TENSORRT not in assigned(session):
        raise RuntimeError(f"TensorRT took no node: {assigned(session)}")
    return session


def check_cuda(session: onnxruntime.InferenceSession, *, tf32: bool) -> None:
    providers, nodes = session.get_providers(), assigned(session)
    if providers[0] != CUDA:
        raise RuntimeError(f"the session fell back to {providers[0]}: CUDA did not run")
    if set(nodes) != {CUDA}:
        raise RuntimeError(f"nodes left CUDA: {nodes}")
    found = str(session.get_provider_options()[CUDA].get("use_tf32"))
    if found != str(int(tf32)):
        raise RuntimeError(f"use_tf32 is {found}, expected {int(tf32)}: TF32 was left {'off' if tf32 else 'on'}")


def assigned(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Nodes on each provider, as ONNX Runtime placed them."""
    return dict(
        Counter(graph.ep_name for graph in session.get_provider_graph_assignment_info() for _ in graph.get_nodes())
    )


def end_proof(session: onnxruntime.InferenceSession) -> dict[str, dict[str, int]]:
    """Of a session that was opened with a profile: where its nodes were placed and its kernels ran.

    Raises RuntimeError when any kernel ran elsewhere than on the session's first provider. Empty without a profile.
    """
    if not session.get_session_options().enable_profiling:
        return {}
    path, expected = Path(session.end_profiling()), session.get_providers()[0]
    events = json.loads(path.read_text(encoding="utf-8"))
    ran = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("kernel_time")]
    kernels = dict(Counter(str(event["args"].get("provider")) for event in ran))
    if set(kernels) != {expected}:
        raise RuntimeError(f"the profile shows kernels on {kernels or 'nothing'}, expected {expected} alone")
    return {"nodes": assigned(session), "kernels": kernels}


def run_all(session: onnxruntime.InferenceSession, batches: Iterable[np.ndarray]) -> np.ndarray:
    """The first output of every image."""
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images})[0] for images in batches])


def _strict_session(model: Path | bytes, providers: list[Any], profile: Path | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    session.disable_fallback()
    return session
