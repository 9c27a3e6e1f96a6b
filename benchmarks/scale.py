"""Measure how far it goes: disk, memory and time of 1,000 images and more, in either store.

python -m benchmarks.scale --work DIR [--images 1000 10000]

For each number of images and each store it makes a project in DIR, with drawn JPEG photos of 512 x 384 as its source (four
fifths to train), runs `dvc repro preprocess`, asks for its status, and trains and evaluates a ResNet-18 at 224 px for a
minute or so, in processes of their own. Rows go to results/scale.json, the table to results/scale.md.
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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.record import RESULTS
from stages.shared.files import read_json, write_json, write_text
from stages.shared.reproducibility import choose_device, describe_machine

ROOT = Path(__file__).parents[1]
CODE = ("stages", "synthetic_images", "masking.py", "dvc.yaml", "fixes.yaml", ".dvcignore", ".gitignore")
HEIGHT, WIDTH, SCENES = 384, 512, 40
STORES, STEPS = ("pixels", "encoded"), ("draw", "graph", "training")
ROUNDS, BATCHES, BATCH = 3, 2, 32  # of training, each round in a new process
HEADINGS = (
    "images",
    "store",
    "source",
    "source, results and cache",
    "preprocess",
    "memory",
    "repro, status with nothing to do",
    "training",
    "memory",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for 25 times the photos")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", nargs="+", default=STEPS, choices=STEPS, help="in this order, in one call or in three"
    )
    arguments = parser.parse_args()
    path, rows = arguments.out / "scale.json", dict[str, Any]()
    if path.exists():
        rows = read_json(path)["rows"]
    for num in arguments.images:
        source = arguments.work / f"photos-{num}"
        projects = {form: arguments.work / f"{form}-{num}" for form in STORES}
        if "draw" in arguments.only:
            draw_source(source, num)
        if "graph" in arguments.only:
            for form, project in projects.items():
                make_project(project, source, form)
                rows[f"{num} {form}"] = {"source_bytes": disk(source), **measure_graph(project)}
        if "training" in arguments.only:
            for form, found in measure_training(projects).items():
                rows[f"{num} {form}"] |= found
    write_json(path, {"machine": describe_machine(choose_device("cpu")), "rows": rows})
    write_text(arguments.out / "scale.md", table(rows))
    print(table(rows))


def draw_source(folder: Path, num: int) -> None:
    """`num` photos that differ, in two classes: smooth scenes with a sensor's noise, each shifted, about 80 kB as JPEG."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (SCENES, HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    scenes = [np.asarray(Image.fromarray(c).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for c in coarse]
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    for i in range(num):
        split = "test" if i % 5 == 4 else "train"
        path = folder / split / ("hot", "not")[i // 5 % 2] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        moved = np.roll(scenes[i % SCENES], (i // SCENES * 3, i // SCENES), (0, 1)) + noise
        Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_project(folder: Path, source: Path, form: str) -> None:
    """A git and DVC project with the checkout's code, whose source is `source` and whose store is `form`."""
    folder.mkdir(parents=True)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc")
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    values["dataset"]["source"] = str(source.absolute())
    values["preprocess"]["store"] = form
    YAML().dump(values, folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def measure_graph(project: Path) -> dict[str, Any]:
    """Disk, seconds and memory of `dvc repro preprocess` and of asking again."""
    found = {}
    for name, words in (
        ("download", ("repro", "-q", "download@dataset")),
        ("preprocess", ("repro", "-q", "preprocess")),
        ("repro_again", ("repro", "-q", "preprocess")),
        ("status", ("status", "-q", "preprocess")),
    ):
        seconds, cpu_seconds, peak = run(project, "dvc", *words)
        found |= {f"{name}_seconds": seconds, f"{name}_cpu_seconds": cpu_seconds, f"{name}_peak_bytes": peak}
    return {"disk_bytes": disk(project / "artifacts", project / ".dvc" / "cache", project / ".cache"), **found}


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


def measure_training(projects: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Images per second and memory, in turn from each store, so that whatever slows the machine slows both."""
    rounds: dict[str, list[dict[str, float]]] = {form: [] for form in projects}
    for _ in range(ROUNDS):
        for form, project in projects.items():
            words = [sys.executable, "-m", "benchmarks.scale_run", str(project), str(BATCHES), str(BATCH)]
            rounds[form].append(json.loads(subprocess.check_output(words, text=True, cwd=ROOT).splitlines()[-1]))
    return {
        form: {key: statistics.median(row[key] for row in found) for key in found[0]} for form, found in rounds.items()
    }


def table(rows: dict[str, Any]) -> str:
    """Times are the CPU's, which other programs on the machine hardly change; those by the clock are in scale.json."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for name, row in rows.items():
        num, form = name.split()
        per_image = row.get("train_cpu_seconds_per_image", math.nan)
        cells = (
            f"{int(num):,}",
            form,
            f"{row['source_bytes'] / 1e6:,.0f} MB",
            f"{row['disk_bytes'] / 1e6:,.0f} MB, {row['disk_bytes'] / row['source_bytes']:.1f} times the source",
            f"{row['preprocess_cpu_seconds']:.0f} s",
            f"{row['preprocess_peak_bytes'] / 1e9:.1f} GB",
            f"{row['repro_again_cpu_seconds']:.1f} s, {row['status_cpu_seconds']:.1f} s",
            f"{per_image * 1000:.0f} ms an image",
            f"{row.get('train_peak_bytes', math.nan) / 1e9:.1f} GB",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
