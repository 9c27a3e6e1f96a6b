"""Draw a sweep: its first score over what was varied, a line a series, a dot a seed."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.overrides import plain
from flows.sweep.plan import Experiment, Sweep
from flows.sweep.ranking import Metrics, values_of
from flows.sweep.table import mean_interval, words

STYLE: Any = {"svg.hashsalt": "sweep", "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
Group = list[Experiment]


def draw(sweep: Sweep, experiments: Sequence[Experiment], metrics: Metrics, caption: str, folder: Path) -> None:
    """Write figure.svg and figure.png: means with 95 % intervals, and dashed lines for points without an x."""
    score = sweep.scores[0]
    lines, across = _lines(sweep, experiments)
    ticks = list(dict.fromkeys(str(x) for line in lines.values() for x in line))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, line) in enumerate(lines.items()):
            shift = (number - (len(lines) - 1) / 2) * 0.08  # so that intervals do not cover each other
            _draw_line(axes, name, line, ticks, metrics, score, COLORS[number % len(COLORS)], shift)
        for name, group in across.items():
            if values := values_of(group, metrics, score):
                axes.axhline(fmean(values), color="#555555", linestyle="--", linewidth=1, label=name)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel=sweep.title, ylabel=f"{words(score)} (95 % interval over seeds)")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        if len(lines) + len(across) > 1:
            axes.legend(frameon=False, title=sweep.series and sweep.series.rpartition(".")[2])
        axes.set_title(textwrap.fill(caption.replace("*", ""), 100), fontsize=8, loc="left", color="#555555")
        figure.savefig(folder / "figure.svg", metadata={"Date": None})
        figure.savefig(folder / "figure.png", dpi=150)


def _lines(sweep: Sweep, experiments: Sequence[Experiment]) -> tuple[dict[str, dict[str, Group]], dict[str, Group]]:
    """Series name -> x -> its seeds, and point name -> its seeds for the points without an x."""
    lines: dict[str, dict[str, Group]] = {}
    across: dict[str, Group] = {}
    for experiment in experiments:
        point = experiment.point
        series = plain(point.get(sweep.series, "")) if sweep.series else ""
        if sweep.x in point:
            lines.setdefault(series, {}).setdefault(plain(point[sweep.x]), []).append(experiment)
        else:
            across.setdefault(str(point.get("name", series)), []).append(experiment)
    return lines, across


def _draw_line(
    axes: Axes,
    name: str,
    line: Mapping[str, Group],
    ticks: Sequence[str],
    metrics: Metrics,
    score: str,
    color: str,
    shift: float,
) -> None:
    seeds = {
        ticks.index(x) + shift: values for x, group in line.items() if (values := values_of(group, metrics, score))
    }
    axes.plot(
        list(seeds), [fmean(values) for values in seeds.values()], color=color, marker="o", markersize=5, label=name
    )
    for x, values in seeds.items():
        axes.plot([x] * len(values), values, ".", color=color, alpha=0.5, markersize=4)
        axes.vlines(x, *mean_interval(values, score), color=color, linewidth=1)
