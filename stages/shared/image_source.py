"""Where a training step's images come from: cropped by the CPU's threads, or on the device from pixels that lie there."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from stages.shared.sampling import Draws
from stages.shared.transforms import choose_taps, crop_into, gather_taps, num_taps, rescale, rescaling


def image_source(
    pixels: np.ndarray,
    batch_size: int,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool = True,
) -> tuple[Callable[[Draws], None], Callable[[Draws], torch.Tensor]]:
    """How a step gets its images from uint8 (N, side, side, 3) pixels: `fetch(draws)` before it, `images(draws)` within it.

    `images` returns normalised (b, 3, crop, crop), channels last. On a CPU it reads the memory map; on CUDA the pixels are
    copied to the device once, or, where they take more than half of its free memory, each batch is copied by `fetch`, which
    is given its draws on the host: reading them back from the device would wait for the step before. `compiled` needs a C compiler.
    """
    scale_and_shift = rescaling(mean, std, device)  # made once: a captured step may not copy from the host
    if device.type == "cpu":
        crops = crop_on_all_threads(pixels, crop)
        return lambda _: None, lambda draws: rescale(crops(draws), *scale_and_shift, dtype)

    host, taps = torch.from_numpy(pixels), num_taps(max(pixels.shape[1:3]), crop)
    compile_or_not: Callable[..., Any] = torch.compile if compiled else lambda function: function
    # Compiled apart, so that the taps are computed once a row and a column and not again for each pixel.
    choose = compile_or_not(lambda boxes, flips: choose_taps(boxes, flips, crop, taps))
    gather = compile_or_not(
        lambda source, index, *chosen: rescale(
            gather_taps(source, index, *chosen).permute(0, 3, 1, 2), *scale_and_shift, dtype
        )
    )
    free = torch.cuda.mem_get_info(device)[0]
    if pixels.nbytes <= free // 2:
        resident = host.to(device)
        return lambda _: None, lambda draws: gather(resident, draws.index, *choose(draws.boxes, draws.flips))

    print(
        f"streaming: {pixels.nbytes / 2**30:.1f} GiB of pixels, {free / 2**30:.1f} GiB free on {device}; each batch is copied",
        flush=True,
    )
    block = torch.empty(batch_size, *pixels.shape[1:], dtype=torch.uint8, device=device)
    position = torch.arange(batch_size, device=device)

    def fetch(draws: Draws) -> None:
        block[: len(draws.index)].copy_(host[draws.index].pin_memory(), non_blocking=True)

    return fetch, lambda draws: gather(block, position[: len(draws.index)], *choose(draws.boxes, draws.flips))


def crop_on_all_threads(pixels: np.ndarray, crop: int) -> Callable[[Draws], torch.Tensor]:
    """`crop_each`, with the batch dealt out to as many threads as torch uses: its own are idle while images are cut."""
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads)

    def crops(draws: Draws) -> torch.Tensor:
        batch = np.empty((len(draws.index), crop, crop, 3), dtype=np.uint8)
        shares = [
            (batch[t::num_threads], pixels, *(part[t::num_threads] for part in draws)) for t in range(num_threads)
        ]
        list(pool.map(lambda share: crop_into(*share), shares))
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    return crops
