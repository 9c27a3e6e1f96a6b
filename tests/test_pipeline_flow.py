"""flows/pipeline against a real Prefect server, a real DVC project and real signals."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import dvc_stages, project
from flows.pipeline import local_sources
from flows.settings import prefect_environment
from tests import toy_project
from tests.toy_project import git, processes_in, wait_until

ROOT = Path(__file__).parent.parent


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dvc_stages, "GRACE", 1.0)
    toy_project.fork_dvc(monkeypatch)
    return toy_project.create(tmp_path / "toy")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects of what a notification block is sent."""
    subjects: list[str] = []
    monkeypatch.setattr("flows.pipeline.publish.notify", lambda block, subject, body: subjects.append(subject))
    return subjects


@pytest.fixture
def _of_two_stages(toy: Path) -> None:
    """Leave the toy its first two stages, for a test that runs all there are, again and again."""
    (toy / "dvc.yaml").write_text(toy_project.DVC_YAML[: toy_project.DVC_YAML.index("  third:")])
    git(toy, "commit", "--quiet", "--all", "--message", "Two stages")


def run(root: Path, *targets: str, **options: Any) -> Any:
    from flows.pipeline.flow import pipeline

    return pipeline(targets=list(targets), root=str(root), return_state=True, **options)


def task_runs(state: Any) -> dict[str, Any]:
    """Stage name -> its task run, as the server has it."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    mine = FlowRunFilter.model_validate({"id": {"any_": [str(state.state_details.flow_run_id)]}})

    async def read() -> list[Any]:
        async with get_client() as client:
            return await client.read_task_runs(flow_run_filter=mine)

    def finished() -> bool:  # the server records task runs from events, a moment later
        found.clear()
        found.update({run.name: run for run in asyncio.run(read())})
        return bool(found) and all(run.state is not None and run.state.is_final() for run in found.values())

    found: dict[str, Any] = {}
    wait_until(finished, 20, "the server knows how each task run ended")
    return found


def state_names(state: Any) -> dict[str, str]:
    return {name: run.state.name for name, run in task_runs(state).items()}


def test_each_stage_is_a_task_run_and_ran_cached_and_restored_are_told_apart(server: str, toy: Path) -> None:
    first = run(toy, "second")
    assert first.is_completed()
    assert state_names(first) == {"first": "Completed", "second": "Completed"}

    (toy / "artifacts/second").unlink()
    again = run(toy, "second")
    assert state_names(again) == {"first": "Cached", "second": "Restored"}
    assert again.message == "0 ran, 1 restored, 1 cached"
    assert state_names(run(toy, "first", force=True)) == {"first": "Completed"}


def test_a_stages_lines_are_its_task_runs_log(server: str, toy: Path) -> None:
    from prefect import get_client
    from prefect.client.schemas.filters import LogFilter

    stage = task_runs(run(toy, "first"))["first"]
    mine = LogFilter.model_validate({"task_run_id": {"any_": [str(stage.id)]}})

    async def lines() -> list[str]:
        async with get_client() as client:
            return [log.message for log in await client.read_logs(log_filter=mine)]

    wait_until(lambda: "first says hello" in asyncio.run(lines()), 20, "the line reached the server")


def test_a_failure_skips_what_depends_on_it_and_nothing_else(server: str, toy: Path) -> None:
    (toy / "knobs/second").write_text("print('no space left', file=sys.stderr); raise SystemExit(3)")
    state = run(toy)
    assert state.is_failed()
    assert "stage second exited with code 3" in state.message
    assert "no space left" in state.message
    assert "skipped: third" in state.message
    names = state_names(state)
    assert (names.pop("second"), names.pop("third")) == ("Failed", "Skipped")
    assert task_runs(state)["third"].state.is_completed()  # Prefect would log another type as an error
    assert names == dict.fromkeys(["first", "alone", "download@dataset", "download@model"], "Completed")

    (toy / "knobs/second").unlink()
    assert run(toy).message == "2 ran, 0 restored, 4 cached"  # the next run picks up


def test_after_a_failure_no_stage_runs_whose_users_are_all_blocked() -> None:
    from flows.pipeline.flow import _reason_to_skip

    stages = [dvc_stages.Stage(*stage) for stage in (("data", ()), ("pretrain", ()), ("train", ("data", "pretrain")))]
    below = dvc_stages.downstreams(stages)
    assert _reason_to_skip(stages[1], ["data"], below, []) == "all that needs it needs data too"
    assert _reason_to_skip(stages[1], ["data"], below, ["pretrain"]) == ""  # a person asked for it
    assert _reason_to_skip(stages[1], [], below, []) == ""
    assert _reason_to_skip(stages[2], ["data"], below, []) == "it needs data"
    assert _reason_to_skip(dvc_stages.Stage("alone", ()), ["data"], {**below, "alone": set()}, []) == ""


@pytest.mark.parametrize(("exit_code", "num_attempts"), [(75, 3), (1, 1)])
def test_only_a_fault_that_may_pass_is_tried_again(server: str, toy: Path, exit_code: int, num_attempts: int) -> None:
    (toy / "knobs/first").write_text(f"open('running', 'a').write('x'); raise SystemExit({exit_code})")
    state = run(toy, "first", retry_delay=0.1)
    assert state.is_failed()
    assert f"stage first exited with code {exit_code}" in state.message
    assert (toy / "running").read_text() == "x" * num_attempts


def test_a_fault_that_passes_is_no_failure(server: str, toy: Path) -> None:
    (toy / "knobs/first").write_text("pathlib.Path('knobs/first').unlink(); raise SystemExit(75)")
    assert run(toy, "first", retry_delay=0.1).is_completed()


def test_a_run_over_its_time_stops_its_stage_and_says_so(
    server: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "sys", sys)  # a DVC of its own, and no fork
    (toy / "knobs/first").write_text(toy_project.STUBBORN)
    state = run(toy, "second", timeout=6)
    assert state.is_failed()
    assert state.name == "TimedOut"
    assert "stage first was stopped" in state.message
    assert processes_in(toy) == []
    assert state_names(state) == {"first": "TimedOut", "second": "Skipped"}


def test_a_second_run_in_the_same_checkout_is_turned_away(server: str, toy: Path, told: list[str]) -> None:
    with dvc_stages.claimed(toy / ".cache/pipeline.lock"):
        state = run(toy, "first", notify="slack-webhook/ops")
    assert told == ["pipeline: TurnedAway"]
    assert state.is_cancelled()
    assert state.name == "TurnedAway"
    assert f"process {os.getpid()} runs the pipeline" in state.message
    assert run(toy, "first").is_completed()


def test_a_changed_local_folder_is_downloaded_again(server: str, toy: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_text("one")
    (toy / "params.yaml").write_text((toy / "params.yaml").read_text().replace("synthetic", str(photos), 1))
    target = "download@dataset"
    assert state_names(run(toy, target)) == {target: "Completed"}
    assert state_names(run(toy, target)) == {target: "Cached"}
    (photos / "b.png").write_text("two")
    assert state_names(run(toy, target)) == {target: "Completed"}
    assert state_names(run(toy, target)) == {target: "Cached"}


def test_a_file_name_that_is_no_utf8_counts_as_any_other(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "params.yaml").write_text("dataset: {source: photos}\n")
    before = local_sources.read(tmp_path, tmp_path)
    Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.jpg")).write_bytes(b"")
    assert local_sources.read(tmp_path, tmp_path) != before


def test_addresses_and_names_are_no_local_sources(tmp_path: Path) -> None:
    for source in ("http://127.0.0.1/x.zip", "synthetic", "IMAGENET1K_V1", "no/such/folder"):
        (tmp_path / "params.yaml").write_text(f"dataset: {{source: '{source}'}}\nmodel: {{weights: '{source}'}}\n")
        assert local_sources.read(tmp_path, tmp_path) == {}


def test_a_dangling_link_in_a_dataset_folder_is_left_for_the_download_to_explain(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (photos / "loop").symlink_to(photos / "loop")
    (tmp_path / "params.yaml").write_text("dataset: {source: photos}\n")
    assert set(local_sources.read(tmp_path, tmp_path)) == {"download@dataset"}


def test_settings_are_written_into_params_yaml_as_dvc_does(server: str, toy: Path, told: list[str]) -> None:
    (toy / "params.yaml").write_text("# kept\n" + (toy / "params.yaml").read_text())
    assert run(toy, "first", settings={"number": 7}).is_completed()
    assert (toy / "params.yaml").read_text().startswith("# kept\nnumber: 7\n")
    refused = run(toy, "first", settings={"number": "banana"}, notify="slack-webhook/ops")
    assert told == ["pipeline: Failed"]
    assert refused.is_failed()
    assert "number: not a number (found 'banana')" in refused.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "-S", "number=banana"], "number: not a number (found 'banana')"),
        (["fourth"], "dvc.yaml: no stage fourth; there are alone"),
        (["-S", "number"], "-S number: write KEY=VALUE"),
        (["-S", "dataset.source=potos"], "dataset.source: potos: no such file or folder; correct the path"),
        (["-S", "model.weights=net.pth"], "model.weights: net.pth: no such file or folder; correct the path"),
    ],
)
def test_the_command_refuses_before_a_server_starts(toy: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "flows.pipeline", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=toy, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""
    assert not (toy / ".cache").exists()  # where the server keeps its data


@pytest.mark.usefixtures("_of_two_stages")
def test_a_scheduled_run_is_an_experiment_and_leaves_the_branch_alone(server: str, toy: Path) -> None:
    before = (git(toy, "rev-parse", "HEAD"), git(toy, "for-each-ref", "refs/heads"))
    (toy / "source.txt").write_text("a person is editing")  # not committed: no part of the run, and not lost
    state = run(toy, experiment="nightly")
    assert state.is_completed(), state.message
    name = state.message.rpartition(" ")[2]
    assert name.startswith("nightly-")
    assert (git(toy, "rev-parse", "HEAD"), git(toy, "for-each-ref", "refs/heads")) == before
    assert git(toy, "status", "--porcelain") == "M source.txt"
    assert not (toy / "dvc.lock").exists()

    git(toy, "checkout", "--quiet", "source.txt")
    assert name in toy_project.dvc(toy, "exp", "list", "--name-only")
    toy_project.dvc(toy, "exp", "apply", name)
    assert (toy / "artifacts/second").read_text() == "secondtext"
    assert state_names(run(toy, "second")) == {"first": "Cached", "second": "Cached"}

    shutil.rmtree(toy / ".cache/nightly")  # a fresh checkout, which shares the project's DVC cache
    again = run(toy, experiment="again")
    assert again.message.startswith("0 ran, 2 restored, 0 cached")


@pytest.mark.usefixtures("_of_two_stages")
def test_on_one_of_several_machines_it_takes_the_remotes_commit_and_pushes_its_result(
    server: str, toy: Path, tmp_path: Path
) -> None:
    hub, store, elsewhere = tmp_path / "hub.git", tmp_path / "store", tmp_path / "elsewhere"
    git(tmp_path, "clone", "--quiet", "--bare", str(toy), str(hub))
    git(toy, "remote", "add", "hub", str(hub))
    (toy / ".dvc/config.local").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n")
    git(tmp_path, "clone", "--quiet", str(hub), str(elsewhere))
    (elsewhere / "source.txt").write_text("newer")
    git(elsewhere, "-c", "user.name=E", "-c", "user.email=e@example.invalid", "commit", "--quiet", "-am", "Newer")
    git(elsewhere, "push", "--quiet", "origin", "main")
    before = git(toy, "rev-parse", "HEAD")

    state = run(toy, experiment="nightly", git_remote="hub")
    assert state.is_completed(), state.message
    name = state.message.rpartition(" ")[2]
    assert git(toy, "rev-parse", "HEAD") == before
    assert name in git(hub, "for-each-ref", "--format=%(refname)", "refs/exps")

    (elsewhere / ".dvc/config.local").write_text((toy / ".dvc/config.local").read_text())
    toy_project.dvc(elsewhere, "exp", "pull", "origin", name)
    toy_project.dvc(elsewhere, "exp", "apply", name)
    assert (elsewhere / "artifacts/second").read_text() == "secondnewer"


def test_a_remote_without_an_experiment_is_refused(server: str, toy: Path) -> None:
    assert "give an experiment's name too" in run(toy, git_remote="hub").message


def test_an_experiment_of_a_few_targets_is_refused(server: str, toy: Path) -> None:
    state = run(toy, "first", experiment="nightly")
    assert state.is_failed()
    assert "not both" in state.message


def test_results_are_published_as_tables_and_a_picture(server: str, toy: Path) -> None:
    from prefect import get_client
    from prefect.client.schemas.filters import ArtifactFilter

    (toy / "artifacts/comparison.json").write_text(json.dumps([{"recipe": "r", "published": {"loss": 0.2}}]))
    (toy / "artifacts/parity.json").write_text(json.dumps({"rows": [{"runtime": "CPU", "status": "not run"}]}))
    (toy / "artifacts/comparison.png").write_bytes(b"\x89PNG")
    state = run(toy, "first")
    mine = ArtifactFilter.model_validate({"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}})

    async def read() -> dict[str, Any]:
        async with get_client() as client:
            return {artifact.key: artifact.data for artifact in await client.read_artifacts(artifact_filter=mine)}

    found = asyncio.run(read())
    assert json.loads(found["comparison"]) == [{"recipe": "r", "published.loss": 0.2}]
    assert json.loads(found["parity"]) == [{"runtime": "CPU", "status": "not run"}]
    assert found["comparison-picture"] == "data:image/png;base64,iVBORw=="
    assert [row["stage"] for row in json.loads(found["stages"])] == ["first"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    ("victim", "number", "knob"),
    [
        ("command", signal.SIGTERM, "SLEEP"),
        ("flow", signal.SIGKILL, "SLEEP"),
        *(
            pytest.param(victim, number, "STUBBORN", marks=pytest.mark.slow)  # ten seconds of grace each
            for victim in ("command", "flow", "supervisor")
            for number in (signal.SIGTERM, signal.SIGKILL)
            if (victim, number) != ("supervisor", signal.SIGTERM)
        ),
    ],
)
def test_a_signal_leaves_no_child_and_the_next_run_picks_up(
    server: str, toy: Path, victim: str, number: signal.Signals, knob: str
) -> None:
    (toy / "knobs/second").write_text(getattr(toy_project, knob))
    command = start(toy, server)
    wait_until((toy / "running").exists, 90, "the second stage runs")
    supervisor = psutil.Process(command.pid).children()[0]
    target = {"command": psutil.Process(command.pid), "supervisor": supervisor, "flow": supervisor.children()[0]}[
        victim
    ]
    target.send_signal(number)
    wait_until(lambda: processes_in(toy) == [], 60, f"no process left, there are {processes_in(toy)}")
    assert command.wait(10) != 0
    assert not (toy / "artifacts/second").exists()

    (toy / "knobs/second").unlink()
    state = run(toy, "second")
    assert state_names(state) == {"first": "Cached", "second": "Completed"}


@pytest.mark.slow
def test_without_a_server_and_without_a_network_the_flow_runs_and_is_gone(toy: Path) -> None:
    """A proxy that refuses stands where the Internet would be: whoever tried to reach out would fail or hang."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    refused = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
    command = start(toy, None, {**bare, **refused, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"})
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert "2 ran, 0 restored, 0 cached" in output
    assert processes_in(toy) == []


@pytest.mark.slow
def test_killing_a_flow_without_a_server_ends_its_temporary_server_too(toy: Path) -> None:
    (toy / "knobs/first").write_text(toy_project.SLEEP)
    command = start(toy, None, {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")})
    wait_until((toy / "running").exists, 240, "the stage runs")
    assert any("uvicorn" in line for line in processes_in(toy))
    psutil.Process(command.pid).children()[0].children()[0].kill()
    wait_until(lambda: processes_in(toy) == [], 60, f"no process left, there are {processes_in(toy)}")
    command.wait(10)


def test_the_environment_forbids_telemetry_and_allows_a_slow_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT") or name == "DO_NOT_TRACK"]:
        monkeypatch.delenv(name)
    look = (
        "from prefect._internal.analytics import is_telemetry_enabled; from prefect.settings import get_current_settings;"
        "s = get_current_settings();"
        "print(is_telemetry_enabled(), s.server.analytics_enabled, s.server.ephemeral.startup_timeout_seconds, s.home)"
    )
    environment = prefect_environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "180", str(tmp_path / ".cache/prefect")]


def test_the_environment_keeps_what_a_person_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    environment = prefect_environment(tmp_path)
    assert environment["PREFECT_HOME"] == str(tmp_path / "mine")
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def start(toy: Path, api_url: str | None, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """`python -m flows.pipeline second` in the toy project, as a person would."""
    env = {**(environment or os.environ), "PYTHONPATH": str(ROOT)}
    if api_url is not None:
        env["PREFECT_API_URL"] = api_url
    command = [sys.executable, "-m", "flows.pipeline", "second"]
    return subprocess.Popen(command, cwd=toy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
