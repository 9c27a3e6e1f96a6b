"""Image transforms on uint8 pixels: the random training crop, the test crop, normalisation.

Every resize is antialiased and rounds to uint8, as torchvision does on uint8 images: a resize in floating point moves
probabilities by up to 0.004.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SCALE = (0.08, 1.0)  # of the image's area, torchvision's default
RATIO = (3 / 4, 4 / 3)  # width / height
TRIES = 10


class ImageRows(Protocol):
    """Images by row: uint8 (H, W, 3), each as large as its size says or larger."""

    def __getitem__(self, row: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Transform:
    """The way from an image to the network's input: a squash to a square, its centre, a normalisation."""

    resize: int  # pixels, side of the square that a test image is squashed to
    crop: int  # pixels, side of the square that is cut from its centre, and of every training crop
    mean: tuple[float, float, float]  # of each channel's values in 0..1, subtracted
    std: tuple[float, float, float]  # what each channel is then divided by

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON has lists
        object.__setattr__(self, "std", tuple(self.std))


def resize_center_crop(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """The test transform, Resize([resize, resize]) (a squash, not Resize(resize)) and CenterCrop(crop), of a Pillow image.

    By Pillow, as the consumers do: torch's own resize rounds about one pixel in fifty the other way. `image` is uint8 (height, width, 3); returns uint8 (crop, crop, 3).
    """
    across = Image.fromarray(image).resize((resize, len(image)), Image.Resampling.BILINEAR)
    resized = np.asarray(across.resize((resize, resize), Image.Resampling.BILINEAR))  # in one call its order would vary
    start = round((resize - crop) / 2)
    return np.ascontiguousarray(resized[start : start + crop, start : start + crop])


def resize_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear resize of uint8 (h, w, 3) to uint8 (height, width, 3), bit-equal to torchvision's on tensors."""
    # Not torchvision's own function: importing it takes seconds, for the compiler that it loads along.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def draw_crops(
    sizes: torch.Tensor, generator: torch.Generator, scale: tuple[float, float] = SCALE
) -> tuple[torch.Tensor, torch.Tensor]:
    """RandomResizedCrop's boxes and RandomHorizontalFlip's coins for a whole batch, with torchvision's distribution.

    `sizes` is integer (n, 2) [height, width], `scale` the range of a crop's share of the area. Returns boxes int64 (n, 4) [top, left, height, width] and flips bool (n,).
    Source: torchvision.transforms.RandomResizedCrop.get_params, without its loop.
    """
    height, width = sizes.long().unbind(1)
    uniform = torch.rand(len(sizes), 2, TRIES, generator=generator, dtype=torch.float64)
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * uniform[:, 0])
    log_ratio = np.log(RATIO)
    ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniform[:, 1])
    tried_width, tried_height = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()
    fits = (tried_width > 0) & (tried_height > 0) & (tried_width <= width[:, None]) & (tried_height <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    fallback_height, fallback_width = _central_crop(height, width)
    crop_height = torch.where(found, tried_height.gather(1, first)[:, 0], fallback_height)
    crop_width = torch.where(found, tried_width.gather(1, first)[:, 0], fallback_width)

    place = torch.rand(len(sizes), 2, generator=generator, dtype=torch.float64)
    place[~found] = 0.5  # the fallback is centred
    top = (place[:, 0] * (height - crop_height + found)).long()
    left = (place[:, 1] * (width - crop_width + found)).long()
    flips = torch.rand(len(sizes), generator=generator) < 0.5
    return torch.stack([top, left, crop_height, crop_width], 1), flips


def _central_crop(height: torch.Tensor, width: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torchvision's fallback when no try fits: the whole image, cut to the nearest allowed ratio."""
    ratio = width / height
    crop_width = torch.where(ratio > RATIO[1], (height * RATIO[1]).round().long(), width)
    crop_height = torch.where(ratio < RATIO[0], (width / RATIO[0]).round().long(), height)
    return crop_height, crop_width


def crop_into(
    crops: np.ndarray, pixels: ImageRows, index: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor
) -> None:
    """Cut, resize and flip image by image into uint8 (b, crop, crop, 3), bit-equal to torchvision's uint8 transform.

    Of `pixels` the rows `index` (b,), of each its box (b, 4) of top, left, height and width, mirrored where `flips` (b,) say so.
    The fastest way on a CPU. numpy copies, because torch would spread each of these small copies over its threads.
    """
    crop = crops.shape[1]
    for out, i, (top, left, height, width), flip in zip(
        crops, index.tolist(), boxes.tolist(), flips.tolist(), strict=True
    ):
        cut = np.ascontiguousarray(pixels[i][top : top + height, left : left + width])
        image = torch.from_numpy(cut).permute(2, 0, 1)[None]
        resized = F.interpolate(image, (crop, crop), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        out[:] = resized[:, ::-1] if flip else resized


def crop_taps(
    pixels: torch.Tensor, index: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor, crop: int, taps: int
) -> torch.Tensor:
    """The same crops for the whole batch at once, each pixel from `taps` x `taps` source pixels: the way on a GPU.

    Reads uint8 (n, side, side, 3); returns float32 (b, crop, crop, 3) of whole numbers in 0..255.
    `taps` must be at least `num_taps(side, crop)`.
    """
    return gather_taps(pixels, index, *choose_taps(boxes, flips, crop, taps))


def num_taps(side: int, crop: int) -> int:
    """The number of source pixels that an output pixel can draw on, when `side` pixels become `crop`.

    The triangle is 2 * max(scale, 1) pixels wide and zero at both ends, so no more pixel centres than this lie inside.
    """
    return int(np.ceil(2 * max(side / crop, 1.0)))


def choose_taps(boxes: torch.Tensor, flips: torch.Tensor, crop: int, taps: int) -> tuple[torch.Tensor, ...]:
    """Rows, their weights, columns, their weights, each (b, crop, taps), that every output row and column draws on."""
    top, left, height, width = boxes.unbind(1)
    return (*_taps(top, height, crop, taps, flip=None), *_taps(left, width, crop, taps, flip=flips))


def gather_taps(
    pixels: torch.Tensor,
    index: torch.Tensor,
    rows: torch.Tensor,
    row_weights: torch.Tensor,
    columns: torch.Tensor,
    column_weights: torch.Tensor,
) -> torch.Tensor:
    """float32 (b, crop, crop, 3): columns first, then rows, each pass rounded, as torchvision does on uint8."""
    image, taps = index[:, None, None], rows.shape[-1]
    total: torch.Tensor | None = None
    for t in range(taps):
        across: torch.Tensor | None = None
        for u in range(taps):
            value = (
                pixels[image, rows[:, :, None, t], columns[:, None, :, u]].float() * column_weights[:, None, :, u, None]
            )
            across = value if across is None else across + value
        assert across is not None
        value = (across + 0.5).floor() * row_weights[:, :, None, t, None]
        total = value if total is None else total + value
    assert total is not None
    return (total + 0.5).floor()


def _taps(
    start: torch.Tensor, length: torch.Tensor, crop: int, taps: int, flip: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Source positions and weights, both (b, crop, taps), of an antialiased (triangle) resize of [start, start + length).

    Source: ATen's upsample_bilinear2d_aa, align_corners=False.
    """
    start, length = start.float()[:, None], length.float()[:, None]
    output = torch.arange(crop, device=start.device, dtype=torch.float32)[None]
    if flip is not None:
        output = torch.where(flip[:, None], crop - 1 - output, output)
    scale = length / crop
    support = scale.clamp(min=1.0)
    center = scale * (output + 0.5)  # relative to start, so that float32 stays exact
    first = (center - support + 0.5).floor().clamp(min=0)
    position = first[..., None] + torch.arange(taps, device=start.device, dtype=torch.float32)
    weight = (1 - ((position + 0.5 - center[..., None]) / support[..., None]).abs()).clamp(min=0)
    weight = weight * (position < length[..., None])
    position = torch.minimum(position, length[..., None] - 1) + start[..., None]
    return position.long(), weight / weight.sum(-1, keepdim=True)


def normalize(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """(pixels / 255 - mean) / std per channel; `pixels` is (batch, 3, height, width) in 0..255, the result channels last."""
    return rescale(pixels, *rescaling(mean, std, pixels.device), dtype)


def network_input(crops: np.ndarray, transform: Transform) -> np.ndarray:
    """float32 (n, 3, crop, crop), contiguous, of uint8 (n, crop, crop, 3): what an exported network takes."""
    pixels = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2)
    return normalize(pixels, transform.mean, transform.std, torch.float32).contiguous().numpy()


def rescaling(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor and the summand, (1, 3, 1, 1) each, that normalise 0..255."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)
    return scale, shift


def rescale(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.addcmul(shift, pixels.float(), scale).to(dtype=dtype, memory_format=torch.channels_last)


def jitter_colors(images: torch.Tensor, colors: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Multiply brightness, then contrast, then saturation of normalised images (b, 3, height, width) by `colors` (b, 3).

    As in torchvision's ColorJitter values are cut to [0, 1] each time; the order is fixed. `scale`, `shift`: see `rescaling`.
    """
    brightness, contrast, saturation = colors[:, :, None, None, None].unbind(1)
    values = ((images.float() - shift) / (255 * scale) * brightness).clamp(0, 1)
    average = _gray(values).mean((1, 2, 3), keepdim=True)
    values = torch.lerp(average, values, contrast).clamp(0, 1)
    values = torch.lerp(_gray(values), values, saturation).clamp(0, 1)
    return rescale(255 * values, scale, shift, images.dtype)


def _gray(values: torch.Tensor) -> torch.Tensor:
    """Luma (b, 1, height, width) of RGB (b, 3, height, width), as ITU-R 601 and torchvision weigh it."""
    red, green, blue = values.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue
