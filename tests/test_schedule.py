"""flows/settings.py, schedule.py, serve.py and prefect.yaml: the scheduled run, against a real server and real time."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import serve
from flows.settings import load_schedule
from tests import toy_project
from tests.toy_project import git, processes_in, wait_until

ROOT = Path(__file__).parent.parent
GOOD = {
    "cron": "* * * * *",
    "timezone": "UTC",
    "timeout": 600,
    "experiment": "nightly",
    "host": "127.0.0.1",
    "port": 4200,
}
NEVER = "0 0 29 2 *"


def write(path: Path, **changes: object) -> Path:
    YAML().dump(GOOD | changes, path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_shipped_schedule_is_valid_and_prefect_yaml_says_the_same() -> None:
    schedule = load_schedule()
    deployment = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"][0]
    assert deployment["schedules"] == [{"cron": schedule.cron, "timezone": schedule.timezone}]
    expected = {"experiment": schedule.experiment, "timeout": schedule.timeout, "git_remote": "origin"}
    assert deployment["parameters"] == expected
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_prefect_yaml_names_the_flow_and_no_path_of_one_machine() -> None:
    settings = YAML(typ="safe").load(ROOT / "prefect.yaml")
    module, _, name = settings["deployments"][0]["entrypoint"].rpartition(".")
    assert f"\ndef {name}(" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert settings["pull"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $PIPELINE_ROOT }}"}}
    ]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"cron": "0 2 * *"}, "cron"),
        ({"cron": "61 2 * * *"}, "cron"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timeout": 0}, "timeout"),
        ({"experiment": "two words"}, "experiment"),
        ({"port": 70000}, "port"),
        ({"retries": 3}, "retries"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_file_and_the_key(
    tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    path = write(tmp_path / "schedule.yaml", **changes)
    with pytest.raises(ValueError, match=rf"schedule\.yaml: 1 problem\(s\)\n  {key}: "):
        load_schedule(path)


def test_a_schedule_file_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("cron: 30 4 * * *\npromotion: {max_size_ratio: 2}\n")
    mine, shipped = load_schedule(tmp_path / "mine.yaml"), load_schedule()
    assert mine.cron == "30 4 * * *"
    assert mine.promotion.max_size_ratio == 2
    assert mine.model_copy(update={"cron": shipped.cron, "promotion": shipped.promotion}) == shipped
    assert mine.promotion.max_accuracy_loss == shipped.promotion.max_accuracy_loss


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 0 31 2 *", "`0 0 31 2 *` never comes about (Bad day-of-month)"),
        ("61 2 * * *", "`61 2 * * *` is not a cron (Bad minute)"),
        ("0 2 * *", "`0 2 * *` has 4 fields; a cron has five"),
    ],
)
def test_a_wrong_cron_is_told_what_is_wrong_with_it(tmp_path: Path, cron: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_schedule(write(tmp_path / "schedule.yaml", cron=cron))


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        schedule = load_schedule(write(tmp_path / "schedule.yaml", port=taken.getsockname()[1]))
        with pytest.raises(ValueError, match="stop what runs there"):
            serve.refuse_a_taken_port(schedule)


class Serving:
    """`python -m flows.serve` in a toy project, and its server's API."""

    def __init__(self, root: Path, cron: str) -> None:
        self.root, self.port = root, free_port()
        schedule = write(root / ".cache-schedule.yaml", cron=cron, port=self.port)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        env |= {"PYTHONPATH": str(ROOT), "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        command = [sys.executable, "-m", "flows.serve", str(schedule)]
        with (root / ".cache-serve.log").open("w") as log:
            self.process = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)
        wait_until(
            lambda: self.alive() and "the deployment nightly is served" in self.log(), 240, "the deployment is served"
        )

    def alive(self) -> bool:
        assert self.process.poll() is None, self.log()
        return True

    def log(self) -> str:
        return (self.root / ".cache-serve.log").read_text()[-3000:]

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        for _ in range(20):  # as Prefect's own client does where the server's database is busy
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(1)
        raise AssertionError(f"{path}: the server is busy all the time")

    def deployments(self) -> Any:
        return self.ask("deployments/filter", {})

    def trigger(self) -> str:
        return str(self.ask(f"deployments/{self.deployments()[0]['id']}/create_flow_run", {})["id"])

    def runs(self) -> dict[str, dict[str, Any]]:
        """Flow run id -> its state."""
        return {run["id"]: run["state"] for run in self.ask("flow_runs/filter", {})}

    def ended(self, run: str, kind: str) -> Callable[[], bool]:
        return lambda: bool(self.runs()[run]["type"] == kind)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Path]:
    root = toy_project.create(tmp_path / "toy")
    yield root
    for line in processes_in(root):
        print("left running:", line)


