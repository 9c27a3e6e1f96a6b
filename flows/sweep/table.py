"""A sweep's table: for each point the mean of every score over the seeds, with its 95 % interval."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from flows.sweep.plan import Experiment, Settings, plain

WITHIN_ONE = ("accuracy", "roc_auc", "f1")  # scores that end so are at most 1; none is below 0


def summarize(
    experiments: Iterable[Experiment], metrics: Mapping[str, Mapping[str, Any]], scores: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a point, in the sweep's order: what it sets, how many seeds it has, `<score>`, `<score>_low`, `<score>_high`.

    `metrics` are those of the experiments that finished, by name; a score that no seed of a point has is None.
    """
    points: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        points.setdefault(str(experiment.point), []).append(experiment)
    return [
        {
            **{
                column(key): plain(value) if isinstance(value, dict) else value for key, value in group[0].point.items()
            },
            "seeds": sum(experiment.name in metrics for experiment in group),
            **{k: v for score in scores for k, v in _with_interval(score, values_of(group, metrics, score)).items()},
        }
        for group in points.values()
    ]


def values_of(group: Iterable[Experiment], metrics: Mapping[str, Mapping[str, Any]], score: str) -> list[float]:
    """The score of each seed that has it."""
    found = (metrics.get(experiment.name, {}).get(score) for experiment in group)
    return [float(value) for value in found if value is not None]


def mean_interval(values: Sequence[float], score: str) -> tuple[float, float]:
    """The mean's 95 % interval by Student's t, within what the score can be; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    high = fmean(values) + half
    return max(fmean(values) - half, 0.0), min(high, 1.0) if score.endswith(WITHIN_ONE) else high


def column(key: str) -> str:
    """A key's last part: `freeze` for `recipe.freeze`."""
    return key.rpartition(".")[2]


def as_markdown(title: str, rows: Sequence[Settings], scores: Sequence[str]) -> str:
    """Scores as `0.912 (0.887 to 0.937)`; the interval is left out where there is one seed."""
    shown = list(dict.fromkeys(key for row in rows for key in row if not key.startswith(tuple(scores))))
    lines = [[*shown, *scores], ["---"] * len(shown) + ["--:"] * len(scores)]
    lines += [[*(plain(row.get(key, "")) for key in shown), *(_cell(row, score) for score in scores)] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# {title}\n\nMean over the seeds (95 % interval, Student's t).\n\n{table}\n"


def as_csv(rows: Sequence[Settings]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(row: Settings, score: str) -> str:
    if row[score] is None:
        return "–"
    mean, low, high = (row[f"{score}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{mean:.3f}" if low is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _with_interval(score: str, values: Sequence[float]) -> dict[str, float | None]:
    mean, (low, high) = fmean(values) if values else math.nan, mean_interval(values, score)
    keys = (score, f"{score}_low", f"{score}_high")
    return {key: None if math.isnan(value) else value for key, value in zip(keys, (mean, low, high), strict=True)}
