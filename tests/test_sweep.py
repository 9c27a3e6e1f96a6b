"""flows/sweep against a real Prefect server, a real DVC project, real signals and real workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import dvc_stages
from flows.sweep import experiments
from tests import sweep_project
from tests.toy_project import commit_project, dvc, fork_dvc, git, identify, processes_in, wait_until

ROOT = Path(__file__).parents[1]
GRID = """\
title: Learning rate
grid:
  recipe.lr: [0.1, 0.2]
x: recipe.lr
"""
POINTS = """\
title: Learning rate
recipes: [finetune, scratch]
points:
  - {name: alone, target: alone}
  - {name: slow}
x: recipe
series: name
"""


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing has run, in a folder with the sweeps' files."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "grid.yaml").write_text(GRID)
    (folder / "points.yaml").write_text(POINTS)
    return sweep_project.create(folder / "toy")


@pytest.fixture(scope="module")
def swept(server: str, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after its first sweep of two points, with two seeds each; what that run returned lies beside it."""
    with pytest.MonkeyPatch.context() as patch:
        toy = copied(new, tmp_path_factory.mktemp("swept"), patch)
        state = run(toy, seeds=2)
    assert state.is_completed(), state.message
    return toy


def copied(toy: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy of the project and what lies beside it in `folder`, whose stages leave their notes there."""
    without = shutil.ignore_patterns(".cache")  # its checkouts are clones of the original
    shutil.copytree(toy.parent, folder, symlinks=True, ignore=without, dirs_exist_ok=True)
    (folder / "notes").mkdir(exist_ok=True)
    patch.setenv("SWEEP_NOTES", str(folder / "notes"))
    patch.setattr(dvc_stages, "GRACE", 2.0)
    fork_dvc(patch)
    return folder / toy.name


@pytest.fixture
def toy(new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(new, tmp_path, monkeypatch)


@pytest.fixture
def swept_toy(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(swept, tmp_path, monkeypatch)


def notes(toy: Path) -> Path:
    """Where the toy's stages write down what they do, and read what they shall do."""
    return toy.parent / "notes"


def run(toy: Path, name: str = "grid", **options: Any) -> Any:
    from flows.sweep.flow import sweep

    return sweep(str(toy.parent / f"{name}.yaml"), root=str(toy), return_state=True, **options)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def experiments_of(toy: Path) -> set[str]:
    return {name for name in dvc(toy, "exp", "list", "--name-only").split() if not name.endswith("-tested")}


def rows(toy: Path, name: str = "grid") -> list[dict[str, Any]]:
    return json.loads((toy / "artifacts/sweeps" / name / "table.json").read_text())["rows"]


def test_every_point_becomes_an_experiment_and_the_project_stays_as_it_is(new: Path, swept: Path) -> None:
    assert experiments_of(swept) == {f"grid-{lr}-s{seed}" for lr in ("0.1", "0.2") for seed in (0, 1)}
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        assert git(swept, *words) == git(new, *words)
    assert (swept / "params.yaml").read_text() == (new / "params.yaml").read_text()

    first, second = rows(swept)
    assert (first["lr"], first["seeds"], second["seeds"]) == (0.1, 2, 2)
    assert first["validation_accuracy"] == pytest.approx(0.15)
    assert second["validation_accuracy"] == pytest.approx(0.25)
    assert (first["rank"], second["rank"]) == (2, 1)
    assert len(lines(notes(swept) / "prepared")) == 1  # what the points share ran once
    names = {path.name for path in (swept / "artifacts/sweeps/grid").iterdir()}
    assert names == {"table.json", "table.md", "table.csv", "figure.svg", "figure.png"}


def test_a_report_that_is_up_to_date_shows_a_sweep_and_no_other_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeps' folder is no dependency of the report: `dvc repro` alone would say that nothing changed."""
    from prefect.logging import disable_run_logger

    from flows.sweep.flow import show_in_report

    report = tmp_path / "toy/artifacts/report.html"
    script = "import os\nopen('artifacts/report.html', 'w').write(' '.join(os.listdir('artifacts/sweeps')))\n"
    stage = "{cmd: python report.py, params: [number], outs: [artifacts/report.html]}"
    files = {"dvc.yaml": f"stages:\n  report: {stage}\n", "report.py": script, "params.yaml": "number: 1\n"}
    toy = commit_project(tmp_path / "toy", files)
    fork_dvc(monkeypatch)
    (toy / "artifacts/sweeps/first").mkdir(parents=True)
    with disable_run_logger():
        show_in_report(toy)
        assert not report.exists()
        dvc(toy, "repro", "--quiet")
        (toy / "artifacts/sweeps/second").mkdir()
        show_in_report(toy)
        assert set(report.read_text().split()) == {"first", "second"}
        (toy / "params.yaml").write_text("number: 2\n")
        (toy / "artifacts/sweeps/third").mkdir()
        show_in_report(toy)
        assert "third" not in report.read_text()
        (toy / "dvc.lock").write_text("in: [pieces")
        show_in_report(toy)  # warns, and raises nothing: the sweep went well


def test_validation_chooses_and_test_is_opened_for_the_winner_alone(swept: Path) -> None:
    """In the toy the point with the best test score is the worst in validation."""
    assert lines(notes(swept) / "evaluated") == ["finetune 0.2"] * 2
    described = json.loads((swept / "artifacts/sweeps/grid/table.json").read_text())
    assert described["ranked_by"] == "validation_loss"
    assert described["winner"]["point"] == {"lr": "0.2"}
    assert described["winner"]["test_accuracy"] == pytest.approx(0.75)
    assert not [key for row in described["rows"] + described["runs"] for key in row if "test" in key]
    text = (swept / "artifacts/sweeps/grid/table.md").read_text()
    assert text.count("test accuracy") == 1
    assert "Ranked by validation log-loss" in text


def test_the_best_points_go_on_to_a_second_round_with_dearer_settings(server: str, swept_toy: Path) -> None:
    finals = "finals: {keep: 2, settings: {width: 4}}\n"
    (swept_toy.parent / "grid.yaml").write_text(GRID.replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]") + finals)
    before = len(lines(notes(swept_toy) / "trained"))
    state = run(swept_toy, seeds=1)
    assert state.is_completed(), state.message
    described = json.loads((swept_toy / "artifacts/sweeps/grid/table.json").read_text())
    assert [row["lr"] for row in described["finals"]] == [0.3, 0.2]
    assert described["winner"]["point"] == {"lr": "0.3"}
    assert lines(notes(swept_toy) / "evaluated")[2:] == ["finetune 0.3"]
    assert len(lines(notes(swept_toy) / "trained")) == before + 1 + 2  # two of the first round's three were done


def test_what_is_done_is_not_run_again_and_what_is_new_is(server: str, swept_toy: Path) -> None:
    assert run(swept_toy, seeds=2).message.startswith("4 were done, 0 ran")
    assert run(swept_toy, seeds=3).message.startswith("4 were done, 2 ran")
    assert len(lines(notes(swept_toy) / "trained")) == 6


def test_an_experiment_of_the_same_name_with_other_params_is_run_again(server: str, swept_toy: Path) -> None:
    assert run(swept_toy, seeds=1, settings={"width": 4}).message.startswith("0 were done, 2 ran")
    head = git(swept_toy, "rev-parse", "HEAD")
    shown = git(swept_toy, "show", f"refs/exps/{head[:2]}/{head[2:]}/grid-0.1-s0:params.yaml")
    assert "width: 4" in shown


def test_a_new_commit_restores_what_did_not_change(server: str, swept_toy: Path) -> None:
    (swept_toy / "README").write_text("words")
    git(swept_toy, "add", "README")
    git(swept_toy, "commit", "--quiet", "--message", "Words")
    assert run(swept_toy, seeds=1).message.startswith("0 were done, 2 ran")
    assert len(lines(notes(swept_toy) / "trained")) == 4


def test_a_failed_point_leaves_the_others_and_is_all_that_runs_again(server: str, swept_toy: Path) -> None:
    """Nor is a winner tested while a point is missing."""
    knob = notes(swept_toy) / "knob"
    knob.write_text("if recipe['lr'] == 0.2: print('the loss is nan'); raise SystemExit(3)")
    state = run(swept_toy, seeds=3)
    assert state.is_failed()
    assert state.message.startswith("1 failed, 4 were done, 1 ran")
    assert "grid-0.2-s2: exited with code 3" in state.message
    assert "the loss is nan" in state.message
    assert [row["seeds"] for row in rows(swept_toy)] == [3, 2]
    assert "none is the winner" in (swept_toy / "artifacts/sweeps/grid/table.md").read_text()
    assert len(lines(notes(swept_toy) / "evaluated")) == 2  # the first sweep's
    knob.unlink()
    assert run(swept_toy, seeds=3).message.startswith("5 were done, 1 ran")


def test_points_run_side_by_side_each_in_a_checkout_of_its_own(server: str, toy: Path) -> None:
    """The knob lets a point end only once another one is at work, except the first, which runs alone."""
    (notes(toy) / "knob").write_text(
        "note('started', os.getcwd())\n"
        "begin = time.monotonic()\n"
        "while recipe['lr'] > 0.1 and len((notes / 'started').read_text().splitlines()) < 3:\n"
        "    assert time.monotonic() - begin < 60; time.sleep(0.05)\n"
    )
    (toy.parent / "grid.yaml").write_text(GRID.replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]"))
    state = run(toy, seeds=1, jobs=2)
    assert state.is_completed(), state.message
    first, *others = lines(notes(toy) / "started")
    assert len(set(others)) == 2
    assert first in others


def test_a_stage_without_recipes_is_measured_once_and_recipes_are_told_apart(server: str, toy: Path) -> None:
    state = run(toy, "points", seeds=1)
    assert state.is_completed(), state.message
    assert experiments_of(toy) == {"points-finetune-alone-s0", "points-finetune-slow-s0", "points-scratch-slow-s0"}
    assert [row["seeds"] for row in rows(toy, "points")] == [1, 1, 1]


def test_uncommitted_code_is_refused(server: str, toy: Path) -> None:
    (toy / "params.yaml").write_text((toy / "params.yaml").read_text().replace("width: 3", "width: 5"))
    state = run(toy, seeds=1)
    assert state.is_failed()
    assert "params.yaml" in state.message
    assert "commit these first" in state.message


def test_an_uncommitted_list_of_corrections_is_refused_under_any_name(toy: Path) -> None:
    params = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(params.replace("fixes.yaml", "reviewed.yaml"))
    (toy / "reviewed.yaml").write_text("[]\n")
    git(toy, "add", "--all")
    git(toy, "commit", "--quiet", "--message", "take another list")
    experiments.committed(toy)
    (toy / "reviewed.yaml").write_text("[{}]\n")
    with pytest.raises(ValueError, match=r"commit these first(.|\n)*reviewed\.yaml"):
        experiments.committed(toy)


@pytest.mark.parametrize(
    ("fixes", "message"),
    [
        ("new.yaml", r"commit these first(.|\n)*new\.yaml"),
        ("../mine.yaml", r"dataset\.fixes: \.\./mine\.yaml is outside"),
    ],
)
def test_a_list_of_corrections_that_no_commit_has_is_refused(toy: Path, fixes: str, message: str) -> None:
    (toy / "params.yaml").write_text((toy / "params.yaml").read_text().replace("fixes.yaml", fixes))
    git(toy, "commit", "--quiet", "--all", "--message", "take another list")
    (toy / fixes).write_text("[]\n")
    with pytest.raises(ValueError, match=message):
        experiments.committed(toy)


def test_a_second_sweep_of_the_same_name_is_turned_away(server: str, toy: Path) -> None:
    with dvc_stages.claimed(toy / ".cache/sweep-grid.lock"):
        state = run(toy, seeds=1)
    assert state.name == "TurnedAway"


@pytest.mark.slow  # how a flow is stopped is tested on the pipeline, what a sweep skips by what is done already, above
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_and_goes_on_where_it_was(
    server: str, toy: Path, number: signal.Signals
) -> None:
    (toy.parent / "grid.yaml").write_text(GRID.replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]"))
    (notes(toy) / "knob").write_text("if recipe['lr'] > 0.1: note('running', ''); time.sleep(600)")
    command = [sys.executable, "-m", "flows.sweep", str(toy.parent / "grid.yaml"), "--seeds", "1", "--jobs", "2"]
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=toy, env=environment) as process:
        wait_until(lambda: len(lines(notes(toy) / "running")) == 2, 240, "two points are at work")
        process.send_signal(number)
        process.wait(120)
    wait_until(lambda: processes_in(toy) == [], 60, "nothing is left")
    assert experiments_of(toy) == {"grid-0.1-s0"}
    (notes(toy) / "knob").unlink()
    assert run(toy, seeds=1).message.startswith("1 were done, 2 ran")


