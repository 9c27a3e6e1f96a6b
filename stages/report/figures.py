"""Draw the report's figures, as PNG, as SVG, and for the page in its own colours."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.shared.files import replacing
from stages.shared.plotting import GRID, INK, MUTED, SERIES, STYLE, series_colors

Rows = Sequence[Mapping[str, str]]  # of a CSV file

VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--series-{i + 1}" for i, c in enumerate(SERIES)}
FIGURE: dict[Any, Any] = STYLE | {
    "svg.fonttype": "none",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw_learning_curve(folder: Path, column: str, label: str, histories: Mapping[str, Rows]) -> Markup | None:
    """One line a recipe over its epochs, from history.csv's `column`; without recipes of no epochs, None if all are."""
    if not any(histories.values()):
        return None
    with matplotlib.rc_context(FIGURE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for color, (recipe, rows) in zip(series_colors(histories), histories.items(), strict=True):
            if not rows:
                continue
            epochs, values = [int(row["epoch"]) for row in rows], [float(row[column]) for row in rows]
            axes.plot(epochs, values, color=color, marker="o", markersize=4, linewidth=1.8, label=recipe)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
        ends = ", ".join(
            f"{recipe} ends at {float(rows[-1][column]):.3f}" for recipe, rows in histories.items() if rows
        )
        return _save(figure, folder, column.replace("_", "-"), f"{label.capitalize()} over epochs: {ends}")


def draw_roc(folder: Path, curves: Mapping[str, Rows], aucs: Mapping[str, float | None]) -> Markup:
    """One ROC curve a recipe; recipes without a curve are left out."""
    with matplotlib.rc_context(FIGURE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        for color, (recipe, rows) in zip(series_colors(curves), curves.items(), strict=True):
            if not rows:
                continue
            x, y = ([float(row[name]) for row in rows] for name in ("false_positive_rate", "true_positive_rate"))
            axes.plot(x, y, color=color, linewidth=1.8, label=f"{recipe}, area {aucs[recipe]:.3f}")
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.legend(loc="lower right")
        areas = ", ".join(f"{recipe} area {auc:.3f}" for recipe, auc in aucs.items() if auc is not None)
        return _save(figure, folder, "roc", f"ROC curves: {areas}")


def draw_calibration(folder: Path, curves: Mapping[str, Rows]) -> Markup:
    """Accuracy over mean confidence, bin by bin, with 95 % intervals; a larger dot is a fuller bin."""
    with matplotlib.rc_context(FIGURE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        for color, (recipe, rows) in zip(series_colors(curves), curves.items(), strict=True):
            names = ("confidence", "accuracy", "accuracy_low", "accuracy_high", "num_images")
            x, y, low, high, count = (np.array([float(row[name]) for row in rows]) for name in names)
            axes.vlines(x, low, high, color=color, linewidth=1.2, alpha=0.45)
            axes.scatter(x, y, s=12 + 110 * count / count.sum(), color=color, label=recipe, linewidths=0)
        axes.set(xlabel="confidence", ylabel="accuracy", aspect="equal", ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        axes.legend(loc="upper left", markerscale=0.8)
        return _save(figure, folder, "calibration", "Reliability diagram: accuracy over confidence, bin by bin")


def draw_confusion(folder: Path, recipe: str, rows: Rows, class_names: Sequence[str]) -> Markup:
    """Down: actual class; across: predicted class; from predictions.csv. Cells are shaded by their share of the row."""
    num_classes = len(class_names)
    table = np.zeros((num_classes, num_classes), np.int64)
    for row in rows:
        table[class_names.index(row["label"]), class_names.index(row["prediction"])] += 1
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = min(1.6 + 0.75 * num_classes, 9.0)
    with matplotlib.rc_context({**FIGURE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        # Vector cells of one colour and varying opacity: sharp when printed, and at home on a dark page.
        colormap = LinearSegmentedColormap.from_list("share", [(*_rgb(SERIES[0]), 0.05), (*_rgb(SERIES[0]), 0.75)])
        axes.pcolormesh(shares, cmap=colormap, vmin=0, vmax=1, edgecolors="none")
        if num_classes <= 12:
            for y, x in np.ndindex(table.shape):
                axes.text(x + 0.5, y + 0.5, f"{table[y, x]}\n{shares[y, x]:.0%}", ha="center", va="center", color=INK)
        _name_classes(axes, class_names)
        axes.set(xlabel="predicted", ylabel="actual", aspect="equal")
        axes.invert_yaxis()
        right = f"{int(np.trace(table))} of {int(table.sum())} on the diagonal"
        return _save(figure, folder, f"confusion-{recipe}", f"Confusion matrix of {recipe}: {right}")


def _save(figure: Figure, folder: Path, name: str, title: str) -> Markup:
    """Write name.png and name.svg, and return the SVG for the page. Equal numbers give equal bytes.

    `title` is what a screen reader says of the picture.
    """
    with replacing(folder / f"{name}.png") as part:
        figure.savefig(part, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": name}), replacing(folder / f"{name}.svg") as part:
        figure.savefig(
            part, format="svg", metadata={"Title": title, "Date": None, "Creator": None, "Type": None, "Format": None}
        )
    return inline_svg((folder / f"{name}.svg").read_text(encoding="utf-8"), name)


def inline_svg(svg: str, name: str) -> Markup:
    """matplotlib's SVG as an element of a page: no prolog, no fixed size, theme colours, ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return Markup(svg)  # safe: matplotlib has escaped every text


def _rgb(color: str) -> tuple[float, ...]:
    return matplotlib.colors.to_rgb(color)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    """Class names along both axes; of many classes only some."""
    shown = range(0, len(class_names), max(1, len(class_names) // 20))
    places, names = [index + 0.5 for index in shown], [_shortened(class_names[index]) for index in shown]
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right"} if len(names) > 2 and max(map(len, names)) > 4 else {}
    axes.set_xticks(places, names, **slanted)
    axes.set_yticks(places, names)


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
