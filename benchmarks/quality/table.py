"""The runs as quality.json, a table a task, and a picture of error against seconds."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.quality.peers import NOT_RUN
from stages.shared.files import replacing, write_json, write_text
from stages.shared.reproducibility import choose_device, describe_machine

RESULTS = Path(__file__).parents[1] / "results"
SCORES = ("accuracy", "macro_recall", "log_loss", "ece", "cpu_seconds", "wall_seconds")


def write_results(runs: Sequence[dict[str, Any]]) -> str:
    """Write quality.json, quality.md and quality.png to benchmarks/results; returns the Markdown."""
    summary, pairs = summarize(runs), compare_to_tuned(runs)
    machine = describe_machine(choose_device("cpu"))
    write_json(
        RESULTS / "quality.json",
        {
            "machine": machine,
            "threads": 1,
            "summary": summary,
            "against_tuned": pairs,
            "not_run": NOT_RUN,
            "runs": [*runs],
        },
    )
    text = render(summary, pairs, machine)
    write_text(RESULTS / "quality.md", text)
    with replacing(RESULTS / "quality.png") as part:
        draw(part, summary)
    return text


def summarize(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of each (task, recipe) over its seeds."""
    pairs = dict.fromkeys((run["task"], run["recipe"]) for run in runs)
    rows = []
    for task, recipe in pairs:
        own = [run for run in runs if (run["task"], run["recipe"]) == (task, recipe)]
        means = {score: statistics.fmean(run[score] for run in own) for score in SCORES}
        rows.append({"task": task, "recipe": recipe, "seeds": len(own), "num_train": own[0]["num_train"], **means})
    return rows


def compare_to_tuned(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each other recipe's error less tuned's, over the (task, seed) pairs that both have run; 95 % by Student's t."""
    errors = {(run["recipe"], run["task"], run["seed"]): 1 - run["accuracy"] for run in runs}
    rows = []
    for recipe in dict.fromkeys(run["recipe"] for run in runs if run["recipe"] != "tuned"):
        shared = [key[1:] for key in errors if key[0] == recipe and ("tuned", *key[1:]) in errors]
        if not shared:
            continue
        own, tuned = (np.array([errors[name, *key] for key in shared]) for name in (recipe, "tuned"))
        more = own - tuned
        half = stats.t.ppf(0.975, len(more) - 1) * stats.sem(more) if len(more) > 1 else float("nan")
        rows.append({
            "recipe": recipe, "pairs": len(shared), "error": float(own.mean()), "tuned_error": float(tuned.mean()),
            "ratio": float(tuned.mean() / own.mean()), "more": float(more.mean()),
            "more_low": None if np.isnan(half) else float(more.mean() - half),
            "more_high": None if np.isnan(half) else float(more.mean() + half),
        })  # fmt: skip
    return rows


def render(summary: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], machine: dict[str, str]) -> str:
    lines = [
        "# Quality",
        "",
        f"Written by `python -m benchmarks.quality` on {machine['device']}, one thread. MobileNetV2, 112 px. Seconds are of the "
        "CPU, features and validation included.",
        "",
        "| task | train | recipe | seeds | accuracy | macro recall | log-loss | ECE | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['task']} | {row['num_train']} | {row['recipe']} | {row['seeds']} | {row['accuracy']:.3f} | "
        f"{row['macro_recall']:.3f} | {row['log_loss']:.3f} | {row['ece']:.3f} | {row['cpu_seconds']:.0f} |"
        for row in sorted(summary, key=lambda row: (row["num_train"], row["task"]))
    ]
    lines += [
        "",
        "Against `tuned`, on the same tasks and seeds:",
        "",
        "| recipe | pairs | its error | tuned's | tuned's / its | its less tuned's (95 %) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pair in pairs:
        low, high = pair["more_low"], pair["more_high"]
        interval = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {pair['recipe']} | {pair['pairs']} | {pair['error']:.3f} | {pair['tuned_error']:.3f} | {pair['ratio']:.2f} | "
            f"{pair['more']:+.3f}{interval} |"
        )
    lines += ["", *(f"Not run: {name}: {why}." for name, why in NOT_RUN.items()), ""]
    return "\n".join(lines)


def draw(path: Path, summary: Sequence[dict[str, Any]]) -> None:
    """A panel a task: error against CPU seconds, a point a recipe."""
    tasks = list(dict.fromkeys(row["task"] for row in sorted(summary, key=lambda row: row["num_train"])))
    figure = Figure(figsize=(3.2 * len(tasks), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(tasks)))
    for axes, task in zip(panels, tasks, strict=True):
        for row in (row for row in summary if row["task"] == task):
            axes.plot(row["cpu_seconds"], 1 - row["accuracy"], "o")
            axes.annotate(row["recipe"], (row["cpu_seconds"], 1 - row["accuracy"]), fontsize=8)
        axes.set(title=task, xlabel="CPU seconds", xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("error")
    figure.savefig(path, format="png", dpi=150)
