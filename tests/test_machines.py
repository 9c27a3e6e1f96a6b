"""What the lead of a sweep does about the runs of other machines; test_sweep.py has real ones."""

import os
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled, State

from flows.sweep import machines
from flows.sweep.experiments import ExperimentFailed
from flows.sweep.plan import Experiment


def run_elsewhere(monkeypatch: pytest.MonkeyPatch, states: list[State[Any]], patience: float = 3600.0) -> list[Any]:
    """Wait for a run whose state is looked up again and again, the last for ever; returns what the server is told."""
    told: list[Any] = []
    looks = iter(states)
    client = SimpleNamespace(
        read_flow_run=lambda run: SimpleNamespace(state=next(looks, states[-1])),
        set_flow_run_state=lambda run, state, force: told.append((run, state.name, force)),
    )

    @contextmanager
    def get_client(sync_client: bool) -> Any:
        yield client

    monkeypatch.setattr(machines, "get_client", get_client)
    monkeypatch.setattr(machines, "run_deployment", lambda *_, **__: SimpleNamespace(id=7))
    monkeypatch.setattr(machines, "POLL", 0.001)
    monkeypatch.setattr(machines, "PATIENCE", patience)
    point = Experiment("point", {}, 0, "train", {}, "train")
    try:
        machines.run(point, threading.Event(), commit="c0ffee", threads=1, git_remote="hub")
    finally:
        told.append("left")
    return told


def test_a_run_whose_worker_died_is_given_up_so_that_it_can_be_tried_again(monkeypatch):
    with pytest.raises(ExperimentFailed, match="its worker did not end it") as failure:
        run_elsewhere(monkeypatch, [Running()], patience=0.01)
    assert failure.value.exit_code == os.EX_TEMPFAIL


def test_a_run_that_waits_for_its_turn_is_not_given_up(monkeypatch):
    queued = [Scheduled(), *[Pending()] * 50, Running(), Completed()]
    clock = iter(range(0, 10**9, 100))  # seconds; each look at it costs 100
    monkeypatch.setattr(machines.time, "monotonic", lambda: next(clock))
    assert run_elsewhere(monkeypatch, queued, patience=1000.0) == ["left"]


@pytest.mark.parametrize(
    ("state", "exit_code"),
    [(Failed(name=machines.PASSING), os.EX_TEMPFAIL), (Crashed(), os.EX_TEMPFAIL), (Failed(), 1)],
)
def test_a_fault_elsewhere_that_may_pass_is_told_apart(monkeypatch, state, exit_code):
    with pytest.raises(ExperimentFailed) as failure:
        run_elsewhere(monkeypatch, [state])
    assert failure.value.exit_code == exit_code


def test_a_stage_that_asks_to_be_tried_again_says_so_to_the_lead(monkeypatch, tmp_path):
    def fail(*_: Any, **__: Any) -> None:
        raise ExperimentFailed("point", os.EX_TEMPFAIL, "no network")

    monkeypatch.setattr(machines, "fetch_commit", lambda *_: None)
    monkeypatch.setattr(machines.experiments, "run", fail)
    state = machines.sweep_point.fn("point", "train", {}, "c0ffee", 1, "hub", root=str(tmp_path))
    assert (state.type, state.name) == (Failed().type, machines.PASSING)
