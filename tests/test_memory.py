"""Where memory does not take a batch, smaller ones do; what is no lack of memory is not taken for it."""

import numpy as np
import pytest
import torch
from torch import nn

from stages.shared.inference import predict_logits
from stages.shared.memory import with_fitting_batch
from stages.shared.transforms import Transform

TRANSFORM = Transform(8, 8, (0.5,) * 3, (0.25,) * 3)


class Small(nn.Module):
    """A network on a device whose memory takes two images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return self.scale * images.mean((2, 3))


def test_predictions_go_on_with_half_the_batch(capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    logits = predict_logits(Small(), pixels, TRANSFORM, device=torch.device("cpu"), batch_size=16)
    assert logits == pytest.approx((pixels.mean((1, 2)) / 255 - 0.5) / 0.25, abs=1e-5)
    assert "out of memory: going on with batches of 2" in capsys.readouterr().out


def test_an_image_that_does_not_fit_says_what_to_change():
    def run(size: int) -> int:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ValueError, match=r"too small for a single image: lower preprocess\.crop"):
        with_fitting_batch(run, 4)


def test_another_fault_is_raised_at_once():
    sizes = []

    def run(size: int) -> int:
        sizes.append(size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        with_fitting_batch(run, 4)
    assert sizes == [4]
