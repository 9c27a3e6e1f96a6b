"""Measure how far it goes: disk, memory and CPU time of 1,000 to 100,000 photos.

python -m benchmarks.scale --work DIR [--images 10 1000 10000 100000] [--store encoded]

For each number of images it makes a project in DIR, with drawn JPEG photos of 320 x 240 as its source (four fifths to train),
and runs `dvc repro preprocess`, the same again, `dvc status`, and the stages train (one epoch) and evaluate, each in a process of
its own. A network as small as torchvision's smallest at 64 px leaves the pictures most of the time. The same with ten
photos says what a command takes whatever the number. Rows go to results/scale.json, the table to results/scale.md.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from stages.shared.files import read_json, write_json, write_text
from stages.shared.held_out import save_folds

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CODE = ("stages", "synthetic_images", "masking.py", "dvc.yaml", "fixes.yaml", ".dvcignore", ".gitignore")
SIZE, SCENES = (320, 240), 100  # pixels across and down
FEW, TEST_SHARE = 10, 0.2
ROUNDS = 3  # of commands that take no more than seconds
RECIPE = {"init": "random", "loss": "mean", "lr": 0.01, "epochs": 1, "validation": "none", "precision": "float32"}
CHANGES: dict[str, dict[str, Any]] = {
    "model": {"architecture": "shufflenet_v2_x0_5"},
    "preprocess": {"resize": 73, "crop": 64},
    "runtime": {"device": "cpu", "memory_gb": 0.5},
}
STEPS = {  # name -> the words after `python -m`, and the share of the images that they are about
    "download": ("dvc repro -q download@dataset", 1.0),
    "preprocess": ("dvc repro -q preprocess", 1.0),
    "nothing_to_do": ("dvc repro -q preprocess", 1.0),
    "status": ("dvc status -q preprocess", 1.0),
    "train": ("stages.train scale", 1 - TEST_SHARE),
    "evaluate": ("stages.evaluate scale", TEST_SHARE),
}
DESCRIBE = "import json; from stages.shared.reproducibility import *; print(json.dumps(describe_machine(choose_device('cpu'))))"
HEADINGS = (
    *("images", "store", "source", "source, stored images and cache"),
    *("preprocess", "train", "evaluate", "memory of each", "nothing to do: `dvc repro`, `dvc status`"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for five times the photos")
    parser.add_argument("--images", type=int, nargs="+", default=[FEW, 1000, 10_000, 100_000])
    parser.add_argument("--store", choices=("encoded", "pixels"), default="encoded")
    parser.add_argument("--experiments", type=int, default=0, help="check the results out in so many clones too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    # In a process of its own, for it imports torch: whatever is started from here is charged with this one's memory.
    machine = json.loads(subprocess.check_output([sys.executable, "-c", DESCRIBE], text=True, cwd=ROOT))
    for num in arguments.images:
        source, project = arguments.work / f"photos-{num}", arguments.work / f"{arguments.store}-{num}"
        draw_source(source, num)
        make_project(project, source, arguments.store)
        row: dict[str, Any] = {"source_bytes": disk(source)}
        for found in measure(project, num):
            row |= found
            record(arguments.out, machine, f"{num} {arguments.store}", row)
        if arguments.experiments:
            row["experiments"] = measure_experiments(project, arguments.experiments)
            record(arguments.out, machine, f"{num} {arguments.store}", row)
    print((arguments.out / "scale.md").read_text(encoding="utf-8"))


def draw_source(folder: Path, num: int, size: tuple[int, int] = SIZE) -> None:
    """`num` photos that differ, in two classes: shifted noisy scenes, about 20 kB each as JPEG. Nothing is drawn where they are."""
    rng, (width, height) = np.random.default_rng(0), size
    coarse = rng.integers(0, 256, (SCENES, height // 16, width // 16, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BICUBIC)) for c in coarse]
    noise = rng.normal(0, 5, (height, width, 1))
    scenes = [(scene + noise).clip(0, 255).astype(np.uint8) for scene in smooth]
    for i in range(num):
        split = "test" if i % 5 == 4 else "train"
        path = folder / split / ("hot", "not")[i // 5 % 2] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            moved = np.roll(scenes[i % SCENES], (i // SCENES // width, i // SCENES % width), (0, 1))
            Image.fromarray(moved).save(path, quality=88)


def make_project(folder: Path, source: Path, store: str) -> None:
    """A fresh git and DVC project with the checkout's code, whose source is `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc")
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    values["dataset"]["source"], values["preprocess"]["store"] = str(source.absolute()), store
    for section, changes in CHANGES.items():
        values[section] |= changes
    values["train"]["scale"] = values["base_recipe"] | RECIPE
    YAML().dump(values, folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def measure(project: Path, num: int) -> Iterator[dict[str, Any]]:
    """Seconds and memory of one step after the other, and the disk that all of it takes."""
    for name, (words, share) in STEPS.items():
        if name == "train":  # inspect, which deals the folds, is not measured
            save_folds(project / "artifacts/inspect/folds.npz", np.zeros(round(num * share), np.int64))
        again = name in ("nothing_to_do", "status", "train", "evaluate") and num <= 1000
        rounds = [run(project, *words.split()) for _ in range(ROUNDS if again else 1)]
        columns = zip(("seconds", "cpu_seconds", "peak_bytes"), zip(*rounds, strict=True), strict=True)
        yield {f"{name}_{quantity}": statistics.median(values) for quantity, values in columns}
        if name == "preprocess":
            yield {"disk_bytes": disk(project / "artifacts", project / ".dvc" / "cache", project / ".cache")}


def run(folder: Path, *words: str) -> tuple[float, float, int]:
    """Seconds by the clock and of the CPU of `python -m …`, and the largest memory of a process of it, mapped pages included."""
    start = time.perf_counter()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=os.environ | {"PATH": path})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)} in {folder} failed; its output is above")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def disk(*folders: Path) -> int:
    """Bytes on the disk; a file with several names (a link into DVC's cache) counts once."""
    found = [path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum({(entry.st_dev, entry.st_ino): entry.st_blocks * 512 for entry in found}.values())


def measure_experiments(project: Path, num: int) -> dict[str, int]:
    """The disk of `num` clones with the photos and the stored images in each, as experiments on one worker, all with the project's cache."""
    identity = ["-c", "user.name=scale", "-c", "user.email=scale@localhost"]
    for command in (["add", "-A"], [*identity, "commit", "-qm", "measured"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    clones = [project.with_name(f"{project.name}-experiment-{i}") for i in range(num)]
    for clone in clones:
        shutil.rmtree(clone, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", project, clone], check=True)
        run(clone, "dvc", "config", "--local", "cache.dir", str((project / ".dvc/cache").absolute()))
        run(clone, "dvc", "checkout", "-q", "download@dataset", "preprocess")
    one, all_of_them = disk(project), disk(project, *clones)
    return {"number": num, "project_bytes": one, "project_and_clones_bytes": all_of_them}


def record(folder: Path, machine: dict[str, str], name: str, row: dict[str, Any]) -> None:
    path = folder / "scale.json"
    rows = (read_json(path)["rows"] if path.exists() else {}) | {name: row}
    write_json(path, {"machine": machine, "rows": rows})
    write_text(folder / "scale.md", table(rows))


def table(rows: dict[str, Any]) -> str:
    """Times are the CPU's, which other programs on the machine hardly change; those by the clock are in scale.json."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for name, row in rows.items():
        num, store = int(name.split()[0]), name.split()[1]
        few = rows.get(f"{FEW} {store}", {})
        if num == FEW:
            continue
        row = defaultdict(lambda: math.nan, row)
        each = [f"{per_image(row, few, num, step) * 1000:.2f} ms" for step in ("preprocess", "train", "evaluate")]
        memory = [f"{row[f'{step}_peak_bytes'] / 1e9:.1f}" for step in ("preprocess", "train", "evaluate")]
        cells = (
            *(f"{num:,}", store, f"{row['source_bytes'] / 1e6:,.0f} MB"),
            f"{row['disk_bytes'] / 1e6:,.0f} MB, {row['disk_bytes'] / row['source_bytes']:.1f} times the source",
            *(*each, f"{', '.join(memory)} GB"),
            f"{row['nothing_to_do_cpu_seconds']:.1f} s, {row['status_cpu_seconds']:.1f} s",
        )
        lines.append("| " + " | ".join("not measured" if "nan" in cell else cell for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def per_image(row: dict[str, Any], few: dict[str, Any], num: int, step: str) -> float:
    """CPU seconds of each image that a step is about, beyond what the step takes with FEW."""
    key, share = f"{step}_cpu_seconds", STEPS[step][1]
    return float((row[key] - few.get(key, math.nan)) / ((num - FEW) * share))


if __name__ == "__main__":
    main()