@pytest.fixture
def start(toy: Path) -> Iterator[Callable[[str], Serving]]:
    started: list[Serving] = []

    def begin(cron: str) -> Serving:
        started.append(Serving(toy, cron))
        return started[-1]

    yield begin
    for serving in started:
        serving.process.kill()
        serving.process.wait()


def knob(toy: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> Path:
    """Make stage `first` of every checkout do `source`; returns the file that says it runs."""
    monkeypatch.setenv("KNOBS", str(toy / "knobs"))
    running = toy / "running"
    (toy / "knobs/first").write_text(source.replace("pathlib.Path('running')", f"pathlib.Path({str(running)!r})"))
    return running


@pytest.mark.slow
def test_an_overlapping_run_is_turned_away_cancel_and_sigterm_leave_nothing(
    toy: Path, start: Callable[[str], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = knob(toy, monkeypatch, toy_project.SLEEP)
    serving = start(NEVER)

    first = serving.trigger()
    wait_until(running.exists, 120, f"the first run's stage runs; {serving.log()}")
    second = serving.trigger()
    wait_until(serving.ended(second, "CANCELLED"), 60, "the second run is turned away")
    assert "concurrency limit" in serving.runs()[second]["message"].lower()
    assert serving.runs()[first]["type"] == "RUNNING"

    serving.ask(f"flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    wait_until(serving.ended(first, "CANCELLED"), 90, f"the first run is cancelled; {serving.log()}")
    wait_until(lambda: not any("stage.py" in line for line in processes_in(toy)), 60, "its stage is gone")

    running.unlink()
    third = serving.trigger()
    wait_until(running.exists, 120, f"the place is free again; {serving.runs()[third]}")
    serving.process.send_signal(signal.SIGTERM)
    serving.process.wait(120)
    assert processes_in(toy) == []
    assert "never awaited" not in (toy / ".cache-serve.log").read_text()
    assert git(toy, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.slow
def test_after_sigkill_nothing_is_left_and_the_next_start_runs_again(
    toy: Path, start: Callable[[str], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = knob(toy, monkeypatch, toy_project.SLEEP)
    serving = start(NEVER)
    lost = serving.trigger()
    wait_until(running.exists, 120, f"the stage runs; {serving.log()}")
    serving.process.kill()
    serving.process.wait()
    wait_until(lambda: processes_in(toy) == [], 120, f"no process left, there are {processes_in(toy)}")

    (toy / "knobs/first").unlink()
    again = start(NEVER)
    assert again.runs()[lost]["type"] in ("CRASHED", "CANCELLED")
    run = again.trigger()
    wait_until(again.ended(run, "COMPLETED"), 240, f"the next run completes; {again.runs()[run]} {again.log()}")


@pytest.mark.slow
def test_a_cron_fires_twice_and_the_run_that_changed_nothing_adds_no_experiment(
    toy: Path, start: Callable[[str], Serving]
) -> None:
    serving = start("* * * * *")

    def completed() -> list[str]:
        return [run for run, state in serving.runs().items() if state["type"] == "COMPLETED"]

    wait_until(lambda: len(completed()) >= 2, 420, f"two runs completed; {serving.runs()} {serving.log()}")
    experiments = toy_project.dvc(toy, "exp", "list", "--name-only").split()
    assert len([name for name in experiments if name.startswith("nightly-")]) == 1
    assert git(toy, "status", "--porcelain", "--untracked-files=no") == ""
    assert git(toy, "for-each-ref", "--format=%(refname)", "refs/heads") == "refs/heads/main"
