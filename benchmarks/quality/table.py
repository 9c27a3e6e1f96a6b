"""The runs as quality.json, Markdown tables, and a picture of error against seconds."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.quality.peers import PEERS
from stages.shared.files import replacing, write_json, write_text
from stages.shared.plotting import STYLE, series_colors
from stages.shared.reproducibility import choose_device, describe_machine

RESULTS = Path(__file__).parents[1] / "results"
SCORES = ("accuracy", "macro_recall", "log_loss", "ece", "cpu_seconds", "wall_seconds")
ORDER = ("book", "probe", "tuned", *PEERS)  # "unweighted" has a table of its own
SECONDS = (3, 10, 30, 100, 300)  # the picture's ticks


def write_results(runs: Sequence[dict[str, Any]]) -> str:
    """Write quality.json, quality.md and quality.png to benchmarks/results; returns the Markdown."""
    shown = [run for run in runs if run["recipe"] in ORDER]
    summary, pairs = summarize(shown), compare_to_tuned(shown)
    machine = describe_machine(choose_device("cpu"))
    results = {"machine": machine, "threads": 1, "summary": summary, "against_tuned": pairs, "runs": [*runs]}
    write_json(RESULTS / "quality.json", results)
    text = render(summary, pairs, machine) + render_imbalance(runs)
    write_text(RESULTS / "quality.md", text)
    with replacing(RESULTS / "quality.png") as part:
        draw(part, summary)
    return text


def summarize(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of each (task, recipe) over its seeds; the smallest task first."""
    pairs = dict.fromkeys((run["num_train"], run["task"], run["recipe"]) for run in runs)
    rows = []
    for num_train, task, recipe in sorted(pairs, key=lambda pair: (*pair[:2], ORDER.index(pair[2]))):
        own = [run for run in runs if (run["task"], run["recipe"]) == (task, recipe)]
        means = {score: statistics.fmean(run[score] for run in own) for score in SCORES}
        oldest = min(run["date"] for run in own)
        rows.append({
            "task": task, "recipe": recipe, "seeds": len(own), "num_train": num_train, **means, "oldest": oldest
        })  # fmt: skip
    return rows


