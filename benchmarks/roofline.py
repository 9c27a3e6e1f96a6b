"""The fastest that the chip allows: each kernel of a training step at the rate of its compute or of its memory, whichever is slower.

Bytes are those of the schedule that torch's compiler makes of ResNet in bfloat16: a convolution reads its input and writes
its output; batch norm reads once for the statistics, and once more to normalise, add and clip; the backward pass likewise.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import interleave
from benchmarks.workload import make_model

BYTES = 2  # of a bfloat16
# Of each parameter a step: the float32 master read, cast and read twice, its gradient written, cast, the update applied.
PARAMETER_BYTES = 4 + 2 + 2 + 2 + 2 + 2 + 4 + 4 + 4 + 4
H200 = {"flops": 790e12, "bytes": 4.3e12}  # a second; a large bfloat16 product and a large copy, as measured on one

Kernel = tuple[float, float]  # FLOP, bytes; of one image


def training_kernels(crop: int) -> list[Kernel]:
    """Every kernel of one image's forward and backward pass through a ResNet."""
    kernels: list[Kernel] = []
    model = make_model(crop).eval()

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            kernels.extend(
                _module_kernels(name, module, inputs[0].numel() * BYTES, output.numel() * BYTES, output.numel())
            )

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(record(name))
    with torch.no_grad():
        model(torch.zeros(1, 3, crop, crop))
    return kernels


def _module_kernels(name: str, module: nn.Module, read: int, written: int, outputs: int) -> list[Kernel]:
    if isinstance(module, nn.Conv2d):
        return _convolution_kernels(name, module, read, written, outputs)
    if isinstance(module, nn.Linear):
        return [(2.0 * outputs * module.in_features, 0)] * 3
    if isinstance(module, nn.MaxPool2d):
        return [(0, read + 1.5 * written)] * 2  # one byte an output says which input it was
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return [(0, 2.0 * read)]
    return []


def _convolution_kernels(name: str, conv: nn.Conv2d, read: int, written: int, outputs: int) -> list[Kernel]:
    """A convolution and the batch norm, addition and ReLU after it, forward and backward."""
    flops = 2.0 * outputs * conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
    ends_block = written if name.endswith("conv2") else 0  # its shortcut is read and added
    shortcut = written if "downsample" in name else 0  # its normalised output is added without being written
    kernels = [(flops, read + written), (0, written), (0, 2 * written + ends_block - shortcut)]
    if name != "conv1":  # nobody asks for the gradient of the images
        kernels.append((flops, read + written))
    return [*kernels, (flops, read + written), (0, 2 * written), (0, 3 * written + ends_block)]


def floor_seconds(crop: int, batch_size: int, flops: float, bandwidth: float) -> float:
    """Seconds an image, at the least: kernels, the crop's traffic, and the image's share of the weights' and optimizer's."""
    parameters = sum(parameter.numel() for parameter in make_model(crop).parameters())
    cropping = crop * crop * 3 * BYTES + crop * crop * 3 * 0.8
    seconds = sum(max(work / flops, moved / bandwidth) for work, moved in training_kernels(crop))
    return seconds + (parameters * PARAMETER_BYTES / batch_size + cropping) / bandwidth


def training_flops(crop: int) -> float:
    return sum(work for work, _ in training_kernels(crop))


def measure_peaks(device: torch.device) -> dict[str, float]:
    """FLOP/s of a large bfloat16 product and bytes/s of a large copy (read and written), on random data."""
    side, length = (8192, 2**31) if device.type == "cuda" else (256, 2**24)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(length, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return {
        "flops": 2 * side**3 / _median_seconds(lambda: a @ b, device),
        "bytes": 2 * length / _median_seconds(lambda: target.copy_(source), device),
    }


def convolutions(crop: int, batch_size: int, precision: torch.dtype, device: torch.device) -> Callable[[], int]:
    """3x3 convolutions alone: those of ResNet-18's four stages, equal in FLOP, forward, in turn; each call returns its FLOP."""
    layers = [(64, crop // 4), (128, crop // 8), (256, crop // 16), (512, crop // 32)]
    inputs = [_channels_last(torch.randn(batch_size, c, s, s), precision, device) for c, s in layers]
    weights = [_channels_last(torch.randn(c, c, 3, 3), precision, device) for c, _ in layers]
    flops = sum(2 * batch_size * c * c * 9 * s * s for c, s in layers)

    @torch.no_grad()
    def convolve() -> int:
        for x, w in zip(inputs, weights, strict=True):
            F.conv2d(x, w, padding=1)
        return flops

    return convolve


def _channels_last(values: torch.Tensor, precision: torch.dtype, device: torch.device) -> torch.Tensor:
    return values.to(device, precision).to(memory_format=torch.channels_last)


def _median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    def once() -> int:
        work()
        return 1

    rate: float = interleave({"work": once}, repeats, device)["work"]["median"]
    return 1 / rate
