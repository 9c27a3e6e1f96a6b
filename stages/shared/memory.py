"""Go on with smaller batches where the device's memory does not take a large one."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """True where memory ran out: of the device, for which torch has a class of its own, or of the host, by the allocator's message."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def with_fitting_batch(run: Callable[[int], T], batch_size: int) -> T:
    """`run(batch_size)`, tried again with half the size as long as there is no memory for it; one image must fit."""
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise ValueError(
                    f"the device's memory is too small for a single image: lower preprocess.crop, or set runtime.device: cpu ({error})"
                ) from None
        # Not within the except clause: the traceback holds the tensors that filled the memory.
        batch_size //= 2
        print(f"out of memory: going on with batches of {batch_size}", flush=True)