def compare_to_tuned(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each other recipe beside tuned, over the seeds of a task that both have run; every task counts alike.

    `more` is its error less tuned's, with a 95 % interval by Student's t over the tasks.
    """
    by_key = {(run["recipe"], run["task"], run["seed"]): run for run in runs}
    rows = []
    for recipe in (name for name in ORDER if name != "tuned"):
        seeds: dict[str, list[int]] = {}  # of each task
        for name, task, seed in by_key:
            if name == recipe and ("tuned", task, seed) in by_key:
                seeds.setdefault(task, []).append(seed)
        if not seeds:
            continue

        def of_tasks(recipe: str, score: str, seeds: dict[str, list[int]] = seeds) -> np.ndarray:
            return np.array([np.mean([by_key[recipe, task, i][score] for i in own]) for task, own in seeds.items()])

        more = of_tasks("tuned", "accuracy") - of_tasks(recipe, "accuracy")
        half = float(stats.t.ppf(0.975, len(more) - 1) * stats.sem(more)) if len(more) > 1 else None
        means = {score: float(of_tasks(recipe, score).mean()) for score in SCORES}
        means |= {f"tuned_{score}": float(of_tasks("tuned", score).mean()) for score in SCORES}
        rows.append({
            "recipe": recipe, "tasks": len(seeds), "pairs": sum(map(len, seeds.values())),
            "fewest_seeds": min(map(len, seeds.values())), "most_seeds": max(map(len, seeds.values())), **means,
            "error": 1 - means["accuracy"], "tuned_error": 1 - means["tuned_accuracy"],
            "ratio": (1 - means["tuned_accuracy"]) / (1 - means["accuracy"]), "more": float(more.mean()),
            "more_low": None if half is None else float(more.mean()) - half,
            "more_high": None if half is None else float(more.mean()) + half,
        })  # fmt: skip
    return rows


def render(summary: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], machine: dict[str, str]) -> str:
    not_run = [name for name in ORDER if name not in {row["recipe"] for row in summary}]
    return "\n".join([
        "# Quality",
        "",
        f"Written by `python -m benchmarks.quality` on {machine['device']}, float32: MobileNetV2 with ImageNet's weights, "
        "images of 112 px. Error is 1 - test accuracy. Seconds are of the CPU, features and validation included, on a machine "
        "shared with other programs. What each recipe is stands in `benchmarks/quality/peers.py`.",
        "",
        "## Each recipe beside `tuned`, over the tasks and seeds that both have run",
        "",
        "In each cell the recipe's mean / tuned's, every task counting alike. The last column is its error less tuned's, with the "
        "95 % interval over the tasks.",
        "",
        "| recipe | tasks | seeds of each | error | ratio | macro recall | log-loss | ECE | CPU s | its error less tuned's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(pair_row(pair) for pair in pairs),
        *(["", f"Not run, for want of time: {', '.join(not_run)}."] if not_run else []),
        "",
        "## Each task",
        "",
        "| task | train | recipe | seeds | accuracy | macro recall | log-loss | ECE | CPU s | oldest run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['task']} | {row['num_train']} | {row['recipe']} | {row['seeds']} | {row['accuracy']:.3f} | "
            f"{row['macro_recall']:.3f} | {row['log_loss']:.3f} | {row['ece']:.3f} | {row['cpu_seconds']:.0f} | {row['oldest']} |"
            for row in summary
        ),
        "",
    ])  # fmt: skip


def render_imbalance(runs: Sequence[dict[str, Any]]) -> str:
    """`tuned`, which lets all classes count alike, beside the same without class weights, where both were run."""
    own = {(run["recipe"], run["task"], run["seed"]): run for run in runs}
    tasks = dict.fromkeys(run["task"] for run in runs if run["recipe"] == "unweighted")
    rows = []
    for task, recipe in itertools.product(tasks, ("tuned", "unweighted")):
        shared = [
            seed for kind, name, seed in own if (kind, name) == ("unweighted", task) and ("tuned", task, seed) in own
        ]
        found = [own[recipe, task, seed] for seed in shared]
        scores = ("macro_recall", "accuracy", "accuracy_as_trained")
        means = " | ".join(f"{statistics.fmean(run[score] for run in found):.3f}" for score in scores) if found else ""
        rows += (
            [f"| {task} | {'balanced' if recipe == 'tuned' else 'none'} | {len(found)} | {means} |"] if found else []
        )
    return "\n".join([
        "## Classes that are uneven in training",
        "",
        "The last column weighs each class's recall by its share of the training images.",
        "",
        "| task | `tuned`'s class_weights | seeds | macro recall | test accuracy | accuracy, were the test as uneven |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]) if rows else ""  # fmt: skip


def pair_row(pair: dict[str, Any]) -> str:
    seeds = " to ".join(dict.fromkeys(str(pair[name]) for name in ("fewest_seeds", "most_seeds")))
    interval = "" if pair["more_low"] is None else f" ({pair['more_low']:+.3f} to {pair['more_high']:+.3f})"
    both = " | ".join(
        f"{pair[score]:.3f} / {pair[f'tuned_{score}']:.3f}" for score in ("macro_recall", "log_loss", "ece")
    )
    return (
        f"| {pair['recipe']} | {pair['tasks']} | {seeds} | {pair['error']:.3f} / {pair['tuned_error']:.3f} | "
        f"{pair['ratio']:.2f} | {both} | {pair['cpu_seconds']:.0f} / {pair['tuned_cpu_seconds']:.0f} | "
        f"{pair['more']:+.3f}{interval} |"
    )


def draw(path: Path, summary: Sequence[dict[str, Any]]) -> None:
    """A panel a task: error against CPU seconds, on a logarithmic axis, a point a recipe."""
    tasks = list(dict.fromkeys(row["task"] for row in summary))
    recipes = [name for name in ORDER if any(row["recipe"] == name for row in summary)]
    looks = dict(zip(recipes, zip(series_colors(recipes), "oDsv^P*Xh", strict=False), strict=True))
    columns = min(4, len(tasks))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3 * columns, 2.7 * -(-len(tasks) // columns) + 0.5), layout="constrained")
        panels = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            for row in (row for row in summary if row["task"] == task):
                color, marker = looks[row["recipe"]]
                axes.plot(row["cpu_seconds"], 1 - row["accuracy"], marker, color=color, label=row["recipe"])
            images = next(row["num_train"] for row in summary if row["task"] == task)
            axes.set(title=f"{task}: {images} images", xscale="log", xlim=(0.7 * SECONDS[0], 1.5 * SECONDS[-1]))
            axes.set_xticks(SECONDS, [str(seconds) for seconds in SECONDS])
            axes.minorticks_off()
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("CPU seconds to train")
        figure.supylabel("error on the test images")
        handles = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend([handles[name] for name in recipes], recipes, loc="outside upper center", ncols=len(recipes))
        figure.savefig(path, format="png", dpi=130)
