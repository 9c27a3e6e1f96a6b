"""Tell how many experiments this machine holds at a time."""

import argparse
import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Memory:
    """Memory of the machine and of its GPU."""

    host: int  # bytes
    gpu: int  # bytes, of the first GPU; 0 without one

    def __str__(self) -> str:
        gpu = f" and {self.gpu / 2**20:.0f} MiB of the GPU's" if self.gpu else ""
        return f"{self.host / 2**20:.0f} MiB of memory{gpu}"


def jobs(need: Memory, free: Memory, *, threads: int, cores: int) -> int:
    """Count the experiments that fit at one time, each with `threads` cores and as much memory as one needs; at least one."""
    fitting = [cores // threads, free.host // max(need.host, 1)]
    if need.gpu:
        fitting.append(free.gpu // need.gpu)
    return max(1, min(fitting))


def free_memory() -> Memory:
    """The memory that can be had without swapping."""
    return Memory(int(psutil.virtual_memory().available), free_gpu_memory())


def free_gpu_memory() -> int:
    """Bytes of the first GPU, as nvidia-smi has them; 0 where there is none."""
    if not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(query, capture_output=True, text=True)
    text = done.stdout.strip()
    return int(text) * 2**20 if done.returncode == 0 and text.isdigit() else 0


def count(text: str) -> int:
    """A number of runs or of threads on a command line. Raises ArgumentTypeError."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
