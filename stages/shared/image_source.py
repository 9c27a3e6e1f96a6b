"""Feed a training step: crops by the CPU's threads, or on the device from pixels that lie there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from stages.shared.encoded import Pixels
from stages.shared.sampling import Draws
from stages.shared.streaming import stream_batches, to_device
from stages.shared.transforms import (
    ImageRows,
    Transform,
    choose_taps,
    crop_into,
    gather_taps,
    jitter_colors,
    num_taps,
    rescale,
    rescaling,
)

Fetch = Callable[[Draws], None]
Cut = Callable[[Draws], torch.Tensor]


def image_source(
    pixels: Pixels,
    transform: Transform,
    num_rows: int,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool = True,
) -> tuple[Fetch, Cut]:
    """Two functions that give a step its images, from uint8 (N, side, side, 3) pixels or encoded ones: `fetch(draws)` before it, `cut(draws)` in it.

    `cut` returns normalised (b, 3, crop, crop), channels last, mixed and jittered where the draws say so. On a CPU it reads
    the memory map; on CUDA the pixels are copied to the device once, or, where they take more than half of its free memory, each
    batch is copied by `fetch`, which is given its draws on the host: reading them back from the device would wait for the step
    before. A batch needs at most `num_rows` images; `compiled` needs a C compiler.
    """
    # Made once: a captured step may not copy from the host.
    scale_and_shift = rescaling(transform.mean, transform.std, device)
    if device.type == "cpu":
        crops = crop_on_all_threads(pixels, transform.crop)
        return lambda _: None, augmented(lambda draws: rescale(crops(draws), *scale_and_shift, dtype), scale_and_shift)

    crop_rows = crop_on_device(max(pixels.shape[1:3]), transform.crop, scale_and_shift, dtype, compiled)
    free = torch.cuda.mem_get_info(device)[0]
    if pixels.nbytes <= free // 2:
        resident = to_device(pixels, device)
        return lambda _: None, augmented(lambda draws: crop_rows(resident, draws.index, draws), scale_and_shift)

    print(
        f"streaming: {pixels.nbytes / 2**30:.1f} GiB of pixels, {free / 2**30:.1f} GiB free on {device}; each batch is copied",
        flush=True,
    )
    fetch, block = stream_batches(pixels, num_rows, device)
    position = torch.arange(num_rows, device=device)
    return lambda draws: fetch(draws.to_cut().index), augmented(
        lambda draws: crop_rows(block, position[: len(draws.index)], draws), scale_and_shift
    )


def augmented(cut: Cut, scale_and_shift: tuple[torch.Tensor, torch.Tensor]) -> Cut:
    """`cut`, its images mixed two by two and their colours changed where the draws say so."""

    def changed(draws: Draws) -> torch.Tensor:
        result = cut(draws.to_cut())
        if draws.share is not None:
            own, other = result.chunk(2)
            result = torch.lerp(other, own, draws.share.to(own.dtype)[:, None, None, None])
        if draws.colors is not None:
            result = jitter_colors(result, draws.colors, *scale_and_shift)
        return result

    return changed


def crop_on_all_threads(pixels: ImageRows, crop: int) -> Cut:
    """`crop_into`, with the batch dealt out to as many threads as torch uses: its own are idle while images are cut."""
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads)

    def crops(draws: Draws) -> torch.Tensor:
        batch = np.empty((len(draws.index), crop, crop, 3), dtype=np.uint8)
        parts = draws.index, draws.boxes, draws.flips
        shares = [
            (batch[t::num_threads], pixels, *(part[t::num_threads] for part in parts)) for t in range(num_threads)
        ]
        list(pool.map(lambda share: crop_into(*share), shares))
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    return crops


def crop_on_device(
    side: int, crop: int, scale_and_shift: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, compiled: bool
) -> Callable[[torch.Tensor, torch.Tensor, Draws], torch.Tensor]:
    """A function from device pixels (n, side, side, 3), the rows to cut from, (b,), and draws to normalised crops.

    Triton's kernel where it may be compiled and Triton is installed, else the same in torch.
    """
    if compiled and find_spec("triton"):
        from stages.shared.crop_kernel import crop_with_triton  # imports Triton, which a CPU has no use for

        return crop_with_triton(crop, *scale_and_shift, dtype)
    taps = num_taps(side, crop)
    compile_or_not: Callable[..., Any] = torch.compile if compiled else lambda function: function
    # Compiled apart, so that the taps are computed once a row and a column and not again for each pixel.
    choose = compile_or_not(lambda boxes, flips: choose_taps(boxes, flips, crop, taps))
    gather = compile_or_not(
        lambda source, index, *chosen: rescale(
            gather_taps(source, index, *chosen).permute(0, 3, 1, 2), *scale_and_shift, dtype
        )
    )
    return lambda source, rows, draws: gather(source, rows, *choose(draws.boxes, draws.flips))
