"""flows/search: what a space may be, who works on which trial, and that kills lose none of them."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from flows import overrides
from flows.project import read_yaml
from flows.search import results, worker
from flows.search import study as studies
from flows.search.__main__ import parser
from flows.search.space import FOLDER, Space, load_space
from flows.sweep.experiments import ExperimentFailed
from tests import sweep_project
from tests.toy_project import dvc

ROOT = Path(__file__).parents[1]
SPACE = {
    "name": "toy",
    "title": "Toy",
    "recipe": "finetune",
    "search": {"recipe.lr": {"low": 0.001, "high": 1.0, "log": True}},
    "rungs": [{"recipe.epochs": 1}, {"recipe.epochs": 3}, {"recipe.epochs": 9}],
}


def space(**changes: Any) -> Space:
    return Space.model_validate(SPACE | changes)


def loss(chosen: dict[str, Any], rung: int) -> float:
    return abs(chosen["recipe.lr"] - 0.1) + 1 / (rung + 1)


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_a_ready_space_makes_valid_params(name: str) -> None:
    ready, base = load_space(name), read_yaml(ROOT / "params.yaml")
    points = [
        (f"{rung}", overrides.applied(base, ready.settings_of(corner, rung)))
        for corner in ready.corners()
        for rung in range(len(ready.rungs))
    ]
    overrides.validate(ROOT, points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {}}, "search: Dictionary should have at least 1 item"),
        ({"search": {"recipe.lr": {"low": 1, "high": 1}}}, "low 1 must be below high 1"),
        ({"search": {"recipe.lr": {"low": 0, "high": 1, "log": True}}}, "log needs low above 0"),
        ({"rungs": []}, "rungs: List should have at least 1 item"),
        ({"score": "test_accuracy"}, "score: String should match pattern"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_by_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(SPACE | changes))
    with pytest.raises(ValueError, match=message):
        load_space(str(tmp_path / "mine.yaml"))


def test_a_trials_settings_go_over_the_spaces_and_a_rungs_over_both() -> None:
    chosen = space(settings={"seed": 1, "recipe.epochs": 5})
    assert chosen.settings_of({"recipe.lr": 0.1}, 1) == {
        "seed": 1,
        "train.finetune.epochs": 3,
        "train.finetune.lr": 0.1,
    }


def test_the_promising_climb_and_the_others_are_given_up(tmp_path: Path) -> None:
    spent: list[tuple[int, int]] = []

    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        spent.append((number, rung))
        return loss(chosen, rung)

    study = studies.open_study(tmp_path, space(), seed=0)
    worker.work(study, space(), tmp_path, 30, score)
    states = [trial.state for trial in studies.trials_of_all_values(study)]
    assert len(states) == 30
    assert 1 <= states.count(TrialState.COMPLETE) < 15
    assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == 30
    assert sum(rung == 2 for _, rung in spent) < sum(rung == 0 for _, rung in spent) / 2
    assert abs(study.best_params["recipe.lr"] - 0.1) < 0.05


def test_the_recipes_own_values_are_tried_first_and_once(tmp_path: Path) -> None:
    own = space().own_values({"train": {"finetune": {"lr": 0.5}}})
    assert own == {"recipe.lr": 0.5}
    for seed in (0, 1):
        study = studies.open_study(tmp_path, space(), seed, own)
    worker.work(study, space(), tmp_path, 3, lambda number, chosen, rung: loss(chosen, rung))
    assert study.trials[0].params == own
    tried = studies.trials_of_all_values(study)
    assert [trial.params == own for trial in tried] == [True, False, False]
    assert all(trial.state.is_finished() for trial in study.trials)


@pytest.mark.parametrize("allowed", [{"low": 0.1, "high": 1.0}, [0.1, 1.0]])
def test_own_values_that_are_not_searched_are_not_tried(allowed: Any) -> None:
    assert space(search={"recipe.lr": allowed}).own_values({"train": {"finetune": {"lr": 0.05}}}) is None


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("values", [[0.1, 0.2], [[0.1, 1.0], [0.2, 1.0]]])
def test_what_was_trained_is_not_trained_again(tmp_path: Path, values: list[Any]) -> None:
    trained: list[tuple[str, int]] = []

    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        trained.append((str(chosen["recipe.crop_scale"]), rung))
        return float(values.index(chosen["recipe.crop_scale"])) + 1 / (rung + 1)

    of_two = space(search={"recipe.crop_scale": values})
    study = studies.open_study(tmp_path, of_two, seed=0)
    worker.work(study, of_two, tmp_path, 8, score)
    assert len(studies.trials_of_all_values(study)) == 2
    assert len(trained) == len(set(trained)) <= 6
    assert len(study.trials) < 20  # once both are tried nothing is drawn
    assert study.best_params == {"recipe.crop_scale": values[0]}


@pytest.mark.parametrize("best", range(4))
def test_the_best_climbs_whenever_it_was_tried_and_no_other_does(tmp_path: Path, best: int) -> None:
    climbed: list[int] = []

    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        climbed.extend([number] * (rung > 0))
        return chosen["recipe.lr"] if rung else abs(number - best)

    few = space(rungs=[{"recipe.epochs": 1}, {"recipe.epochs": 3}], reduction=4)
    study = studies.open_study(tmp_path, few, seed=0)
    worker.work(study, few, tmp_path, 4, score)
    (complete,) = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert complete.params == study.trials[best].params
    assert climbed == [complete.number]


def test_a_trial_is_taken_up_only_when_nobody_holds_it_and_where_it_was(tmp_path: Path) -> None:
    first, second = (studies.open_study(tmp_path, space(), seed=seed) for seed in (0, 1))
    with studies.claimed(first, space(), tmp_path, 1) as held:
        assert held is not None
        held.report(0.5, studies.step(space(), 0))
        with studies.claimed(second, space(), tmp_path, 1) as other:
            assert other is None
    rungs: list[int] = []
    worker.work(second, space(), tmp_path, 1, lambda number, chosen, rung: rungs.append(rung) or 0.1)
    assert rungs == [1, 2]
    (trial,) = studies.trials_of_all_values(second)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, first.trials[0].params)


def test_a_trial_whose_training_fails_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    def score(number: int, chosen: dict[str, Any], rung: int) -> float:
        if number == 0:
            raise ExperimentFailed("toy-t000-r0", 1, "the loss is nan")
        return 0.1

    study = studies.open_study(tmp_path, space(), seed=0)
    worker.work(study, space(), tmp_path, 2, score)
    first, second = studies.trials_of_all_values(study)
    assert first.state == TrialState.FAIL
    assert "the loss is nan" in first.user_attrs["error"]
    assert second.state == TrialState.COMPLETE


def test_a_failed_test_of_the_winner_leaves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ExperimentFailed("toy-t000-test", 1, "no space left")

    study = studies.open_study(tmp_path, space(), seed=0)
    worker.work(study, space(), tmp_path, 4, lambda number, chosen, rung: loss(chosen, rung))
    monkeypatch.setattr(results.experiments, "finished", lambda *_: {})
    monkeypatch.setattr(results.experiments, "run", fail)
    with pytest.raises(ExperimentFailed, match="no space left"):
        results.write(tmp_path, space(), study, "0" * 40, threads=1)
    assert "4 trials" in (tmp_path / results.OUTPUT / space().name / "table.md").read_text()


def test_a_line_that_a_power_cut_tore_is_dropped(tmp_path: Path) -> None:
    worker.work(studies.open_study(tmp_path, space(), seed=0), space(), tmp_path, 3, lambda *_: 0.1)
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"op_code": 5, "trial')
    again = studies.open_study(tmp_path, space(), seed=0)
    worker.work(again, space(), tmp_path, 4, lambda *_: 0.1)
    assert len(studies.trials_of_all_values(again)) == 4
    assert TrialState.FAIL not in [trial.state for trial in studies.trials_of_all_values(again)]


WORKER = """
import json, sys, time
from pathlib import Path
from flows.search import study as studies, worker
from flows.search.__main__ import parser
from flows.search.space import Space
folder, trials, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
space = Space.model_validate(json.loads(sys.argv[4]))
def score(number, chosen, rung):
    time.sleep(0.03)
    return abs(chosen["recipe.lr"] - 0.1) + 1 / (rung + 1)
