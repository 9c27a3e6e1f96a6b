"""The training-ready data set: two splits of images, and the lists that say what is in them.

preprocess/
  train/pixels.npy  uint8 (N, S, S, 3): each image top-left on a canvas of zeros; or, where that would be too large,
  train/index.npy   and shards of the images encoded (encoded.py)
  train/sizes.npy   int32 (N, 2): each image's (height, width) on its canvas
  train/labels.npy  int64 (N,)
  test/images/pixels.npy   uint8 (M, crop, crop, 3): resized and cropped as the model is fed; or, encoded like train,
  test/images/index.npy    and shards of what the test transform makes the same of, and cut.json: its resize and crop
  test/labels.npy   int64 (M,): read by evaluation alone, so that nothing is chosen by them
  test/labels_before_fixes.npy   int64 (M,): the same as the folders have them, without the fix list
  test/files.json   the test rows' source files and digests, in row order
  manifest.json     class names, sizes, and the training rows' source files, labels and digests, in row order
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.shared.encoded import Crops, EncodedCrops, EncodedImages, Pixels
from stages.shared.files import read_json, write_json
from stages.shared.transforms import Transform, resize_center_crop

CHUNK = 1024  # images whose crops lie in memory at a time
NOT_IN_TEST = -1  # among the labels before fixes: an image that the fix list moved into the test split


@dataclass(frozen=True)
class TrainSplit:
    # pixels[row] is uint8 (S, S, 3), image top-left, zeros elsewhere; or, encoded, just the image
    pixels: Pixels
    sizes: np.ndarray  # (N, 2) int32: height, width
    labels: np.ndarray  # (N,) int64

    def __post_init__(self) -> None:
        num, side = _check(self.pixels, self.labels)
        if self.sizes.dtype != np.int32 or self.sizes.shape != (num, 2):
            raise ValueError(f"sizes are {self.sizes.dtype} {self.sizes.shape}, expected int32 {(num, 2)}")
        if num and not 1 <= self.sizes.min() <= self.sizes.max() <= side:
            raise ValueError(f"sizes reach from {self.sizes.min()} to {self.sizes.max()}, expected 1 to {side}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TestSplit:
    __test__ = False  # not a test case, whatever pytest makes of the name

    pixels: Crops  # (M, crop, crop, 3) uint8
    labels: np.ndarray  # (M,) int64

    def __post_init__(self) -> None:
        _check(self.pixels, self.labels)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Entry:
    """One row of the training split."""

    path: str  # of the source file, relative to the images folder
    label: int
    sha256: str  # of the decoded pixels and their shape


@dataclass(frozen=True)
class TestFile:
    """One row of the test split, without its label."""

    __test__ = False

    path: str  # of the source file, relative to the images folder
    sha256: str  # of the decoded pixels and their shape


@dataclass(frozen=True)
class Manifest:
    """The images that a model is trained on. It tells nothing of the test split."""

    class_names: tuple[str, ...]  # a label is an index into these
    digest: str  # sha256 of everything a model is trained on: contents, labels, their order, and the sizes below
    transform: Transform  # that the test images went through but for the normalisation, and that every model is fed by
    max_side: int  # pixels, longest side a training image may keep
    side: int  # pixels, the training canvas
    train: tuple[Entry, ...]

    @property
    def train_paths(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.train)


def pack_canvas(images: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay uint8 (H, W, 3) images of at most `side` pixels on canvases: pixels (N, S, S, 3) uint8, sizes (N, 2) int32."""
    pixels = np.zeros((len(images), side, side, 3), dtype=np.uint8)
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    for row, image in enumerate(images):
        place(image, pixels[row], sizes[row])
    return pixels, sizes


def place(image: np.ndarray, canvas: np.ndarray, size: np.ndarray) -> None:
    """Write an image (H, W, 3) into its row of `pixels` (S, S, 3), which must be zeros, and its row of `sizes` (2,)."""
    height, width = image.shape[:2]
    assert max(height, width) <= len(canvas), f"image {height}x{width} on a canvas of {len(canvas)}"
    canvas[:height, :width] = image
    size[:] = height, width


def fixed_crops(split: TrainSplit, rows: Iterable[int], transform: Transform) -> np.ndarray:
    """These training images as the test transform cuts them, uint8 (n, crop, crop, 3)."""
    chosen = list(rows)
    crops = np.empty((len(chosen), transform.crop, transform.crop, 3), dtype=np.uint8)
    if isinstance(split.pixels, EncodedImages):
        split.pixels.expect(chosen)
    for crop, row in zip(crops, tqdm(chosen, desc="test crops", disable=None, leave=False), strict=True):
        height, width = split.sizes[row]
        crop[:] = resize_center_crop(split.pixels[row][:height, :width], transform.resize, transform.crop)
    return crops


