"""Summarise an experiment in the one small file of numbers that DVC compares."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.report.runs import Run
from stages.shared.files import read_json

VALIDATION = ("validation_accuracy", "validation_loss")
TEST = {"test_accuracy": "test_accuracy", "test_loss": "test_loss", "roc_auc": "roc_auc", "test_ece": "ece"}


def summarize(runs: Sequence[Run], parity: Path) -> dict[str, dict[str, float]]:
    """Per recipe its validation and test scores and its speed; of parity.json's rows, how many had which verdict."""
    rows: Sequence[Mapping[str, Any]] = read_json(parity)["rows"] if parity.exists() else []
    summary: dict[str, dict[str, float]] = {}
    for run in runs:
        scores = {key: run.trained.get(key) for key in VALIDATION}
        scores |= {key: run.tested.get(name) for key, name in TEST.items()}
        speed = run.trained["examples_per_second"]
        scores["examples_per_second"] = None if speed is None else round(speed, 1)
        summary[run.recipe] = {key: value for key, value in scores.items() if value is not None}
    verdicts = Counter(str(row["verdict"]).partition(":")[0].replace(" ", "_") for row in rows)
    return summary | {"parity": {verdict: verdicts[verdict] for verdict in ("passed", "failed", "not_run")}}
