"""Compare the budgeted search with an exhaustive sweep: python -m benchmarks.search --real DIR --work DIR

Twelve settings of fine-tuning from a probe, four rates by three depths of freezing, are trained on a hundred photos of five
cakes: for two epochs with one fold held out, and for eight with each of three folds held out in turn. The sweep takes all of them
to the second; flows.search, its sampler and its halving, is then replayed on these trainings, from many seeds. Both choose by
validation log-loss. Each training is a line of WORK/search.jsonl, and what has a line is not trained again.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.__main__ import read_runs, scores, write_run
from benchmarks.quality.ours import train_recipe
from benchmarks.quality.tasks import PARAMS, Task, prepare
from flows.project import read_yaml
from flows.search import study as studies
from flows.search import worker
from flows.search.space import Space
from stages.shared.files import write_json
from stages.shared.reproducibility import choose_device, describe_machine

RESULT = Path(__file__).parent / "results" / "search.json"
TASK = "cakes-5"
GRID = {"recipe.lr": [0.0005, 0.001, 0.002, 0.004], "recipe.freeze": [0.4, 0.6, 0.8]}
SPACE = Space(
    name="rates",
    title="Rates and depths of fine-tuning",
    recipe="tuned",
    settings={"recipe.train_fraction": 0.5},
    search={**GRID},
    rungs=[
        {"recipe.validation": "holdout", "recipe.epochs": 2},
        {"recipe.validation": "folds", "recipe.epochs": 8},
    ],
    reduction=4,
)
NUM_TRIALS = (4, 5, 6, 7, 8, 12)  # that a search starts
NUM_SEARCHES = 50

Point = tuple[Any, ...]  # a value of each key that is searched
Trained = dict[tuple[Point, int], dict[str, float]]  # by point and rung


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="a folder with the backbone, as benchmarks.quality's")
    parser.add_argument("--work", type=Path, required=True, help="where the task is prepared")
    options = parser.parse_args()
    task, runs = prepare(TASK, options.real.resolve(), options.work.resolve()), options.work.resolve() / "search.jsonl"
    trained: Trained = {(tuple(run.pop("settings")), run.pop("rung")): run for run in read_runs(runs)}
    for point, rung in itertools.product(itertools.product(*GRID.values()), range(len(SPACE.rungs))):
        if (point, rung) not in trained:
            trained[point, rung] = train(task, point, rung)
            write_run(runs, {"settings": point, "rung": rung, **trained[point, rung]})
    write_json(RESULT, {
        "machine": describe_machine(choose_device("cpu")),
        "task": TASK,
        "space": SPACE.model_dump(mode="json"),
        **compare(trained),
        "trained": [{"settings": point, "rung": rung, **row} for (point, rung), row in trained.items()],
    })  # fmt: skip


def compare(trained: Trained) -> dict[str, Any]:
    """The sweep's choice and cost, and beside it searches of so many trials, each the mean over NUM_SEARCHES seeds."""
    last = len(SPACE.rungs) - 1
    full = {point: row for (point, rung), row in trained.items() if rung == last}
    best = min(full, key=lambda point: full[point]["validation_loss"])
    cost = sum(row["cpu_seconds"] for row in full.values())
    rows = []
    for num_trials in NUM_TRIALS:
        searches = [search(trained, seed, num_trials) for seed in range(NUM_SEARCHES)]
        behind = [full[best]["accuracy"] - one["accuracy"] for one in searches]
        worse = [one["validation_loss"] - full[best]["validation_loss"] for one in searches]
        rows.append({
            "trials": num_trials,
            "share_of_the_sweeps_seconds": statistics.fmean(one["cpu_seconds"] for one in searches) / cost,
            "mean_validation_loss_above_the_sweeps": statistics.fmean(worse),
            "mean_accuracy_behind_the_sweep": statistics.fmean(behind),
            "share_within_half_a_point": statistics.fmean(gap <= 0.005 for gap in behind),
        })  # fmt: skip
    return {"sweep": {"settings": best, **full[best], "cpu_seconds_of_all": cost}, "searches": rows}


def train(task: Task, point: Point, rung: int) -> dict[str, float]:
    """Validation log-loss, test accuracy (for the reader; nothing is chosen by it) and CPU seconds of one training."""
    settings = SPACE.settings_of(dict(zip(GRID, point, strict=True)), rung)
    started = time.process_time()
    model, facts = train_recipe(
        SPACE.recipe, {key.rpartition(".")[2]: value for key, value in settings.items()}, task, 0
    )
    seconds = time.process_time() - started
    accuracy = scores(model, task)["accuracy"]
    return {"validation_loss": facts["validation_loss"], "cpu_seconds": seconds, "accuracy": accuracy}


def search(trained: Trained, seed: int, num_trials: int) -> dict[str, float]:
    """What one search takes, in seconds of the trainings that it asks for, and what it chooses is worth."""
    asked: list[float] = []

    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        row = trained[tuple(chosen.values()), rung]
        asked.append(row["cpu_seconds"])
        return row["validation_loss"]

    with tempfile.TemporaryDirectory() as folder:
        study = studies.open_study(Path(folder), SPACE, seed, SPACE.own_values(read_yaml(PARAMS)))
        worker.work(study, SPACE, Path(folder), num_trials, score)
        point = tuple(study.best_params.values())
    return {**trained[point, len(SPACE.rungs) - 1], "cpu_seconds": sum(asked)}


if __name__ == "__main__":
    main()
