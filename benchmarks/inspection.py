"""Measure the inspect stage: python -m benchmarks.inspection --work DIR [--images 5000] [--side 256] [--features 512] [--threads 2] [--write]

The pictures are coloured blobs on canvases of --side pixels, of which the test transform cuts seven eighths; nine tenths are to train, and
every twentieth is a copy of its predecessor at another brightness. Their features, which are computed before and not timed,
are random numbers that lean towards their class. Rows go to results/inspection.json.
"""

import argparse
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.quality.tasks import working_in, write_params
from stages.inspect import __main__ as inspect
from stages.shared import artifacts
from stages.shared.dataset import Entry, Manifest, TestFile, save_manifest, save_test_files
from stages.shared.files import read_json, write_json
from stages.shared.reproducibility import describe_machine
from stages.shared.transforms import Transform

RESULT = Path(__file__).parent / "results" / "inspection.json"
NUM_CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inspection", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with working_in(options.work.resolve() / f"inspection-{options.images}-{options.side}-{options.features}"):
        if not (artifacts.FEATURES / "test.safetensors").exists():
            prepare(options.images * 9 // 10, options.images // 10, options.side, options.features)
        torch.set_num_threads(options.threads)
        before, start, cpu = own_bytes(), time.perf_counter(), time.process_time()
        with watching_memory() as seen:
            inspect.main()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    row = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "threads": options.threads}
    row |= {"own_megabytes": round((max(seen) - before) / 1e6), "date": time.strftime("%Y-%m-%d")}
    row |= {"machine": describe_machine(torch.device("cpu"))["device"]}
    print(options.images, row)
    if options.write:
        write_json(
            RESULT, read_json(RESULT) | {f"{options.images} of {options.side} px, {options.features} features": row}
        )


@contextmanager
def watching_memory() -> Iterator[list[int]]:
    """A list that gets this process's own memory, in bytes, ten times a second."""
    seen, ended = [own_bytes()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.append(own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def own_bytes() -> int:
    """Without the pages of mapped files, which the system takes back when it needs them."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


def prepare(num_train: int, num_test: int, side: int, num_features: int) -> None:
    """Write what preprocess and features would leave, as far as inspect reads it."""
    write_params("drawn-60", Path())
    generator = np.random.default_rng(0)
    labels = generator.integers(0, NUM_CLASSES, num_train + num_test)
    for folder in (artifacts.TRAIN_SPLIT, artifacts.TEST_SPLIT / "images", artifacts.FEATURES):
        folder.mkdir(parents=True)
    np.save(artifacts.TRAIN_SPLIT / "pixels.npy", draw(generator, num_train, side))
    np.save(artifacts.TRAIN_SPLIT / "sizes.npy", np.full((num_train, 2), side, np.int32))
    np.save(artifacts.TRAIN_SPLIT / "labels.npy", labels[:num_train])
    np.save(artifacts.TEST_SPLIT / "images/pixels.npy", draw(generator, num_test, side * 7 // 8))
    entries = tuple(
        Entry(f"train/{row}.png", int(label), f"{row:064x}") for row, label in enumerate(labels[:num_train])
    )
    transform = Transform(side, side * 7 // 8, (0.5,) * 3, (0.5,) * 3)
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    save_manifest(artifacts.MANIFEST, Manifest(names, "0" * 64, transform, side, side, entries))
    save_test_files(artifacts.TEST_SPLIT, [TestFile(f"test/{row}.png", "0" * 64) for row in range(num_test)])
    features = generator.normal(size=(num_train + num_test, num_features)).astype(np.float32)
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


if __name__ == "__main__":
    main()
