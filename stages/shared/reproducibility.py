"""Seeds, the choice of device and precision, and the record of what ran."""

import platform
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Compiling costs a minute or so and takes perhaps 1 of a step's 6 ms, so from here on it pays. Both are estimates: no GPU
# was at hand. The row `compiled` of python -m benchmarks measures after how many steps it pays on a device.
COMPILED_FROM = 60_000  # steps of a training


@dataclass(frozen=True)
class Execution:
    """The device, the precision and the way in which a recipe is executed; no part of the recipe itself."""

    device: torch.device
    precision: torch.dtype
    step: str = "auto"  # auto | eager | graph | compile
    save_every: float = 0.0  # seconds between two writings of the resume file, at least

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and gradients: bfloat16 is for what autocast computes in it."""
        return torch.float64 if self.precision == torch.float64 else torch.float32

    @property
    def autocast(self) -> bool:
        return self.precision == torch.bfloat16

    def chosen_step(self, num_steps: int) -> str:
        """The way to execute a training of `num_steps`: `auto` is eager on a CPU; on CUDA a graph, of a compiled model where that pays."""
        if self.step == "graph" and self.device.type != "cuda":
            raise ValueError("runtime.step is graph, which needs CUDA; set it to auto, eager or compile")
        if self.step != "auto":
            return self.step
        if self.device.type != "cuda":
            return "eager"
        return "compile" if num_steps >= COMPILED_FROM else "graph"


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device(requested: str) -> torch.device:
    """`auto` takes CUDA when there is a device, else the CPU. Raises ValueError when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise ValueError("runtime.device is cuda, but torch finds no CUDA device; set it to auto or cpu")
    return torch.device("cuda" if requested != "cpu" and available else "cpu")


def choose_precision(requested: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device computes in it natively, else float32."""
    if requested != "auto":
        return getattr(torch, requested)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_computes_in_bfloat16() else torch.float32


def describe_machine(device: torch.device) -> dict[str, Any]:
    """A record of what ran: the device's name, the versions, and the number of CPU threads."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_cpu_name()}, {torch.get_num_threads()} threads"
    )
    return {
        "device": f"{device.type} ({name})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
    }


def _cpu_computes_in_bfloat16() -> bool:
    # torch.cpu has no public name for this; without the instructions bfloat16 is emulated and slower than float32.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())


def _cpu_name() -> str:
    linux = Path("/proc/cpuinfo")
    if linux.exists():
        names = (line.split(":", 1)[1] for line in linux.read_text().splitlines() if line.startswith("model name"))
        return next(names, platform.machine()).strip()
    return platform.processor() or platform.machine()
