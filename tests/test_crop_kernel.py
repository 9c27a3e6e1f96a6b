"""The Triton crop kernel says what the torch path says, in Triton's interpreter, and compiles to what a Hopper GPU likes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.crop_kernel import RECORDED, compile_for_hopper
from stages.shared.sampling import Draws
from stages.shared.transforms import crop_taps, draw_crops, num_taps, rescale, rescaling

ROOT = Path(__file__).parents[1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVEL = 1 / 255 / min(STD)

pytest.importorskip("triton")


def compare(side: int, crop: int, boxes: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """|kernel - reference| for images of noise, (b, 3, crop, crop). Only under Triton's interpreter."""
    from stages.shared.crop_kernel import crop_with_triton

    pixels = torch.randint(
        0, 256, (3, side, side + 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    index = torch.arange(len(boxes)) % len(pixels)
    scale, shift = rescaling(MEAN, STD, torch.device("cpu"))
    twice = Draws(
        *(part.repeat_interleave(2, 0)[::2] for part in (index, boxes, flips))
    )  # as a device's share is strided
    images = crop_with_triton(crop, scale, shift, torch.float32)(pixels, twice.index, twice)
    assert images.is_contiguous(memory_format=torch.channels_last)
    reference = crop_taps(pixels, index, boxes, flips, crop, num_taps(side + 2, crop)).permute(0, 3, 1, 2)
    return (images - rescale(reference, scale, shift, torch.float32)).abs()


def interpreted(checks: str) -> None:
    """Run `checks` in a process in which Triton interprets its kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    code = f"import torch\nfrom tests.test_crop_kernel import *\n{checks}"
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def check_random_boxes() -> None:
    """Where a value lies between two levels the order of the additions decides; elsewhere nothing may differ."""
    sizes = torch.tensor([[20, 22], [13, 22], [20, 9], [20, 20]])
    boxes, flips = draw_crops(sizes, torch.Generator().manual_seed(0))
    assert flips.any()
    assert not flips.all()
    off = compare(20, 8, boxes, flips)
    assert off.max() < 1.01 * LEVEL
    assert (off > 1e-5).float().mean() < 0.05


def check_borders_and_single_pixels() -> None:
    """Enlarged to a power of two, weights are exact: not one value may differ, at any border, flipped or not."""
    boxes = torch.tensor([[0, 0, 1, 1], [19, 21, 1, 1], [0, 21, 8, 1], [19, 0, 1, 8], [12, 14, 8, 8], [5, 6, 2, 4]])
    assert compare(20, 8, boxes, torch.arange(len(boxes)) % 2 == 1).max() < 1e-5


def check_a_tail_and_a_crop_that_is_no_power_of_two() -> None:
    boxes, flips = torch.tensor([[0, 0, 20, 22]]), torch.tensor([True])
    off = compare(20, 7, boxes, flips)
    assert off.max() < 1.01 * LEVEL
    assert (off > 1e-5).float().mean() < 0.05


def test_the_kernel_equals_its_reference() -> None:
    interpreted(
        "check_random_boxes(), check_borders_and_single_pixels(), check_a_tail_and_a_crop_that_is_no_power_of_two()"
    )


@pytest.fixture(scope="module")
def compiled() -> dict:
    return compile_for_hopper(crop=224)


def test_compiled_for_hopper_it_spills_nothing_and_leaves_room_for_many_warps(compiled: dict) -> None:
    assert compiled["stack_bytes"] == compiled["local_bytes"] == 0
    assert compiled["registers"] <= 80


def test_the_recorded_counts_are_those_of_this_kernel(compiled: dict) -> None:
    """Of the same Triton only: another one compiles to other instructions."""
    recorded = json.loads(RECORDED.read_text())
    if recorded["triton"] != compiled["triton"]:
        pytest.skip(f"recorded with Triton {recorded['triton']}")
    assert recorded == compiled


def test_no_argument_that_changes_from_batch_to_batch_makes_triton_compile_again() -> None:
    from stages.shared.crop_kernel import _crop_rows

    fixed = {"crop", "columns", "rows", "pixels", "scale", "shift", "images"}
    changing = [param for param in _crop_rows.params if param.name not in fixed]
    assert {param.name for param in changing} == {"index", "boxes", "flips", "height", "width"}
    assert all(param.do_not_specialize or param.do_not_specialize_on_alignment for param in changing)
