"""The structure of an image: what is left when light, colour and fine noise are taken away: where its edges and textures are.

Two near-duplicates agree in it over most of their area, once one is laid on the other; two different photos do not.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn

SIDE = 64  # pixels
BLOCK = 4096  # images that are transformed at a time
FREQUENCIES = 10  # of the hash, in each direction
GRAY = (0.299, 0.587, 0.114)


def structure_of(crops: np.ndarray) -> np.ndarray:
    """uint8 (n, crop, crop, 3) to float16 (n, SIDE, SIDE): gray less its surroundings' mean, over their contrast."""
    pixels = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).float()
    gray = (pixels * torch.tensor(GRAY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    small = F.interpolate(gray, (SIDE, SIDE), mode="bilinear", antialias=True)
    detail = small - _blurred(small)
    contrast = _blurred(detail.square()).sqrt()
    # A surface without texture stays flat: its noise, of a level or two, is not blown up to structure.
    return (detail / (contrast + 4)).clamp(-3, 3)[:, 0].numpy().astype(np.float16)


def _blurred(images: torch.Tensor, width: int = 13) -> torch.Tensor:
    down = F.avg_pool2d(images, (width, 1), stride=1, padding=(width // 2, 0), count_include_pad=False)
    return F.avg_pool2d(down, (1, width), stride=1, padding=(0, width // 2), count_include_pad=False)


def hashes_of(structure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes float32 (n, d) of unit length, of the images and of the images mirrored.

    The lowest frequencies of the cosine transform; a mirrored image's are the same but for the sign of every odd one.
    """
    blocks = np.array_split(structure, max(1, len(structure) // BLOCK))
    waves = np.concatenate([_lowest_frequencies(block) for block in blocks])
    signs = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)
    return unit_rows(waves), unit_rows(waves * signs)


def _lowest_frequencies(structure: np.ndarray) -> np.ndarray:
    return dctn(structure.astype(np.float32), axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES].copy()


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows flattened and scaled to length 1; a row of zeros stays one."""
    rows = values.reshape(len(values), -1).astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
