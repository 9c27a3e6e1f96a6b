"""Many pictures, drawn on all cores."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import numpy as np

FEW = 200  # pictures that one process has drawn before others have paid
PR_SET_PDEATHSIG = 1


def draw_many(
    draw: Callable[[str, int, int, int], np.ndarray],
    class_names: Sequence[str],
    indices: Sequence[int],
    seed: int,
    side: int,
) -> Iterator[np.ndarray]:
    """`draw(class_name, index, seed, side)` of each class name and index, in their order.

    Many are drawn by forks of this process, a fork a core; on Linux, elsewhere a fork may not be safe.
    """
    arguments = class_names, indices, repeat(seed), repeat(side)
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if num_cores == 1 or len(indices) < FEW:
        yield from map(draw, *arguments)
        return
    with ProcessPoolExecutor(num_cores, multiprocessing.get_context("fork"), _die_with_parent) as forks:
        yield from forks.map(draw, *arguments, chunksize=16)


def _die_with_parent() -> None:
    """A fork that waits for work would not notice that nobody gives it any."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