worker.work(studies.open_study(folder, space, seed), space, folder, trials, score)
"""


@pytest.mark.parametrize(
    ("num_trials", "num_workers", "num_kills"), [(12, 2, 4), pytest.param(100, 4, 40, marks=pytest.mark.slow)]
)
def test_no_trial_is_lost_to_kills(tmp_path: Path, num_trials: int, num_workers: int, num_kills: int) -> None:
    generator = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(seed: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(num_trials), str(seed), json.dumps(SPACE)]
        return subprocess.Popen(command, env=environment)

    workers, kills, seed = [start(n) for n in range(num_workers)], 0, num_workers
    while workers:
        if kills < num_kills and (tmp_path / "journal.jsonl").exists():
            time.sleep(generator.uniform(0, 0.3))
            victim = generator.choice(workers)
            victim.kill()
            kills += victim.wait() == -9
        for process in [process for process in workers if process.poll() is not None]:
            workers.remove(process)
            if process.returncode != 0:
                workers.append(start(seed))
                seed += 1
        time.sleep(0.01)
    study = studies.open_study(tmp_path, space(), seed=0)
    trials = study.trials
    assert kills > 0
    assert len(studies.trials_of_all_values(study)) == num_trials
    for trial in trials:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        for rung, value in enumerate(trial.intermediate_values.values()):
            assert value == pytest.approx(loss(trial.params, rung))


def test_the_command_searches_by_validation_and_tests_the_winner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("SWEEP_NOTES", str(notes))
    toy = sweep_project.create(tmp_path / "toy")
    mine = SPACE | {"rungs": [{"width": 3}, {"width": 4}], "reduction": 2}
    (tmp_path / "mine.yaml").write_text(json.dumps(mine))
    command = [sys.executable, "-m", "flows.search", str(tmp_path / "mine.yaml"), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def search(trials: int) -> str:
        told = subprocess.run(
            [*command, "--trials", str(trials)], cwd=toy, env=environment, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        return told.stdout

    assert "Winner by validation" in search(2)
    rows = json.loads((toy / "artifacts/searches/toy/table.json").read_text())["rows"]
    assert [(row["lr"] == 0.1, row["rungs"]) for row in rows] == [(True, 2), (False, 1)]  # its own first
    trained = len((notes / "trained").read_text().splitlines())
    assert len((notes / "evaluated").read_text().splitlines()) == 1
    search(2)  # nothing is left to do
    assert len((notes / "trained").read_text().splitlines()) == trained
    names = dvc(toy, "exp", "list", "--name-only").split()
    assert sum(name.endswith("-tested") for name in names) == 1


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--trials", "-1"], ["--workers", "two"]])
def test_a_number_that_is_none_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["finetune", *wrong])
    assert f"argument {wrong[0]}: '{wrong[1]}' is not a whole number from 1" in capsys.readouterr().err