def chunks_of_crops(
    split: TrainSplit, rows: Sequence[int] | np.ndarray, transform: Transform, chunk: int = CHUNK
) -> Iterator[np.ndarray]:
    """`fixed_crops` of these training images, of at most `chunk` at a time."""
    for start in range(0, len(rows), chunk):
        yield fixed_crops(split, rows[start : start + chunk], transform)


def load_train_split(folder: Path, memory: int = 0) -> TrainSplit:
    """Open the training split; of images that are encoded, up to `memory` bytes stay decoded once they have been read.

    Raises ValueError naming a missing or inconsistent file.
    """
    encoded = (folder / "index.npy").exists()
    images, sizes, labels = (
        _load(folder / f"{name}.npy") for name in ("index" if encoded else "pixels", "sizes", "labels")
    )
    try:
        pixels = EncodedImages(folder, images, int(sizes.max(initial=0)), memory) if encoded else images
        return TrainSplit(pixels, sizes, labels)
    except ValueError as error:
        raise _rerun(folder, error) from None


def load_test_split(folder: Path) -> TestSplit:
    """Open the test split, labels and all. Raises ValueError naming a missing or inconsistent file."""
    pixels, labels = load_test_pixels(folder), _load(folder / "labels.npy")
    try:
        return TestSplit(pixels, labels)
    except ValueError as error:
        raise _rerun(folder, error) from None


def save_labels_before_fixes(folder: Path, labels: np.ndarray) -> None:
    np.save(folder / "labels_before_fixes.npy", labels)


def load_labels_before_fixes(folder: Path, num_images: int) -> np.ndarray:
    """The test labels as the data set's folders have them, int64 (M,), NOT_IN_TEST for an image that was moved here."""
    labels: np.ndarray = np.array(_load(folder / "labels_before_fixes.npy"))
    if labels.dtype != np.int64 or labels.shape != (num_images,):
        raise _rerun(
            folder, ValueError(f"labels before fixes are {labels.dtype} {labels.shape} of {num_images} images")
        )
    return labels


def load_test_pixels(folder: Path) -> Crops:
    """Open the test images alone, uint8 (M, crop, crop, 3). Raises ValueError naming a missing or broken file."""
    folder = folder / "images"
    encoded = (folder / "index.npy").exists()
    images = _load(folder / f"{'index' if encoded else 'pixels'}.npy")
    try:
        if encoded:
            return EncodedCrops(EncodedImages(folder, images, side=0), **read_json(folder / "cut.json"))
        _check_pixels(images)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise _rerun(folder, error) from None
    return images


def save_cut(folder: Path, transform: Transform) -> None:
    """Note how encoded test images are cut."""
    write_json(folder / "images" / "cut.json", {"resize": transform.resize, "crop": transform.crop})


def save_test_files(folder: Path, files: Sequence[TestFile]) -> None:
    write_json(folder / "files.json", [asdict(file) for file in files])


def load_test_files(folder: Path) -> tuple[TestFile, ...]:
    """The test rows' source files. Raises ValueError naming the file when it is missing or no such list."""
    path = folder / "files.json"
    try:
        return tuple(TestFile(**entry) for entry in read_json(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run preprocess") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a list of test files ({error!r:.200}); run preprocess again") from None


def save_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path, asdict(manifest))


def load_manifest(path: Path) -> Manifest:
    """Raises ValueError naming the file when it is missing or was not written by `save_manifest`."""
    try:
        values = read_json(path)
        train = tuple(Entry(**entry) for entry in values.pop("train"))
        class_names, transform = tuple(values.pop("class_names")), Transform(**values.pop("transform"))
        return Manifest(class_names=class_names, transform=transform, train=train, **values)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run preprocess") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a manifest ({error!r:.200}); run preprocess again") from None


def _load(path: Path) -> np.ndarray:
    try:
        # Copy on write: torch asks for memory it may write to, and nothing reaches the file.
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run preprocess") from None
    except (ValueError, EOFError, OSError) as error:  # cut short, or no array
        raise ValueError(f"{path}: not a whole array file ({error}); run preprocess again") from None


def _rerun(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder}: {error}; run preprocess again")


def _check(pixels: Pixels, labels: np.ndarray) -> tuple[int, int]:
    """The number of images and the side of their square."""
    if isinstance(pixels, np.ndarray):
        _check_pixels(pixels)
    if labels.dtype != np.int64 or labels.shape != (len(pixels),):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected int64 {(len(pixels),)}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"label {labels.min()} is negative")
    return len(pixels), pixels.shape[1]


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 (images, side, side, 3)")
