"""Compare recipes on small tasks: python -m benchmarks.quality --real DIR --work DIR [--tasks …] [--recipes …] [--seeds …]

Each (task, recipe, seed) is a line of WORK/runs.jsonl, and what has a line is not run again. With --write the lines become
benchmarks/results/quality.json, quality.md and quality.png.
"""

import argparse
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.quality.ours import RECIPES, feature_seconds, train_ours
from benchmarks.quality.peers import PEERS
from benchmarks.quality.table import write_results
from benchmarks.quality.tasks import Task, prepare, task_names
from stages.evaluate.scores import class_scores, overall_scores, predictions_from
from stages.shared.inference import predict_logits

BINS = 15  # of confidence, for the ECE


def main() -> None:
    arguments = parse_arguments()
    runs = arguments.work.resolve() / "runs.jsonl"
    runs.parent.mkdir(parents=True, exist_ok=True)
    done = {(run["task"], run["recipe"], run["seed"]) for run in read_runs(runs)}
    for name in arguments.tasks or task_names(arguments.real):
        for recipe in arguments.recipes:
            for seed in arguments.seeds:
                if (name, recipe, seed) not in done:
                    task = prepare(name, arguments.real.resolve(), arguments.work.resolve())
                    run = {"task": name, "recipe": recipe, "seed": seed, **measure(task, recipe, seed)}
                    write_run(runs, {**run, "date": datetime.now(UTC).date().isoformat()})
    if arguments.write:
        print(write_results(read_runs(runs)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="a folder with *.zip, tasks/*.zip and the backbone")
    parser.add_argument("--work", type=Path, required=True, help="where tasks are prepared and runs recorded")
    parser.add_argument("--tasks", nargs="*", help="names of tasks; all where none is named")
    parser.add_argument("--recipes", nargs="*", default=[*RECIPES, *PEERS], choices=[*RECIPES, *PEERS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/quality.*")
    return parser.parse_args()


def measure(task: Task, recipe: str, seed: int) -> dict[str, Any]:
    """One training and what its model is worth on the test split."""
    shutil.rmtree(task.folder / ".cache/train", ignore_errors=True)  # of a benchmark that was killed: all seconds count
    wall, cpu = time.perf_counter(), time.process_time()
    model, facts = train_ours(recipe, task, seed) if recipe in RECIPES else (PEERS[recipe](task, seed), {})
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu + feature_seconds(recipe, task)
    return {**scores(model, task), "cpu_seconds": cpu, "wall_seconds": wall, **facts}


def scores(model: nn.Module, task: Task) -> dict[str, Any]:
    logits = predict_logits(model, task.test_pixels, task.transform, device=torch.device("cpu"))
    predictions = predictions_from(logits, task.test_labels)
    overall, recall = overall_scores(predictions, bins=BINS), class_scores(predictions)["recall"]
    shares = np.bincount(task.train.labels, minlength=len(task.class_names))
    return {
        "accuracy": overall["test_accuracy"],
        "accuracy_as_trained": float(np.average(recall, weights=shares)),  # were classes as frequent as in training
        "macro_recall": float(np.nanmean(recall)),
        "log_loss": overall["test_loss"],
        "ece": overall["ece"],
        "num_test": len(task.test_labels),
        "num_train": len(task.train),
    }


def read_runs(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_run(path: Path, run: dict[str, Any]) -> None:
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in run.items()}
    with path.open("a") as file:
        file.write(json.dumps(rounded) + "\n")
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
