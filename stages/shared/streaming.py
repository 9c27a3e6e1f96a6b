"""Pixels on the host, brought to the device batch by batch while the device computes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from stages.shared.encoded import EncodedImages, Pixels


def stream_batches(
    host: Pixels, num_rows: int, device: torch.device
) -> tuple[Callable[[torch.Tensor], None], torch.Tensor]:
    """Return `fetch` and the device block that it fills: `fetch(index)` copies the rows `index` (b,) of `host`, b at most `num_rows`.

    Two pinned buffers and two on the device take turns: threads fill one from the memory map or with decoded images, and the copy from the other
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


def row_copier(host: Pixels) -> Callable[[np.ndarray, np.ndarray], None]:
    """A function that copies the rows `index` (b,) of `host` to the first b of a buffer, on as many threads as torch uses.

    By numpy, which copies a row at a time: torch.index_select takes seven times as long over rows of bytes.
    """
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads)

    def copy(index: np.ndarray, buffer: np.ndarray) -> None:
        def share(thread: int) -> None:
            rows = slice(len(index) * thread // num_threads, len(index) * (thread + 1) // num_threads)
            if isinstance(host, np.ndarray):
                np.take(host, index[rows], axis=0, out=buffer[rows], mode="clip")  # "raise" would go through a copy
                return
            for row, canvas in zip(index[rows].tolist(), buffer[: len(index)][rows], strict=True):
                image = host[row]
                # What an earlier image left on the canvas lies outside of every crop.
                canvas[: image.shape[0], : image.shape[1]] = image

        list(pool.map(share, range(num_threads)))

    return copy


def to_device(host: Pixels, device: torch.device, num_rows: int = 256) -> torch.Tensor:
    """All images on the device, uint8 (N, side, side, 3)."""
    if isinstance(host, np.ndarray):
        return torch.from_numpy(host).to(device)
    copy, resident = row_copier(host), torch.empty(host.shape, dtype=torch.uint8, device=device)
    buffer = torch.empty((num_rows, *host.shape[1:]), dtype=torch.uint8)
    if isinstance(host, EncodedImages):
        host.expect(range(len(host)))
    for index in torch.arange(len(host)).split(num_rows):
        copy(index.numpy(), buffer.numpy())
        resident[index[0] : index[-1] + 1] = buffer[: len(index)].to(device)
    return resident
