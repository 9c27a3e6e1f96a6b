"""Rank a sweep's points by validation scores, never by test."""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from flows.sweep.plan import Experiment

Metrics = Mapping[str, Mapping[str, Any]]  # of the experiments that are done, by name
LOWER_IS_BETTER = ("loss", "seconds")


def by_point(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """The experiments grouped by point, in the sweep's order; a group's members are its seeds."""
    points: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        points.setdefault(str(experiment.point), []).append(experiment)
    return list(points.values())


def ranked(experiments: Iterable[Experiment], metrics: Metrics, score: str) -> list[list[Experiment]]:
    """The points whose seeds all have the score, best mean first; equal ones stay in the sweep's order."""
    groups = [group for group in by_point(experiments) if len(values_of(group, metrics, score)) == len(group)]
    sign = 1 if score.endswith(LOWER_IS_BETTER) else -1
    return sorted(groups, key=lambda group: sign * fmean(values_of(group, metrics, score)))


def without_test(measured: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's metrics without those of the test split, which zero_shot measures beside the others."""
    return {
        key: value for key, value in measured.items() if re.match(r"(validation|train)_|seconds$|examples_per", key)
    }


def values_of(group: Sequence[Experiment], metrics: Metrics, score: str) -> list[float]:
    """The score of each seed that has it."""
    found = (metrics.get(experiment.name, {}).get(score) for experiment in group)
    return [float(value) for value in found if value is not None]
