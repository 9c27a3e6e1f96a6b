"""Work on a search's trials until all are done, as one process of several.

`python -m flows.search.worker ARGUMENTS` (as JSON). A trial climbs the rungs: at each it is trained with that rung's settings, as a DVC experiment, and reports its validation
score; it is given up where others did better with as much.
"""

import json
import math
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from flows.project import TRANSIENT
from flows.search import study as studies
from flows.search.space import Space, load_space
from flows.search.study import Score
from flows.sweep import experiments
from flows.sweep.experiments import ExperimentFailed
from flows.sweep.plan import Experiment

ATTEMPTS = 3  # at an experiment whose stage asks to be tried again


def main(arguments: str) -> None:
    given: dict[str, Any] = json.loads(arguments)
    project, folder, space = Path.cwd(), Path(given["folder"]), load_space(given["space"])
    space = space.model_copy(update={"settings": {**space.settings, **given["settings"]}})
    study = studies.open_study(folder, space, given["seed"], given["first"])

    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        return run(project, experiment(space, number, chosen, rung), space, given["commit"], given["threads"])

    work(study, space, folder, given["trials"], score)


def work(study: optuna.Study, space: Space, folder: Path, num_trials: int, score: Score) -> None:
    """Take up one trial after another until `num_trials` are finished or held by other workers."""
    while True:
        with studies.claimed(study, space, folder, num_trials) as trial:
            if trial is None:
                return
            climb(study, trial, space, score)


def climb(study: optuna.Study, trial: Trial, space: Space, score: Score) -> None:
    """Train the trial rung by rung where no trial of its values was, and tell the study how it ended."""
    chosen = studies.suggest(trial, space)
    known, own = studies.known_scores(study, chosen), study.trials[trial.number].intermediate_values
    for rung in range(len(space.rungs)):
        at = studies.step(space, rung)
        value = known.get(at)
        if value is None:
            try:
                value = score(trial.number, chosen, rung)
            except ExperimentFailed as error:
                trial.set_user_attr("error", str(error))
                value = math.nan
            if math.isnan(value):  # a loss that diverged, or a combination that the stage refuses
                study.tell(trial, state=TrialState.FAIL)
                return
        if at not in own:
            trial.report(value, at)
        goes_on = at in known and at not in own  # a second trial
        if rung < len(space.rungs) - 1 and not (goes_on or studies.is_promising(study, space, chosen, rung)):
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, value)


def experiment(space: Space, number: int, chosen: dict[str, Any], rung: int) -> Experiment:
    """The DVC experiment of a trial at a rung."""
    target = f"train@{space.recipe}"
    name = f"{space.name}-{space.digest}-t{number:03d}-r{rung}"
    return Experiment(name, dict(chosen), 0, target, space.settings_of(chosen, rung), scored=target)


def run(project: Path, planned: Experiment, space: Space, commit: str, threads: int) -> float:
    """The experiment's validation score; one that is there already is not run again. Raises ExperimentFailed."""
    found = experiments.finished(project, commit, [planned])
    for attempt in range(1, ATTEMPTS + 1):
        if found:
            break
        try:
            experiments.run(project, planned, threading.Event(), commit=commit, threads=threads)
        except ExperimentFailed as error:
            if error.exit_code != TRANSIENT or attempt == ATTEMPTS:
                raise
        found = experiments.finished(project, commit, [planned])
    score = found.get(planned.name, {}).get(space.score)
    if score is None:
        raise ExperimentFailed(planned.name, 1, f"{planned.metrics} has no {space.score}: set the recipe's validation")
    return float(score)


if __name__ == "__main__":
    main(sys.argv[1])
