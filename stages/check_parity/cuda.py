"""Whether CUDA can run here, asked of the driver and of the dynamic linker: ONNX Runtime itself only logs and goes on."""

import contextlib
import ctypes
import sys
from pathlib import Path

import onnxruntime

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
    """Why ONNX Runtime's `provider` (cuda, tensorrt) cannot be loaded; empty when it can. Names the missing library."""
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
