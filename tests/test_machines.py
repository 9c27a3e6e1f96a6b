"""What the lead of a sweep does about the runs of other machines; test_sweep.py has real ones."""

import os
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from prefect.states import Running

from flows.sweep import machines
from flows.sweep.experiments import ExperimentFailed
from flows.sweep.plan import Experiment


def test_a_run_whose_worker_died_is_given_up_so_that_it_can_be_tried_again(monkeypatch):
    told = []
    client = SimpleNamespace(
        read_flow_run=lambda run: SimpleNamespace(state=Running()),
        set_flow_run_state=lambda run, state, force: told.append((run, state.name, force)),
    )

    @contextmanager
    def get_client(sync_client):
        yield client

    monkeypatch.setattr(machines, "get_client", get_client)
    monkeypatch.setattr(machines, "run_deployment", lambda *_, **__: SimpleNamespace(id=7))
    monkeypatch.setattr(machines, "POLL", 0.001)
    monkeypatch.setattr(machines, "PATIENCE", 0.01)
    with pytest.raises(ExperimentFailed, match="its worker did not end it") as failure:
        machines.run(
            Experiment("point", {}, 0, "train", ()), threading.Event(), commit="c0ffee", threads=1, git_remote="hub"
        )
    assert failure.value.exit_code == os.EX_TEMPFAIL
    assert told == [(7, "Crashed", True)]
