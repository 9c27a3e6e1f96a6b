"""Write what a search has found, and the best trial's test score, opened for it alone."""

import json
import threading
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from flows.overrides import plain
from flows.search import worker
from flows.search.space import Space
from flows.search.study import trials_of_all_values
from flows.sweep import experiments
from flows.sweep.plan import tested
from flows.sweep.table import column, describe, winner_line, words

OUTPUT = Path("artifacts/searches")


def write(project: Path, space: Space, study: optuna.Study, commit: str, threads: int) -> str:
    """Write table.json and table.md below artifacts/searches/<name>/ and return what a person wants to know first.

    Raises ExperimentFailed where the best trial's test does; the tables are there by then, without it.
    """
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    best = min(complete, key=lambda trial: _order(space, trial), default=None)
    winner: dict[str, Any] = {}
    table = _save(project, space, study, winner)
    if best is not None:
        chosen = worker.experiment(space, best.number, best.params, len(space.rungs) - 1)
        (evaluation,) = tested([chosen])
        metrics = experiments.finished(project, commit, [evaluation])
        if not metrics:
            experiments.run(project, evaluation, threading.Event(), commit=commit, threads=threads)
            metrics = experiments.finished(project, commit, [evaluation])
        winner = describe([chosen], list(metrics.values()))
        table = _save(project, space, study, winner)
    take = f"dvc exp apply {chosen.name}" if best is not None else "no trial reached the last rung"
    return f"{winner_line(winner)}\nall trials: {table.relative_to(project)}; take it over: {take}"


def _save(project: Path, space: Space, study: optuna.Study, winner: dict[str, Any]) -> Path:
    rows = [_row(space, trial) for trial in trials_of_all_values(study)]
    folder = project / OUTPUT / space.name
    folder.mkdir(parents=True, exist_ok=True)
    described = {"title": space.title, "ranked_by": space.score, "winner": winner, "rows": rows}
    (folder / "table.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(_markdown(space, rows, winner), encoding="utf-8")
    return folder / "table.md"


def _row(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    reports = trial.intermediate_values
    values = {column(key): value for key, value in trial.params.items()}
    state = trial.state.name.lower()
    error = {"error": trial.user_attrs["error"].splitlines()[0]} if "error" in trial.user_attrs else {}
    return {"trial": trial.number, **values, "rungs": len(reports), space.score: _last(trial), "state": state, **error}


def _last(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None


def _order(space: Space, trial: FrozenTrial) -> float:
    value = _last(trial)
    assert value is not None
    return value if space.direction == "minimize" else -value


def _markdown(space: Space, rows: list[dict[str, Any]], winner: dict[str, Any]) -> str:
    sign = 1 if space.direction == "minimize" else -1
    scored = [row for row in rows if row[space.score] is not None]
    ordered = sorted(scored, key=lambda row: (-row["rungs"], sign * row[space.score]))
    keys = [key for key in (rows[0] if rows else {}) if key not in ("error", space.score)]
    lines = [[*keys, words(space.score)], ["---"] * len(keys) + ["--:"]]
    lines += [[*(plain(row[key]) for key in keys), f"{row[space.score]:.4f}"] for row in ordered]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    counts = ", ".join(f"{sum(row['state'] == s for row in rows)} {s}" for s in ("complete", "pruned", "fail"))
    note = f"{len(rows)} trials ({counts}); ranked by {words(space.score)} at the highest rung that each reached."
    return f"# {space.title}\n\n{note}\n\n{table}\n\n{winner_line(winner)}\n"
