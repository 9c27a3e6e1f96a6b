"""Pixels on the host, brought to the device batch by batch while the device computes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def stream_batches(
    host: np.ndarray, num_rows: int, device: torch.device
) -> tuple[Callable[[torch.Tensor], None], torch.Tensor]:
    """`fetch(index)`, which brings the rows (b,) of `host` to the device, b at most `num_rows`, and the block that it fills.

    Two pinned buffers and two on the device take turns: threads fill one from the memory map, and the copy from the other
    runs on a stream of its own, while the batch before is computed. The block stays where it is, because a captured step
    reads from a fixed place; filling it from the device's buffer takes microseconds.
    """
    fill = row_copier(host)
    shape = (num_rows, *host.shape[1:])
    pinned = [torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in range(2)]
    arrived = [torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(2)]
    block = torch.empty(shape, dtype=torch.uint8, device=device)
    copies, taken = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
    stream, turn = torch.cuda.Stream(device), 0

    def fetch(index: torch.Tensor) -> None:
        nonlocal turn
        i = turn % 2
        turn += 1
        copies[i].synchronize()  # the host may fill this buffer again
        fill(index.numpy(), pinned[i].numpy())
        with torch.cuda.stream(stream):
            stream.wait_event(taken[i])
            arrived[i][: len(index)].copy_(pinned[i][: len(index)], non_blocking=True)
            copies[i].record(stream)
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copies[i])
        block[: len(index)].copy_(arrived[i][: len(index)])
        taken[i].record(computing)

    return fetch, block


def row_copier(host: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
    """A function that copies the rows `index` (b,) of `host` to the first b of a buffer, on as many threads as torch uses.

    By numpy, which copies a row at a time: torch.index_select takes seven times as long over rows of bytes.
    """
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads)

    def copy(index: np.ndarray, buffer: np.ndarray) -> None:
        def share(thread: int) -> None:
            rows = slice(len(index) * thread // num_threads, len(index) * (thread + 1) // num_threads)
            np.take(host, index[rows], axis=0, out=buffer[rows], mode="clip")  # "raise" would go through a copy

        list(pool.map(share, range(num_threads)))

    return copy
