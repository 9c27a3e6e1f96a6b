"""The crops are torchvision's crops, image by image and in a batch; the test transform is the book's."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF

from stages.shared.transforms import crop_each, crop_taps, draw_crops, normalize, num_taps, resize_center_crop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(side: int, num: int = 6) -> torch.Tensor:
    """uint8 (num, side, side, 3) with structure at every scale, which aliasing would show."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 12, 12, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    noisy = smooth + 40 * torch.randn(num, 3, side, side, generator=generator)
    return noisy.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def torchvision_crop(image: torch.Tensor, box: torch.Tensor, flip: bool, crop: int) -> torch.Tensor:
    top, left, height, width = box.tolist()
    cut = TF.resized_crop(image.permute(2, 0, 1), top, left, height, width, [crop, crop], antialias=True)
    return TF.horizontal_flip(cut) if flip else cut


@pytest.mark.parametrize("side", [64, 224, 512])
def test_crop_each_equals_torchvision_bit_for_bit(side):
    pixels, crop = photos(side), 96
    boxes, flips = draw_crops(torch.full((6, 2), side), torch.Generator().manual_seed(1))
    crops = crop_each(pixels, torch.arange(6), boxes, flips, crop)
    for i in range(6):
        assert torch.equal(crops[i], torchvision_crop(pixels[i], boxes[i], bool(flips[i]), crop))


@pytest.mark.parametrize(("side", "crop"), [(64, 96), (224, 96), (512, 96), (512, 224)])
def test_crop_taps_stay_within_half_a_level_of_torchvision(side, crop):
    pixels = photos(side)
    sizes = torch.tensor([[side, side], [side, side // 2], [side // 3, side], [side, side - 7], [40, 40], [side, 33]])
    boxes, flips = draw_crops(sizes, torch.Generator().manual_seed(2))
    taps = crop_taps(pixels, torch.arange(6), boxes, flips, crop, num_taps(side, crop)).permute(0, 3, 1, 2)
    exact = crop_each(pixels, torch.arange(6), boxes, flips, crop)
    difference = (taps - exact.float()).abs()
    assert difference.mean() < 0.02  # the issue asks for 0.5; two roundings to uint8 differ now and then
    assert difference.max() <= 2


def test_fewer_taps_than_needed_would_show():
    pixels = photos(512)
    boxes, flips = torch.tensor([[0, 0, 512, 512]] * 6), torch.zeros(6, dtype=torch.bool)
    aliased = crop_taps(pixels, torch.arange(6), boxes, flips, 96, 2).permute(0, 3, 1, 2)
    assert (aliased - crop_each(pixels, torch.arange(6), boxes, flips, 96).float()).abs().mean() > 2


@pytest.mark.parametrize(("height", "width"), [(300, 500), (64, 80), (900, 640)])
def test_test_transform_is_a_squash_and_a_center_crop(height, width):
    image = photos(max(height, width), 1)[0, :height, :width].numpy()
    book = T.Compose([T.Resize([256, 256], antialias=True), T.CenterCrop(224)])
    expected = book(torch.from_numpy(image.copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(resize_center_crop(image, 256, 224), expected)


def test_normalize_is_torchvisions_and_channels_last():
    pixels = photos(32).permute(0, 3, 1, 2)
    normalized = normalize(pixels, MEAN, STD, torch.float32)
    expected = TF.normalize(pixels.float() / 255, list(MEAN), list(STD))
    assert torch.allclose(normalized, expected, atol=1e-6)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
