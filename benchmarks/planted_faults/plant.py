"""Plant faults into a set of photos in the layout {train,test}/CLASS/NAME: wrong labels, leaks, odd pictures."""

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

FLIPPED, LEAKED = 0.05, 0.1  # shares of the training images and of the test images
NUM_ODD = 10

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Planted:
    """The planted faults, by the files' names in the set, `train/CLASS/NAME`."""

    flipped: Mapping[str, str]  # file -> the true class
    leaks: Mapping[str, tuple[str, str]]  # training file -> the test file that it shows, and how it was changed
    odd: Mapping[str, str]  # file -> what is odd about it


def plant(images: Path, target: Path, seed: int, share_flipped: float = FLIPPED) -> Planted:
    """A copy of `images` in `target`, with faults."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(images, target)
    generator = np.random.default_rng(seed)
    classes = sorted(folder.name for folder in (target / "train").iterdir())
    train, test = (sorted(path for path in (target / split).rglob("*.*")) for split in ("train", "test"))
    # Leaks and odd pictures are made first: of pictures that lie where they belong.
    leaks = plant_leaks(target, [test[row] for row in draw(generator, len(test), LEAKED)], generator)
    odd = plant_odd(target, [train[row] for row in generator.choice(len(train), NUM_ODD, replace=False)], generator)
    flipped = flip([train[row] for row in draw(generator, len(train), share_flipped)], classes, generator)
    return Planted(flipped, leaks, odd)


def draw(generator: np.random.Generator, num: int, share: float) -> np.ndarray:
    return generator.choice(num, max(1, round(share * num)), replace=False)


def flip(paths: list[Path], classes: list[str], generator: np.random.Generator) -> dict[str, str]:
    """Move each file to the folder of another class."""
    flipped = {}
    for path in paths:
        true = path.parent.name
        given = str(generator.choice([name for name in classes if name != true]))
        moved = path.parent.parent / given / f"{true}-{path.name}"
        path.rename(moved)
        flipped[f"train/{given}/{moved.name}"] = true
    return flipped


def plant_leaks(root: Path, paths: list[Path], generator: np.random.Generator) -> dict[str, tuple[str, str]]:
    """Lay a changed copy of each test file into its class's training folder; the changes take turns."""
    leaks = {}
    for number, path in enumerate(paths):
        change = list(CHANGES)[number % len(CHANGES)]
        file = f"train/{path.parent.name}/leak-{number}.png"
        CHANGES[change](read(path), generator).save(root / file)
        leaks[file] = (path.relative_to(root).as_posix(), change)
    return leaks


def plant_odd(root: Path, paths: list[Path], generator: np.random.Generator) -> dict[str, str]:
    odd = {}
    for number, path in enumerate(paths):
        kind = list(SPOILT)[number % len(SPOILT)]
        file = f"train/{path.parent.name}/odd-{number}.png"
        SPOILT[kind](read(path), generator).save(root / file)
        odd[file] = kind
    return odd


def read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def resized(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    factor = generator.uniform(0.4, 0.8)
    return image.resize((round(image.width * factor), round(image.height * factor)))


def recompressed(image: Image.Image, _: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Nine tenths of the width and of the height, from anywhere."""
    width, height = round(0.9 * image.width), round(0.9 * image.height)
    left, top = (int(generator.integers(rest + 1)) for rest in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def recoloured(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) * generator.uniform(0.7, 1.3, 3) + generator.uniform(-15, 15)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Change] = {
    "resized": resized,
    "recompressed": recompressed,
    "cropped": cropped,
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "recoloured": recoloured,
}
SPOILT: dict[str, Change] = {
    "blank": lambda image, generator: Image.new("RGB", image.size, tuple(generator.integers(0, 256, 3).tolist())),
    "dark": lambda image, _: image.point(lambda value: value // 16),
    "blurred": lambda image, _: image.filter(ImageFilter.GaussianBlur(image.width / 6)),
    "tiny": lambda image, _: image.resize((12, 12)),
    "extreme shape": lambda image, _: image.resize((image.width, max(1, image.width // 8))),
}