def test_the_command_line_shows_what_it_would_run(toy: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.sweep",
        str(toy.parent / "grid.yaml"),
        "--seeds",
        "1",
        "--dry-run",
        "-S",
        "width=7",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=toy, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == (
        "grid-0.1-s0 train@finetune ++width=7 ++train.finetune.lr=0.1 ++train.finetune.seed=0"
    )
    wrong = subprocess.run([*command[:3], "nothing"], cwd=toy, env=environment, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")


def test_the_command_line_refuses_a_misspelt_key_before_anything_starts(toy: Path) -> None:
    (toy.parent / "grid.yaml").write_text(GRID.replace("recipe.lr", "recipe.lrr"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for dry_run in ([], ["--dry-run"]):
        command = [sys.executable, "-m", "flows.sweep", str(toy.parent / "grid.yaml"), *dry_run]
        done = subprocess.run(command, cwd=toy, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert "train.finetune.lrr: unknown key (in 2 of 2 points" in done.stderr
        assert done.stdout == ""
    assert not (toy / ".cache").exists()


@pytest.mark.slow
def test_two_workers_in_two_clones_share_a_sweep(server: str, toy: Path, tmp_path: Path) -> None:
    origin, storage = tmp_path / "origin.git", tmp_path / "storage"
    dvc(toy, "remote", "add", "--default", "shared", str(storage))
    git(toy, "commit", "--quiet", "--all", "--message", "A remote")
    git(toy, "clone", "--quiet", "--bare", str(toy), str(origin))
    git(toy, "remote", "add", "origin", str(origin))
    (toy.parent / "grid.yaml").write_text(GRID.replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]"))
    # The last two points wait for each other: they can only end if both machines are at work.
    (notes(toy) / "knob").write_text(
        "note('started', os.getcwd())\n"
        "begin = time.monotonic()\n"
        "while recipe['lr'] > 0.1 and len((notes / 'started').read_text().splitlines()) < 3:\n"
        "    assert time.monotonic() - begin < 120; time.sleep(0.05)\n"
    )
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    prefect = [sys.executable, "-m", "prefect"]
    subprocess.run([*prefect, "work-pool", "create", "machines", "--type", "process"], env=environment, check=True)
    subprocess.run([*prefect, "--no-prompt", "deploy", "--name", "sweep-point"], cwd=ROOT, env=environment, check=True)
    workers = []
    try:
        for name in ("one", "two"):
            clone = tmp_path / name
            git(toy, "clone", "--quiet", str(origin), str(clone))
            identify(clone)
            worker = [*prefect, "worker", "start", "--pool", "machines", "--name", name, "--limit", "1"]
            own = {**environment, "PIPELINE_ROOT": str(clone)}
            workers.append(subprocess.Popen(worker, cwd=clone, env=own, start_new_session=True))
        state = run(toy, seeds=1, git_remote="origin")
        assert state.is_completed(), state.message
    finally:
        for process in workers:
            os.killpg(process.pid, signal.SIGKILL)  # asked to stop, a worker of Prefect's may take minutes
            process.wait()
    assert [row["validation_accuracy"] for row in rows(toy)] == pytest.approx([0.1, 0.2, 0.3])
    machines = {Path(line).relative_to(tmp_path).parts[0] for line in lines(notes(toy) / "started")}
    assert machines == {"one", "two"}
    assert len(lines(notes(toy) / "prepared")) == 1  # the second machine pulled what the first had prepared
    assert run(toy, seeds=1, git_remote="origin").message.startswith("3 were done, 0 ran")
