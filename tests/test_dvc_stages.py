"""flows/dvc_stages.py and flows/supervise.py against a real DVC project and real processes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flows import dvc_stages
from flows.mend import mend
from tests import toy_project
from tests.toy_project import processes_in, wait_until

ROOT = Path(__file__).parent.parent
RUN_ONE = "import sys; from pathlib import Path; from flows import dvc_stages; dvc_stages.GRACE = 1.0; dvc_stages.run(Path.cwd(), sys.argv[1], on_line=print)"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_project.create(tmp_path_factory.mktemp("shared") / "toy")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dvc_stages, "GRACE", 1.0)
    return toy_project.create(tmp_path / "toy")


def run(root: Path, stage: str, **options: object) -> tuple[str, list[str]]:
    lines: list[str] = []
    return dvc_stages.run(root, stage, on_line=lines.append, **options), lines


def test_plan_puts_each_stage_after_its_upstreams(shared: Path) -> None:
    stages = dvc_stages.plan(shared)
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.upstreams) <= seen
        seen.add(stage.name)
    assert seen == {"first", "second", "third", "alone", "download@dataset", "download@model"}


def test_plan_of_a_target_is_the_target_and_what_it_needs(shared: Path) -> None:
    assert [stage.name for stage in dvc_stages.plan(shared, ["second"])] == ["first", "second"]
    assert {stage.name for stage in dvc_stages.plan(shared, ["download"])} == {"download@dataset", "download@model"}
    assert {stage.name for stage in dvc_stages.plan(shared, ["download@model"])} == {"download@model"}


def test_outside_git_plan_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run from the project's root, in a git clone"):
        dvc_stages.plan(tmp_path)


def test_downstreams_are_all_that_need_a_stage() -> None:
    chain = [dvc_stages.Stage("a", ()), dvc_stages.Stage("b", ("a",)), dvc_stages.Stage("c", ("b",))]
    assert dvc_stages.downstreams(chain) == {"a": {"b", "c"}, "b": {"c"}, "c": set()}


def test_plan_names_an_unknown_target_and_the_known_ones(shared: Path) -> None:
    with pytest.raises(ValueError, match="no stage fourth; there are alone, download, download@dataset"):
        dvc_stages.plan(shared, ["fourth"])


def test_a_stage_runs_then_is_unchanged_then_is_restored(toy: Path) -> None:
    assert not dvc_stages.is_unchanged(toy, "first")
    status, lines = run(toy, "first")
    assert status == "ran"
    assert lines == ["Running stage 'first':", "> python stage.py first", "first says hello"]  # none of DVC's advice
    assert dvc_stages.is_unchanged(toy, "first")
    assert run(toy, "first")[0] == "cached"

    (toy / "artifacts/first").unlink()
    assert not dvc_stages.is_unchanged(toy, "first")
    status, lines = run(toy, "first")
    assert status == "restored"
    assert "first says hello" not in lines

    assert run(toy, "first", force=True)[0] == "ran"


def test_a_failure_carries_the_commands_exit_code_and_its_last_lines(toy: Path) -> None:
    (toy / "knobs/first").write_text("print('the disk is full', file=sys.stderr); raise SystemExit(7)")
    with pytest.raises(dvc_stages.StageFailed) as caught:
        run(toy, "first")
    assert caught.value.stage == "first"
    assert caught.value.exit_code == 7
    assert "the disk is full" in caught.value.stderr
    assert "stage first exited with code 7" in str(caught.value)


def test_lines_come_while_the_stage_runs(toy: Path) -> None:
    (toy / "knobs/first").write_text("import time\nwhile not pathlib.Path('heard').exists(): time.sleep(0.01)")

    def on_line(line: str) -> None:
        if line == "first says hello":
            (toy / "heard").touch()

    assert dvc_stages.run(toy, "first", on_line=on_line, timeout=30) == "ran"


def test_a_progress_bar_is_lines(toy: Path) -> None:
    (toy / "knobs/first").write_text("print('10%\\r100%', file=sys.stderr)")
    assert {"10%", "100%"} <= set(run(toy, "first")[1])


def test_a_stage_over_its_time_is_stopped_with_all_it_started(toy: Path) -> None:
    (toy / "knobs/first").write_text(toy_project.STUBBORN)
    with pytest.raises(dvc_stages.StageTimedOut, match="stage first was stopped after 8 s"):
        run(toy, "first", timeout=8)
    assert (toy / "running").exists()
    assert processes_in(toy) == []


def test_a_stage_waits_for_another_process_that_holds_the_lock(toy: Path) -> None:
    hold = "from dvc.repo import Repo; import sys; r = Repo('.'); r.lock.lock(); print('held', flush=True); sys.stdin.read(); r.lock.unlock()"
    holder = subprocess.Popen([sys.executable, "-c", hold], cwd=toy, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    release = threading.Timer(4, holder.stdin.close)  # DVC alone gives up after 3 s
    release.start()
    assert run(toy, "first", timeout=60)[0] == "ran"
    holder.wait()


def test_a_stage_leaves_nothing_running_behind_it(toy: Path) -> None:
    (toy / "knobs/first").write_text("import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
    assert run(toy, "first", timeout=30)[0] == "ran"
    assert processes_in(toy) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    "victim", ["flow", pytest.param("supervisor", marks=pytest.mark.slow), pytest.param("dvc", marks=pytest.mark.slow)]
)
def test_killing_any_one_process_leaves_no_child(toy: Path, victim: str) -> None:
    """SIGKILL, against children that ignore SIGTERM and one that left the session (which only a living supervisor
    can find); then the next run picks up."""
    stubborn = toy_project.STUBBORN.replace("start_new_session=True", f"start_new_session={victim != 'supervisor'}")
    (toy / "knobs/first").write_text(stubborn)
    flow = subprocess.Popen(
        [sys.executable, "-c", RUN_ONE, "first"], cwd=toy, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_until((toy / "running").exists, 30, "the stage runs")
    assert sum("time.sleep(600)" in command for command in processes_in(toy)) == 1

    supervisor = psutil.Process(flow.pid).children()[0]
    target = {"flow": psutil.Process(flow.pid), "supervisor": supervisor, "dvc": supervisor.children()[0]}[victim]
    assert victim == "flow" or {"supervisor": "supervise.py", "dvc": "dvc"}[victim] in " ".join(target.cmdline())
    target.send_signal(signal.SIGKILL)
    flow.wait(20)
    wait_until(lambda: processes_in(toy) == [], 20, f"no process left, there are {processes_in(toy)}")

    (toy / "knobs/first").unlink()
    mend(toy)  # as the flow does: who was killed is a zombie until its new parent asks for it
    assert run(toy, "first", timeout=60)[0] == "ran"
