"""Write a sweep's table: each point's rank, and its mean scores with 95 % intervals."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from flows.overrides import Settings, plain
from flows.sweep.plan import Experiment
from flows.sweep.ranking import Metrics, by_point, ranked, values_of

TEST_SCORES = ("test_accuracy", "test_loss")  # shown of the winner, never ranked by
WITHIN_ONE = ("accuracy", "roc_auc", "f1")  # scores that end so are at most 1; none is below 0


def summarize(experiments: Sequence[Experiment], metrics: Metrics, scores: Sequence[str]) -> list[dict[str, Any]]:
    """One row a point, in the sweep's order: what it sets, how many seeds it has, `<score>`, `<score>_low`, `<score>_high`.

    `metrics` are those of the experiments that finished, by name; a score that no seed of a point has is None. The rank is by
    the first score; a point that lacks a seed has none.
    """
    ranks = {group[0].name: rank for rank, group in enumerate(ranked(experiments, metrics, scores[0]), start=1)}
    return [
        {
            **{
                column(key): plain(value) if isinstance(value, dict) else value for key, value in group[0].point.items()
            },
            "rank": ranks.get(group[0].name),
            "seeds": sum(experiment.name in metrics for experiment in group),
            **{k: v for score in scores for k, v in _with_interval(score, values_of(group, metrics, score)).items()},
        }
        for group in by_point(experiments)
    ]


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


def as_markdown(described: Mapping[str, Any], scores: Sequence[str]) -> str:
    """table.json as text: `0.912 (0.887 to 0.937)`, the interval left out where there is one seed."""
    note = f"Ranked by {words(scores[0])}. Mean over the seeds (95 % interval, Student's t)."
    parts = [f"# {described['title']}", note, _table(described["rows"], scores)]
    if described["finals"]:
        parts += ["The best of them in the second round:", _table(described["finals"], scores)]
    return "\n\n".join([*parts, winner_line(described["winner"])]) + "\n"


def words(score: str) -> str:
    """A score as people say it: `validation log-loss`."""
    return score.replace("_loss", "_log-loss").replace("_", " ")


def describe(winner: Sequence[Experiment], tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The winner: its point, and the mean of each test score over its seeds; empty where no point is complete."""
    if not winner:
        return {}
    found = {key: [float(test[key]) for test in tests if test.get(key) is not None] for key in TEST_SCORES}
    point = {column(key): plain(value) for key, value in winner[0].point.items()}
    means = {k: v for key in TEST_SCORES if found[key] for k, v in _with_interval(key, found[key]).items()}
    return {"point": point, "seeds": len(tests), **means}


def winner_line(winner: Mapping[str, Any]) -> str:
    """The one place where a sweep shows test scores: those of the point that validation has chosen."""
    if not winner:
        return "No point is complete yet, so none is the winner."
    name = ", ".join(f"{key} {value}" for key, value in winner["point"].items())
    scores = [f"{words(key)} {_cell(winner, key)}" for key in TEST_SCORES if key in winner]
    return (
        f"Winner by validation: **{name}**. On the test split, opened for it alone: {', '.join(scores) or 'not run'}."
    )


def _table(rows: Sequence[Settings], scores: Sequence[str]) -> str:
    shown = list(dict.fromkeys(key for row in rows for key in row if not key.startswith(tuple(scores))))
    lines = [[*shown, *map(words, scores)], ["---"] * len(shown) + ["--:"] * len(scores)]
    for row in rows:
        point = ("–" if row.get(key, "") is None else plain(row.get(key, "")) for key in shown)
        lines.append([*point, *(_cell(row, score) for score in scores)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_csv(rows: Sequence[Settings]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(row: Mapping[str, Any], score: str) -> str:
    if row[score] is None:
        return "–"
    mean, low, high = (row[f"{score}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{mean:.3f}" if low is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _with_interval(score: str, values: Sequence[float]) -> dict[str, float | None]:
    mean, (low, high) = fmean(values) if values else math.nan, mean_interval(values, score)
    keys = (score, f"{score}_low", f"{score}_high")
    return {key: None if math.isnan(value) else value for key, value in zip(keys, (mean, low, high), strict=True)}
