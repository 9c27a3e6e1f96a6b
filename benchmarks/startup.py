"""The row on a whole run: from the start of a process to its final metrics, and where the seconds go.

As a program it is that process: python -m benchmarks.startup SPLITS IMAGES CROP BATCH DEVICE STARTED OUT
"""

import sys
import time

if __name__ == "__main__":
    ENTERED = time.monotonic()  # Python itself has started; the imports below are what is timed next

import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ours import fit_recipe
from benchmarks.record import Row, Rows, attempt
from benchmarks.workload import MEAN, STD, Size, chosen_images, make_model
from stages.shared.dataset import load_test_split, load_train_split
from stages.shared.files import read_json, write_json
from stages.shared.inference import predict_logits
from stages.shared.transforms import Transform

EPOCHS = 5
PARTS = ("import", "load", "capture", "train", "evaluate", "exit")


def measure_startup(size: Size, folder: Path, device: torch.device) -> Rows:
    yield from attempt(("startup",), lambda: {"startup": startup_row(size, folder, device)})


def startup_row(size: Size, folder: Path, device: torch.device) -> Row:
    """Seconds of each part and in all, medians over `startup_runs` processes, one after the other."""
    runs = [_run_once(size, folder, device) for _ in range(size.startup_runs)]
    seconds = {part: statistics.median(run[part] for run in runs) for part in (*PARTS, "total")}
    images = {"train_images": size.startup_images, "epochs": EPOCHS, "test_images": runs[0]["test_images"]}
    return {"seconds": seconds, **images, "runs": runs}


def _run_once(size: Size, folder: Path, device: torch.device) -> dict[str, float]:
    out = folder / "startup.json"
    started = time.monotonic()
    words = [folder, size.startup_images, size.crop, size.batch_size, device.type, started, out]
    subprocess.run([sys.executable, "-m", "benchmarks.startup", *map(str, words)], check=True)
    total = time.monotonic() - started
    parts = read_json(out)
    timed = sum(parts[part] for part in PARTS if part != "exit")
    return {**parts, "exit": total - timed, "total": total}


def main(folder: str, images: str, crop: str, batch_size: str, device_name: str, started: str, out: str) -> None:
    device, side = torch.device(device_name), int(crop)
    imported = time.monotonic()
    train, test = load_train_split(Path(folder)), load_test_split(Path(folder) / "test")
    model = make_model(side)
    loaded = time.monotonic()
    chosen = chosen_images(int(images), len(train))
    settings: dict[str, Any] = {"crop": side, "epochs": EPOCHS, "batch_size": int(batch_size)}
    history = fit_recipe(model, train, chosen, **settings, device=device, name="startup")
    trained = time.monotonic()
    logits = predict_logits(model, test.pixels, Transform(side, side, MEAN, STD), device=device)
    accuracy = float((logits.argmax(1) == np.asarray(test.labels)).mean())
    evaluated = time.monotonic()
    # What the first epoch takes beyond a usual one is preparation: the pixels' copy, compiling, capturing.
    steady = EPOCHS * statistics.median(epoch.seconds for epoch in history[1:])
    parts = {
        "import": imported - float(started),
        "load": loaded - imported,
        "capture": max(0.0, trained - loaded - steady),
        "train": min(steady, trained - loaded),
        "evaluate": evaluated - trained,
    }
    write_json(
        Path(out), {**parts, "python": ENTERED - float(started), "test_images": len(test), "test_accuracy": accuracy}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
