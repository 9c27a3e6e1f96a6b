"""Plant faults into photo sets, let the inspect stage look for them, and count what it finds and what that is worth.

    python -m benchmarks.planted_faults --real DIR --work DIR [--tasks …] [--seeds 0 1 2] [--flipped 0.05] [--size 224] [--write]

DIR has *.zip, tasks/*.zip and a backbone, as for benchmarks.quality. For each task and seed a copy of the set gets faults: 5 % of
the training labels are flipped, a tenth of the test images lie in training too (resized, recompressed, cropped, mirrored or
recoloured), ten odd pictures are added (--flipped says another share). The download, preprocess, features and inspect stages run on it as they are. Each (task, seed)
is a line of WORK/planted.jsonl, and what has a line is not run again; --write makes results/planted_faults.json of them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from benchmarks.planted_faults.measure import accuracies, found_labels, found_leaks, found_odd
from benchmarks.planted_faults.plant import FLIPPED, plant
from benchmarks.quality.tasks import ARCHITECTURE, CROP, task_names, working_in, write_params
from stages import features
from stages.download import __main__ as download
from stages.inspect import __main__ as inspect
from stages.preprocess import __main__ as preprocess
from stages.shared import artifacts
from stages.shared.files import read_json, write_json
from stages.shared.reproducibility import describe_machine

SIZE = 224  # pixels at which labels are judged
RESULT = Path(__file__).parents[1] / "results" / "planted_faults.json"
NO_SUMS = ("task", "seed", "flipped", "size", "leaks_by_change")
TARGETS = {"recall": 0.8, "precision": 0.7, "leaks_found": 0.99, "clean_flagged": 0.005, "regained": 0.67}
Run = dict[str, Any]


def main() -> None:
    options = parse_arguments()
    real, work = options.real.resolve(), options.work.resolve()
    lines = work / "planted.jsonl"
    done = {identity(run) for run in read_lines(lines)}
    for seed in options.seeds:
        for task in options.tasks or task_names(real):
            if (task, seed, options.flipped, options.size) not in done:
                found = measure(task, seed, options.flipped, options.size, real, work)
                run = {"task": task, "seed": seed, "flipped": options.flipped, "size": options.size, **found}
                with lines.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(json.dumps(run), flush=True)
    if options.write:
        recorded = read_json(RESULT) if RESULT.exists() else {}  # runs of other folders too, and the rows of worth.py
        runs = {identity(run): run for run in [*recorded.get("runs", ()), *read_lines(lines)]}
        write_json(RESULT, recorded | summarize(list(runs.values())))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_faults", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="a folder with *.zip, tasks/*.zip and the backbone")
    parser.add_argument("--work", type=Path, required=True, help="where sets are prepared and runs recorded")
    parser.add_argument("--tasks", nargs="*", help="names of tasks; all where none is named")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--flipped", type=float, default=FLIPPED, help="share of the training labels")
    parser.add_argument("--size", type=int, default=SIZE, help="as inspect.size, pixels")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/planted_faults.json")
    return parser.parse_args()


def measure(task: str, seed: int, flipped: float, size: int, real: Path, work: Path) -> dict[str, Any]:
    """One planting: what was found of it, and the accuracy before and after."""
    images, folder = unpack(task, real, work / task), work / f"{task}-{seed}-{flipped}-{size}"
    planted = plant(images, folder / "planted", seed, flipped)
    with working_in(folder):
        seconds = inspect_images(task, real, size)
        report = read_json(artifacts.INSPECTION / "report.json")
        return {
            **found_labels(report, planted),
            **found_leaks(report, planted),
            **found_odd(report, planted),
            **accuracies(report, planted),
            "inspect_seconds": round(seconds, 1),
        }


def unpack(task: str, real: Path, folder: Path) -> Path:
    """The task's images as the download stage brings them."""
    with working_in(folder):
        images = folder / artifacts.SOURCE_DATASET / "images"
        if not images.is_dir():
            write_params(task, real)
            download.main("dataset")
        return images


def inspect_images(task: str, real: Path, size: int) -> float:
    """Run the stages up to inspect on the planted set in the working folder; the seconds that inspect took."""
    write_params(task, real)
    values = YAML(typ="safe").load(Path("params.yaml"))
    values["dataset"]["source"] = str(Path("planted").resolve())
    values["inspect"]["size"] = size
    YAML().dump(values, Path("params.yaml"))
    download.main("dataset")
    download.main("model")
    preprocess.main()
    features.main()
    start = time.perf_counter()
    inspect.main()
    return time.perf_counter() - start


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """The results file: for each share of flipped labels, rates over each task's seeds and over all; and every run."""
    return {
        "command": "python -m benchmarks.planted_faults",
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(torch.device("cpu"))["device"],
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "cleanlab", "numpy")},
        "network": f"{ARCHITECTURE} at {CROP} px; labels judged at each run's `size`",
        "targets": TARGETS,
        "flipped": {
            f"{share}, {size} px": by_task(runs_of)
            for share, of_share in grouped(runs, "flipped").items()
            for size, runs_of in grouped(of_share, "size").items()
        },
        "runs": list(runs),
    }


def by_task(runs: Sequence[Run]) -> dict[str, Any]:
    return {**{task: rates(of_task) for task, of_task in grouped(runs, "task").items()}, "all": rates(runs)}


def grouped(runs: Sequence[Run], key: str) -> dict[Any, list[Run]]:
    return {value: [run for run in runs if run[key] == value] for value in dict.fromkeys(run[key] for run in runs)}


def rates(runs: Sequence[Run]) -> dict[str, Any]:
    """Shares over some runs together, null where there is nothing to divide by; `regained` only of a cost beyond chance."""
    total = {key: sum(run[key] for run in runs) for key in runs[0] if key not in NO_SUMS}
    costs = np.array([run["accuracy_clean"] - run["accuracy_faulty"] for run in runs])
    error = float(costs.std(ddof=1) / len(costs) ** 0.5) if len(costs) > 1 else float("inf")

    def share(part: str, whole: str) -> float | None:
        return round(total[part] / total[whole], 3) if total[whole] else None

    def regained(arm: str) -> float | None:
        gain = np.mean([run[arm] - run["accuracy_faulty"] for run in runs])
        return round(float(gain / costs.mean()), 2) if costs.mean() > 2 * error else None

    means = {key: round(total[key] / len(runs), 4) for key in total if key.startswith("accuracy")}
    return {
        "seeds": len(runs),
        "recall": share("flips_found", "flips"),
        "precision": share("flips_found", "flags"),
        "leaks_found": share("leaks_found", "leaks"),
        "clean_flagged": share("clean_held_for_leaks", "clean_images"),
        "odd_found": share("odd_found", "odd"),
        **means,
        "cost": round(float(costs.mean()), 4),
        "cost_standard_error": round(error, 4) if len(costs) > 1 else None,
        "regained": regained("accuracy_fixed"),
        "regained_with_a_person": regained("accuracy_reviewed"),
    }


def identity(run: Run) -> tuple[Any, ...]:
    return run["task"], run["seed"], run["flipped"], run["size"]


def read_lines(path: Path) -> list[Run]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    return [{"size": CROP, **json.loads(line)} for line in lines]  # early runs name none, and were judged at the crop


if __name__ == "__main__":
    main()
