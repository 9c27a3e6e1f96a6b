"""How many experiments this machine holds at a time."""

import os

import psutil


def jobs(need: int, *, threads: int, free: int, cores: int) -> int:
    """As many as have `threads` cores each and `need` bytes of the `free` memory each; at least one."""
    return max(1, min(cores // threads, free // max(need, 1)))


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    return int(psutil.virtual_memory().available)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
