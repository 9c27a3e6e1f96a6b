"""Measure what it costs to read a training image, from either store and as others read it: python -m benchmarks.loading.

Drawn JPEG photos of 500 x 375; every contestant makes random crops of 224 px of all of them, mirrored half of the time, in
an order of its own, on --cores cores. The CPU's time and the clock's, medians of rounds taken in turn: results/loading.json
(without the clock's where other programs ran beside).
With --train, a ResNet-18 is trained from either store too. ffcv is measured where it is installed: it is built from source,
for which Debian has what it needs in libopencv-dev, libturbojpeg0-dev and pkg-config.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import loaders, ours
from benchmarks.loaders import BATCH, CROP, Epoch
from benchmarks.record import RESULTS
from benchmarks.scale import draw_source
from benchmarks.workload import make_model
from stages.shared.dataset import TrainSplit
from stages.shared.files import read_json, write_json
from stages.shared.reproducibility import choose_device, describe_machine

PHOTOS, SIZE, ROUNDS = 500, (500, 375), 5
TRAINED = 64  # images, in an epoch of ResNet-18


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument(
        "--cores", type=int, default=1, help="that all may use; loaders get as many threads or processes"
    )
    parser.add_argument("--train", action="store_true", help="train a ResNet-18 from either store too, for minutes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    torch.set_num_threads(arguments.cores)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(Path(folder), arguments.cores, arguments.train)
    for name, row in rows.items():
        print(f"{name}: {row}")
    about = {"images": PHOTOS, "size": list(SIZE), "crop": CROP, "rounds": ROUNDS}
    measured = {"machine": describe_machine(choose_device("cpu")), "rows": rows}
    write_section(arguments.out / "loading.json", about, f"cores: {arguments.cores}", measured)
    sys.stdout.flush()
    os._exit(0)  # on one core a process with ffcv's libraries in it waits for ever where it should end


def measure_all(folder: Path, cores: int, train: bool) -> dict[str, Any]:
    """A row for each contestant."""
    draw_source(folder / "photos", PHOTOS * 5 // 4, SIZE)
    shutil.rmtree(folder / "photos/test")
    files = sorted((folder / "photos").rglob("*.jpg"))
    pixels, encoded = loaders.splits(files, folder)
    read = {
        "pixels": loaders.ours(pixels),
        "encoded": loaders.ours(encoded),
        "files, by torchvision": loaders.torchvision(folder / "photos/train", cores),
    }
    if loaders.installed("webdataset"):
        read["webdataset"] = loaders.webdataset(files, folder, cores)
    if loaders.installed("ffcv"):
        read |= {f"ffcv, {form}": loaders.ffcv(pixels, folder, cores, form) for form in ("jpg", "raw")}
    rows: dict[str, Any] = {
        package: "not run: it is not installed" for package in ("webdataset", "ffcv") if not loaders.installed(package)
    }
    rows |= cost(read, len(files))
    if train:
        rows |= cost(
            {f"ResNet-18 from {name}": epoch_of(split) for name, split in (("pixels", pixels), ("encoded", encoded))},
            TRAINED,
        )
    return rows


def epoch_of(split: TrainSplit) -> Epoch:
    """An epoch of ResNet-18 over a few images."""
    model, rows = make_model(CROP), torch.arange(TRAINED)
    return lambda: ours.fit_recipe(
        model, split, rows, crop=CROP, epochs=1, batch_size=BATCH, device=torch.device("cpu"), name="loading"
    )


def cost(contestants: dict[str, Epoch], num_images: int) -> dict[str, dict[str, float]]:
    """Each one's milliseconds for an image, medians of rounds in turn; the first round warms up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(1 + ROUNDS):
        for name, epoch in contestants.items():
            cpu, clock = cpu_seconds(), time.perf_counter()
            epoch()
            seconds[name].append((cpu_seconds() - cpu, time.perf_counter() - clock))
    medians = {
        name: [statistics.median(kind) / num_images * 1000 for kind in zip(*found[1:], strict=True)]
        for name, found in seconds.items()
    }
    return {name: {"cpu_ms": round(cpu, 3), "clock_ms": round(clock, 3)} for name, (cpu, clock) in medians.items()}


def cpu_seconds() -> float:
    """Of this process and of workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def write_section(path: Path, about: dict[str, Any], name: str, measured: dict[str, Any]) -> None:
    """Beside the sections that were measured with the same images."""
    earlier = read_json(path) if path.exists() else {}
    kept = {key: value for key, value in earlier.items() if key.startswith("cores: ")}
    same = all(earlier.get(key) == value for key, value in about.items())
    write_json(path, about | dict(sorted(((kept if same else {}) | {name: measured}).items())))


if __name__ == "__main__":
    main()
