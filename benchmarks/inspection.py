"""Time the inspect stage: python -m benchmarks.inspection --work DIR [--images 5000] [--write]

The pictures are coloured blobs of 224 px on canvases of 256, nine tenths to train, every twentieth a copy of its predecessor at another
brightness; their features, which are computed before and not timed, are 512 random numbers that lean towards their class.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.quality.tasks import working_in, write_params
from stages.inspect import __main__ as inspect
from stages.shared import artifacts
from stages.shared.dataset import Entry, Manifest, TestFile, save_manifest, save_test_files
from stages.shared.files import write_json
from stages.shared.reproducibility import describe_machine
from stages.shared.transforms import Transform

RESULT = Path(__file__).parent / "results" / "inspection.json"
TARGET = 120  # seconds, for 5,000 images on two cores
SIDE, CROP, NUM_CLASSES, NUM_FEATURES = 256, 224, 10, 512


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inspection", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with working_in(options.work.resolve() / f"inspection-{options.images}"):
        if not (artifacts.FEATURES / "test.safetensors").exists():
            prepare(options.images * 9 // 10, options.images // 10)
        torch.set_num_threads(2)
        before, start = peak_megabytes(), time.perf_counter()
        inspect.main()
        seconds = time.perf_counter() - start
    row = {"images": options.images, "seconds": round(seconds, 1), "target_seconds": TARGET, "threads": 2}
    row |= {"peak_megabytes": round(peak_megabytes()), "peak_megabytes_before": round(before)}
    row |= {"date": time.strftime("%Y-%m-%d"), "machine": describe_machine(torch.device("cpu"))["device"]}
    print(row)
    if options.write:
        write_json(RESULT, row)


def prepare(num_train: int, num_test: int) -> None:
    """Write what preprocess and features would leave, as far as inspect reads it."""
    write_params("drawn-60", Path())
    generator = np.random.default_rng(0)
    labels = generator.integers(0, NUM_CLASSES, num_train + num_test)
    for folder in (artifacts.TRAIN_SPLIT, artifacts.TEST_SPLIT / "images", artifacts.FEATURES):
        folder.mkdir(parents=True)
    np.save(artifacts.TRAIN_SPLIT / "pixels.npy", draw(generator, num_train, SIDE))
    np.save(artifacts.TRAIN_SPLIT / "sizes.npy", np.full((num_train, 2), SIDE, np.int32))
    np.save(artifacts.TRAIN_SPLIT / "labels.npy", labels[:num_train])
    np.save(artifacts.TEST_SPLIT / "images/pixels.npy", draw(generator, num_test, CROP))
    entries = tuple(
        Entry(f"train/{row}.png", int(label), f"{row:064x}") for row, label in enumerate(labels[:num_train])
    )
    transform = Transform(SIDE, CROP, (0.5,) * 3, (0.5,) * 3)
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    save_manifest(artifacts.MANIFEST, Manifest(names, "0" * 64, transform, SIDE, SIDE, entries))
    save_test_files(artifacts.TEST_SPLIT, [TestFile(f"test/{row}.png", "0" * 64) for row in range(num_test)])
    features = generator.normal(size=(num_train + num_test, NUM_FEATURES)).astype(np.float32)
    features[np.arange(len(labels)), labels] += 3
    train = {"crop": features[:num_train], "mirror": np.ascontiguousarray(features[:num_train, ::-1])}
    save_file(train, artifacts.FEATURES / "train.safetensors")
    save_file({"crop": features[num_train:]}, artifacts.FEATURES / "test.safetensors")


def draw(generator: np.random.Generator, count: int, side: int) -> np.ndarray:
    """uint8 (count, side, side, 3)"""
    pictures = np.empty((count, side, side, 3), np.uint8)
    for row in range(count):
        if row % 20 == 19:
            pictures[row] = pictures[row - 1] // 2 + 40
            continue
        blobs = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        pictures[row] = np.asarray(blobs.resize((side, side), Image.Resampling.BILINEAR))
    return pictures


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
