"""Draw comparison.png: validation and test accuracy, and how each recipe learnt."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.shared.plotting import INK, MUTED, STYLE, series_colors

PICTURE: dict[Any, Any] = STYLE | {
    "font.family": ["DejaVu Sans"],
    "axes.edgecolor": "#b6bcc4",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "figure.constrained_layout.w_pad": 0.12,  # inches
    "figure.constrained_layout.h_pad": 0.12,
}


def draw_comparison(path: Path, entries: Sequence[Mapping[str, Any]], histories: Mapping[str, Path]) -> None:
    """Write a PNG; no two runs over the same numbers differ in a byte."""
    with matplotlib.rc_context(PICTURE):
        figure = Figure(figsize=(12, 3.2 + 0.4 * len(entries)), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        _draw_accuracies(left, entries)
        for color, (recipe, history) in zip(series_colors(histories), histories.items(), strict=True):
            rows = _read(history)
            epochs = [int(row["epoch"]) for row in rows]
            for axes, column in ((middle, "train_loss"), (right, "train_accuracy")):
                values = [float(row[column]) for row in rows]
                axes.plot(epochs, values, color=color, marker="o", markersize=4, linewidth=1.8, label=recipe)
        _finish_curves(middle, "Training loss")
        _finish_curves(right, "Training accuracy")
        right.legend(loc="lower right")
        # The file's own fields carry no date and no version, so equal numbers give equal bytes.
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def _draw_accuracies(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """A row a recipe: a filled mark for test, a hollow one just below it for validation, a diamond for the published."""
    for row, (entry, color) in enumerate(zip(entries, series_colors(entries), strict=True)):
        _draw_score(axes, entry, "test_accuracy", row, color, label="test" if row == 0 else None)
        if entry["validation_accuracy"] is not None:
            is_first = "validation" not in axes.get_legend_handles_labels()[1]
            _draw_score(axes, entry, "validation_accuracy", row + 0.28, color, label="validation" if is_first else None)
        if entry["published"]:
            published, caption = entry["published"]["test_accuracy"], entry["published"]["caption"]
            label = None if caption in axes.get_legend_handles_labels()[1] else caption
            axes.plot([published], [row], "D", color=MUTED, markerfacecolor="white", markersize=7, label=label)
    axes.set_yticks(range(len(entries)), [entry["recipe"] for entry in entries], color=INK)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlim(right=1.0)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"Accuracy, 95 % interval (test: {entries[0]['num_test_images']} images)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)


def _draw_score(
    axes: Axes, entry: Mapping[str, Any], key: str, height: float, color: str, *, label: str | None
) -> None:
    value, low, high = (entry[f"{key}{end}"] for end in ("", "_low", "_high"))
    is_test = key == "test_accuracy"
    if low is not None:
        axes.plot(
            [low, high], [height] * 2, color=color, linewidth=7 if is_test else 3, alpha=0.28, solid_capstyle="round"
        )
    face = color if is_test else "white"
    axes.plot([value], [height], "o", color=color, markerfacecolor=face, markersize=9 if is_test else 7, label=label)
    if is_test:
        axes.annotate(f"{value:.3f}", (value, height), (0, 10), textcoords="offset points", ha="center", weight="bold")


def _finish_curves(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
