"""A contestant's process answers, fails with its reason, and starts again. Imports little: every process imports it too."""

import os

import pytest

from benchmarks.process import ContestantProcess


def make_runs(factor: int) -> dict:
    def fail() -> float:
        raise ValueError("no such luck")

    return {"double": lambda: 2 * factor, "process": os.getpid, "fail": fail, "die": lambda: os._exit(3)}


def make_nothing() -> dict:
    raise ModuleNotFoundError("no module named peer")


def test_a_contestant_runs_in_a_process_of_its_own():
    with ContestantProcess(make_runs, 21) as contestant:
        assert contestant.run("double")() == 42
        assert contestant.run("process")() != os.getpid()
        process = contestant.process
    assert process is not None
    assert process.exitcode == 0


def test_a_contestant_that_fails_says_why_and_starts_again():
    with ContestantProcess(make_runs, 21) as contestant:
        first = contestant.run("process")()
        with pytest.raises(RuntimeError, match="fail: ValueError: no such luck"):
            contestant.run("fail")()
        with pytest.raises(RuntimeError, match="die: the process ended"):
            contestant.run("die")()
        assert contestant.run("double")() == 42
        assert contestant.run("process")() != first


def test_a_contestant_that_cannot_be_made_says_why():
    with (
        ContestantProcess(make_nothing) as contestant,
        pytest.raises(RuntimeError, match="ModuleNotFoundError: no module named peer"),
    ):
        contestant.run("timer")()
