"""Keep a search's trials in a journal file that several workers share, and lose none of them to a kill.

A trial is given up after a rung unless it is among the best there. Where it comes to be among them later, as worse ones are
tried or the search ends, its values get a second trial, which goes on from the scores of the first.

A worker holds a lock on each trial it is at; the kernel frees it with the process. A trial that is unfinished and held by
nobody was left by a worker that died: the next one to look takes it up where its last report was.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from flows.overrides import Settings
from flows.search.space import Range, Space

DRAWS = 50  # of a sampler that takes the same few values again and again
REPEATS = "repeats"  # a drawn trial's mark: its values had been tried
Score = Callable[[int, dict[str, Any], int], float]  # trial number, its values, rung -> score


class KernelLock:
    """Serialises access to the journal; unlike Optuna's own lock files it does not outlive a killed worker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] | None = None

    def acquire(self) -> bool:
        self.file = self.path.open("a")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        if self.file:
            self.file.close()


def open_study(folder: Path, space: Space, seed: int, first: Settings | None = None) -> optuna.Study:
    """The search's study, made where it is missing, with `first` as its first trial. `seed`: of the sampler; each worker has its own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "journal.jsonl"
    with _locked(folder / "journal.lock"):
        _drop_torn_line(journal)
    lock: Any = KernelLock(folder / "journal.lock")
    storage = JournalStorage(JournalFileBackend(str(journal), lock))
    with _locked(folder / "create.lock"):  # two workers at once would both find it missing
        study = optuna.create_study(
            study_name=space.name,
            storage=storage,
            direction=space.direction,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        )
        if first and not study.get_trials(deepcopy=False):
            study.enqueue_trial(first)
        return study


@contextlib.contextmanager
def claimed(study: optuna.Study, space: Space, folder: Path, num_trials: int) -> Iterator[Trial | None]:
    """Hold an unfinished trial that no worker holds, or else a new one, `num_trials` at most, or else one that goes on.

    Yields None where there is none of these.
    """
    with contextlib.ExitStack() as held:
        with _locked(folder / "claim.lock"):
            trial = _abandoned(study, folder, held)
            trial = trial or _new(study, space, folder, held, num_trials) or _second(study, space, folder, held)
            if trial:
                suggest(trial, space)
        yield trial


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """The trial's values, the same ones whenever it is asked."""
    return {key: _suggest(trial, key, allowed) for key, allowed in space.search.items()}


def known_scores(study: optuna.Study, chosen: dict[str, Any]) -> dict[int, float]:
    """Step -> score, as any trial of the values `chosen` has reported it."""
    alike = [trial for trial in study.get_trials(deepcopy=False) if trial.params == chosen]
    return {at: value for trial in alike for at, value in trial.intermediate_values.items()}


def trials_of_all_values(study: optuna.Study) -> list[FrozenTrial]:
    """The last trial of each set of values that was tried: it has all of their scores."""
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    kept = [trial for trial in begun if REPEATS not in trial.user_attrs]
    return list({repr(trial.params): trial for trial in kept}.values())  # a value may be a list


def is_promising(study: optuna.Study, space: Space, chosen: dict[str, Any], rung: int) -> bool:
    """True where `chosen` is among the best of a rung, of which there are enough to compare it with."""
    at = step(space, rung)
    num_scores = sum(at in trial.intermediate_values for trial in trials_of_all_values(study))
    return num_scores >= space.reduction and chosen in best_of(study, space, rung)


def best_of(study: optuna.Study, space: Space, rung: int) -> list[dict[str, Any]]:
    """The values whose scores at a rung are the best 1 / reduction, one at least, the best first."""
    at, largest_first = step(space, rung), space.direction == "maximize"
    scored = [trial for trial in trials_of_all_values(study) if at in trial.intermediate_values]
    scored.sort(key=lambda trial: trial.intermediate_values[at], reverse=largest_first)
    return [trial.params for trial in scored[: max(1, len(scored) // space.reduction)]]


def step(space: Space, rung: int) -> int:
    """The study's step of a rung, as if each were `reduction` times as long as the one before."""
    return int(space.reduction**rung)


def _abandoned(study: optuna.Study, folder: Path, held: contextlib.ExitStack) -> Trial | None:
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _hold(folder, frozen.number, held):
            return Trial(study, frozen._trial_id)  # Optuna has no public way to go on with a trial of another process
    return None


def _new(study: optuna.Study, space: Space, folder: Path, held: contextlib.ExitStack, num_trials: int) -> Trial | None:
    """A trial of values that no trial has had; None where there are enough, or the sampler has no others."""
    tried = [trial.params for trial in trials_of_all_values(study)]
    for _ in range(DRAWS if len(tried) < min(num_trials, space.num_settings) else 0):
        trial = study.ask()
        if suggest(trial, space) not in tried:
            assert _hold(folder, trial.number, held)
            return trial
        trial.set_user_attr(REPEATS, True)
        study.tell(trial, state=TrialState.FAIL)  # which the sampler does not learn from
    return None


def _second(study: optuna.Study, space: Space, folder: Path, held: contextlib.ExitStack) -> Trial | None:
    """A trial of values that are among the best of a rung and were given up there."""
    trials = trials_of_all_values(study)
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # left by a worker that died here
        given_up = [
            values
            for rung in reversed(range(len(space.rungs) - 1))
            for values in best_of(study, space, rung)
            if step(space, rung + 1) not in known_scores(study, values)
            and next(trial.state for trial in trials if trial.params == values) == TrialState.PRUNED
        ]
        if not given_up:
            return None
        study.enqueue_trial(given_up[0])
    trial = study.ask()
    assert _hold(folder, trial.number, held)
    return trial


def _hold(folder: Path, number: int, held: contextlib.ExitStack) -> bool:
    file = (folder / f"trial-{number}.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    held.callback(file.close)
    return True


def _suggest(trial: Trial, key: str, allowed: Range | list[Any]) -> Any:
    if isinstance(allowed, list):
        return trial.suggest_categorical(key, allowed)
    if isinstance(allowed.low, int) and isinstance(allowed.high, int):
        return trial.suggest_int(key, allowed.low, allowed.high, log=allowed.log)
    return trial.suggest_float(key, allowed.low, allowed.high, log=allowed.log)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _drop_torn_line(journal: Path) -> None:
    """A power cut in the middle of an append leaves a line without an end, which the next append would run into."""
    if journal.exists() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
