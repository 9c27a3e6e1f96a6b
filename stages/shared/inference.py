"""Logits of a model over a test split: the exact way, and the fast way for many images."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from stages.shared.encoded import Crops
from stages.shared.memory import with_fitting_batch
from stages.shared.metrics import relative_error
from stages.shared.streaming import stream_batches
from stages.shared.transforms import Transform, normalize, rescale, rescaling


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    pixels: Crops,
    transform: Transform,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> np.ndarray:
    """Run a copy of `model` in eval mode over uint8 (n, height, width, 3) pixels; returns float32 (n, classes).

    `precision` float64 computes and returns double precision (the reference), bfloat16 computes under autocast. Where memory
    does not take `batch_size` images, fewer are computed at a time.
    """
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    model = copy.deepcopy(model).to(device, dtype).to(memory_format=torch.channels_last).eval()

    def run(size: int) -> torch.Tensor:
        logits = []
        for start in range(0, len(pixels), size):
            batch = torch.from_numpy(np.array(pixels[start : start + size])).to(device).permute(0, 3, 1, 2)
            images = normalize(batch, transform.mean, transform.std, dtype)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                logits.append(model(images).to(dtype))
        return torch.cat(logits).cpu()

    with without_tf32():
        return with_fitting_batch(run, batch_size).numpy()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 in float32 on CUDA too, where convolutions would take TF32's 10 bits by default; puts the settings back.

    cuDNN's settings have an older name too, `allow_tf32`, which torch refuses to read wherever the two do not say the same.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    layers: tuple[Any, ...] = (cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
    before, before_matmul = [layer.fp32_precision for layer in layers], matmul.fp32_precision
    cudnn.allow_tf32 = False
    for backend in (*layers, matmul):
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.allow_tf32 = "tf32" in before
        for layer, precision in zip(layers, before, strict=True):
            layer.fp32_precision = precision
        matmul.fp32_precision = before_matmul


def fast_predictor(
    model: nn.Module,
    transform: Transform,
    *,
    device: torch.device,
    batch_size: int,
    precision: torch.dtype = torch.bfloat16,
    compiled: bool = True,
) -> Callable[[Crops], np.ndarray]:
    """A function from uint8 (n, height, width, 3) pixels to float32 (n, classes): batch norms folded, `precision`, compiled.

    The first call compiles, which takes a minute on a slow CPU: it pays from some thousands of images. bfloat16 keeps three
    digits, so compare `agreement` with `predict_logits` before believing an accuracy. `model` itself is left as it is.
    """
    folded = fold_batch_norms(model).to(device, precision).to(memory_format=torch.channels_last)
    scale, shift = rescaling(transform.mean, transform.std, device)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return folded(rescale(pixels.permute(0, 3, 1, 2), scale, shift, precision)).float()

    # One shape only: the last batch is padded.
    run = torch.compile(forward, dynamic=False) if compiled else forward

    @torch.inference_mode()
    def predict(pixels: Crops) -> np.ndarray:
        share = batches_on_device if device.type == "cuda" else batches_on_host
        logits = [run(batch)[:size] for batch, size in share(pixels, batch_size, device)]
        return torch.cat(logits).cpu().numpy()

    return predict


def batches_on_host(pixels: Crops, batch_size: int, device: torch.device) -> Iterator[tuple[torch.Tensor, int]]:
    """Batches of `batch_size` images, each with the number of those that are no padding, read one by one: the map may be larger than memory."""
    for start in range(0, len(pixels), batch_size):
        share = torch.from_numpy(np.array(pixels[start : start + batch_size]))
        yield F.pad(share, (0, 0, 0, 0, 0, 0, 0, batch_size - len(share))), len(share)


def batches_on_device(pixels: Crops, batch_size: int, device: torch.device) -> Iterator[tuple[torch.Tensor, int]]:
    """The same, always in one place on the device: the next batch is on its way while this one is computed."""
    fetch, block = stream_batches(pixels, batch_size, device)
    for index in torch.arange(len(pixels)).split(batch_size):
        fetch(index)
        yield block, len(index)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are part of the convolutions before them; a plain copy where torch cannot trace it."""
    model = copy.deepcopy(model).eval()
    try:
        return fuse(model)
    except TraceError:
        return model


def agreement(logits: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """The share of images with the same top-1, and max|difference| / max|reference logit|, of two (n, classes)."""
    same = (logits.argmax(1) == reference.argmax(1)).mean()
    return float(same), relative_error(logits, reference)
