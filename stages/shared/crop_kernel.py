"""A Triton kernel that cuts, resizes, flips and normalises a whole batch: from the plan's boxes to the network's input.

`transforms.crop_taps` and `rescale` say the same in torch; they are its reference, and the way where there is no Triton.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from stages.shared.sampling import Draws

ROWS = 4  # of one image that a program writes, one after the other: their columns' weights are summed up once


def crop_with_triton(
    crop: int, scale: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype
) -> Callable[[torch.Tensor, torch.Tensor, Draws], torch.Tensor]:
    """A function of pixels uint8 (n, height, width, 3), rows of them (b,) and their draws: (b, 3, crop, crop), channels last.

    `scale` and `shift` (1, 3, 1, 1) normalise 0..255. A batch of any size runs the same compiled kernel.
    """
    constants = launch_constants(crop)
    programs, warps = triton.cdiv(crop, ROWS), num_warps(constants["columns"])

    def cut(pixels: torch.Tensor, index: torch.Tensor, draws: Draws) -> torch.Tensor:
        size = (len(index), 3, crop, crop)
        images = torch.empty(size, dtype=dtype, device=pixels.device, memory_format=torch.channels_last)
        # One device's share of a batch is every n-th of its draws.
        plan = (part.contiguous() for part in (index, draws.boxes, draws.flips))
        _crop_rows[(programs, len(index))](
            pixels, *plan, scale, shift, images, pixels.shape[1], pixels.shape[2], **constants,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
        return images

    return cut


def launch_constants(crop: int) -> dict[str, int]:
    """Constants that the kernel is compiled for."""
    return {"crop": crop, "columns": triton.next_power_of_2(crop), "rows": ROWS}


def num_warps(columns: int) -> int:
    """Two columns a thread: what is computed once a row is shared by both."""
    return max(1, columns // 64)


@triton.jit(
    do_not_specialize=["height", "width"],  # nor on the batch's place in the epoch, or a tail would compile again
    do_not_specialize_on_alignment=["index", "boxes", "flips"],
)
def _crop_rows(  # type: ignore[no-untyped-def]
    pixels, index, boxes, flips, scale, shift, images, height, width,
    crop: tl.constexpr, columns: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """`rows` output rows of one image. As `transforms.gather_taps`: columns first, then rows, each pass rounded."""
    image = tl.program_id(1)
    top = tl.load(boxes + 4 * image).to(tl.int32)
    left = tl.load(boxes + 4 * image + 1).to(tl.int32)
    box_height = tl.load(boxes + 4 * image + 2).to(tl.int32)
    box_width = tl.load(boxes + 4 * image + 3).to(tl.int32)
    column = tl.arange(0, columns)
    inside = column < crop
    output = tl.minimum(column, crop - 1)
    output = tl.where(tl.load(flips + image), crop - 1 - output, output)
    first_x, num_x, distance_x, narrow_x = _window(output, box_width, crop)
    share_x = 1.0 / _sum_weights(distance_x, narrow_x, num_x)
    # Only here in 64 bits: the images of a data set take more than 2 GiB, one image does not.
    source = pixels + tl.load(index + image).to(tl.int64) * height * width * 3
    target = images + image.to(tl.int64) * crop * crop * 3
    start = (left + first_x) * 3

    row = tl.program_id(0) * rows
    end = tl.minimum(row + rows, crop)
    while row < end:
        first_y, num_y, distance_y, narrow_y = _window(row, box_height, crop)
        line = (top + first_y) * width * 3
        whole_y = 0.0
        red = tl.zeros([columns], tl.float32)
        green = tl.zeros([columns], tl.float32)
        blue = tl.zeros([columns], tl.float32)
        for _ in range(num_y):
            red_x = tl.zeros([columns], tl.float32)
            green_x = tl.zeros([columns], tl.float32)
            blue_x = tl.zeros([columns], tl.float32)
            offset, distance = line + start, distance_x
            for _ in range(num_x):
                weight_x = tl.maximum(1.0 - tl.abs(distance) * narrow_x, 0.0)
                red_x += tl.load(source + offset).to(tl.float32) * weight_x
                green_x += tl.load(source + offset + 1).to(tl.float32) * weight_x
                blue_x += tl.load(source + offset + 2).to(tl.float32) * weight_x
                offset += 3
                distance += 1.0
            weight_y = tl.maximum(1.0 - tl.abs(distance_y) * narrow_y, 0.0)
            red += tl.floor(red_x * share_x + 0.5) * weight_y
            green += tl.floor(green_x * share_x + 0.5) * weight_y
            blue += tl.floor(blue_x * share_x + 0.5) * weight_y
            whole_y += weight_y
            line += width * 3
            distance_y += 1.0
        share_y = 1.0 / whole_y
        pixel = target + (row * crop + column) * 3
        _store(pixel, red * share_y, tl.load(scale), tl.load(shift), inside)
        _store(pixel + 1, green * share_y, tl.load(scale + 1), tl.load(shift + 1), inside)
        _store(pixel + 2, blue * share_y, tl.load(scale + 2), tl.load(shift + 2), inside)
        row += 1


@triton.jit
def _window(output, length, crop: tl.constexpr):  # type: ignore[no-untyped-def]
    """The source positions that an output position draws on: the first, how many, its distance from the centre, 1 / support.

    The window is moved inside the box, where that adds positions whose weight is zero, so that no read needs a mask.
    """
    ratio = length.to(tl.float32) / crop
    support = tl.maximum(ratio, 1.0)
    center = ratio * (output.to(tl.float32) + 0.5)
    num = tl.minimum(tl.maximum((2 * length + crop - 1) // crop, 2), length)
    first = tl.floor(center - support + 0.5).to(tl.int32)
    first = tl.maximum(tl.minimum(first, length - num), 0)
    return first, num, first.to(tl.float32) + 0.5 - center, 1.0 / support


@triton.jit
def _sum_weights(distance, narrow, num):  # type: ignore[no-untyped-def]
    total = tl.zeros_like(distance)
    for _ in range(num):
        total += tl.maximum(1.0 - tl.abs(distance) * narrow, 0.0)
        distance += 1.0
    return total


@triton.jit
def _store(target, value, scale, shift, inside):  # type: ignore[no-untyped-def]
    value = tl.floor(value + 0.5) * scale + shift
    tl.store(target, value.to(target.dtype.element_ty), mask=inside)
