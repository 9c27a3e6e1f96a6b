"""Compare the budgeted search with an exhaustive sweep: python -m benchmarks.search --real DIR --work DIR

Twelve settings of fine-tuning, four rates by three multipliers of the head's, are trained on sixty drawn pictures, for one
epoch and for eight. The sweep takes all of them to the eighth; flows.search, its sampler and its pruner, is then replayed on
these trainings, from many seeds. Both choose by validation log-loss.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.__main__ import scores
from benchmarks.quality.ours import train_recipe
from benchmarks.quality.tasks import Task, prepare
from flows.search import study as studies
from flows.search import worker
from flows.search.space import Space
from stages.shared.files import write_json
from stages.shared.reproducibility import choose_device, describe_machine

RESULT = Path(__file__).parent / "results" / "search.json"
TASK = "drawn-60"
GRID = {"recipe.lr": [0.001, 0.003, 0.01, 0.03], "recipe.head_lr_multiplier": [1, 10, 100]}
SPACE = Space(
    name="rates",
    title="Rates of fine-tuning",
    recipe="tuned",
    settings={"recipe.head": "random"},  # from a probe, most of these would end as the probe
    search={**GRID},
    rungs=[{"recipe.epochs": 1}, {"recipe.epochs": 8}],
    reduction=4,
)
NUM_TRIALS = 6  # that a search starts
NUM_SEARCHES = 100

Point = tuple[Any, ...]  # a value of each key that is searched
Trained = dict[tuple[Point, int], dict[str, float]]  # by point and rung


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="a folder with the backbone, as benchmarks.quality's")
    parser.add_argument("--work", type=Path, required=True, help="where the task is prepared")
    options = parser.parse_args()
    task = prepare(TASK, options.real.resolve(), options.work.resolve())
    points, last = [*itertools.product(*GRID.values())], len(SPACE.rungs) - 1
    trained = {(point, rung): train(task, point, rung) for point in points for rung in range(last + 1)}
    best = min(points, key=lambda point: trained[point, last]["validation_loss"])
    cost = sum(trained[point, last]["cpu_seconds"] for point in points)
    searches = [search(trained, seed) for seed in range(NUM_SEARCHES)]
    behind = [trained[best, last]["accuracy"] - one["accuracy"] for one in searches]
    write_json(RESULT, {
        "machine": describe_machine(choose_device("cpu")),
        "task": TASK,
        "space": SPACE.model_dump(mode="json"),
        "sweep": {"settings": best, "cpu_seconds": cost, **trained[best, last]},
        "search": {
            "searches": NUM_SEARCHES,
            "trials": NUM_TRIALS,
            "share_of_the_sweeps_seconds": statistics.fmean(one["cpu_seconds"] for one in searches) / cost,
            "mean_accuracy_behind_the_sweep": statistics.fmean(behind),
            "share_within_half_a_point": statistics.fmean(gap <= 0.005 for gap in behind),
        },
        "trained": [{"settings": point, "rung": rung, **row} for (point, rung), row in trained.items()],
    })  # fmt: skip
    print(RESULT.read_text()[:1500])


def train(task: Task, point: Point, rung: int) -> dict[str, float]:
    """Validation log-loss, test accuracy (for the reader; nothing is chosen by it) and CPU seconds of one training."""
    settings = SPACE.settings_of(dict(zip(GRID, point, strict=True)), rung)
    started = time.process_time()
    model, facts = train_recipe(
        SPACE.recipe, {key.rpartition(".")[2]: value for key, value in settings.items()}, task, 0
    )
    seconds = time.process_time() - started
    row = {
        "validation_loss": facts["validation_loss"],
        "cpu_seconds": seconds,
        "accuracy": scores(model, task)["accuracy"],
    }
    print(point, rung, row, flush=True)
    return row


def search(trained: Trained, seed: int) -> dict[str, float]:
    """What one search takes, in seconds of the trainings that it asks for, and what it chooses is worth."""
    asked: list[float] = []

    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        row = trained[tuple(chosen.values()), rung]
        asked.append(row["cpu_seconds"])
        return row["validation_loss"]

    with tempfile.TemporaryDirectory() as folder:
        study = studies.open_study(Path(folder), SPACE, seed)
        worker.work(study, SPACE, Path(folder), NUM_TRIALS, score)
        point = tuple(study.best_params.values())
    return {"cpu_seconds": sum(asked), "accuracy": trained[point, len(SPACE.rungs) - 1]["accuracy"]}


if __name__ == "__main__":
    main()
