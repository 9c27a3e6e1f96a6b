"""What a killed DVC leaves in pieces is cleared away, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo

from flows.mend import mend
from tests import toy_project
from tests.toy_project import wait_until


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    project = toy_project.create(tmp_path / "toy")
    toy_project.dvc(project, "repro", "--quiet", "alone")
    return project


def test_a_sound_project_is_left_alone(toy: Path) -> None:
    kept = [
        toy / "dvc.lock",
        toy / ".dvc/tmp/rwlock",
        *(toy / ".dvc/cache").rglob("*"),
        *(toy / "artifacts").rglob("*"),
    ]
    before = {path: path.read_bytes() for path in kept if path.is_file()}
    assert len(before) > 4
    assert mend(toy) == []
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_torn_lock_is_set_aside_and_the_next_repro_writes_it_anew(toy: Path, share: float) -> None:
    lock = toy / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(whole[: int(share * len(whole))])
    removed = mend(toy)
    for what in removed:
        (kept,) = (toy / ".cache").glob("dvc.lock-*")
        assert "dvc.lock" in what
        assert kept.read_bytes() == whole[: int(share * len(whole))]
    toy_project.dvc(toy, "repro", "alone")
    assert lock.read_bytes() == whole


CONFLICT = b"""<<<<<<< HEAD
schema: '2.0'
=======
schema: '2.0'
stages: {}
>>>>>>> theirs
"""


def test_a_lock_with_a_merge_conflict_is_a_persons_work_and_stays(toy: Path) -> None:
    lock = toy / "dvc.lock"
    lock.write_bytes(CONFLICT + lock.read_bytes())
    before = lock.read_bytes()
    with pytest.raises(ValueError, match=r"merge conflict.*git checkout --ours dvc.lock"):
        mend(toy)
    assert lock.read_bytes() == before


def test_the_command_outside_a_project_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "flows.mend"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("run from the project's root, in a git clone\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_torn_rwlock_and_an_empty_note_of_a_run_are_removed(toy: Path) -> None:
    rwlock, note = toy / ".dvc/tmp/rwlock", toy / ".dvc/cache/runs/ab" / ("ab" + 62 * "0")
    rwlock.write_text('{"/some/path": {"wri')
    note.mkdir(parents=True)
    os.utime(note, (0, 0))
    fresh = note.with_name("ab" + 62 * "1")  # another clone is about to fill it
    fresh.mkdir()
    assert len(mend(toy)) == 2
    assert fresh.exists()
    assert not rwlock.exists()
    assert not note.exists()


def test_an_rwlock_held_by_a_zombie_is_removed_and_one_held_by_the_living_is_not(toy: Path) -> None:
    rwlock = toy / ".dvc/tmp/rwlock"
    zombie = subprocess.Popen([sys.executable, "-c", ""])  # nobody waits for it
    wait_until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE, 20, "it has ended")
    held = {"pid": zombie.pid, "cmd": "dvc repro"}
    out = str(toy / "artifacts/alone")
    rwlock.write_text(json.dumps({"write": {out: held}, "read": {str(toy / "knobs"): [held]}}))
    (removed,) = mend(toy)
    assert "rwlock (held by processes that have ended)" in removed
    toy_project.dvc(toy, "repro", "--force", "alone")

    rwlock.write_text(json.dumps({"write": {out: held}, "read": {out: [held | {"pid": os.getpid()}]}}))
    assert mend(toy) == []
    zombie.wait()


def test_what_a_killed_stage_had_begun_to_write_goes_unless_it_may_be_at_work(toy: Path) -> None:
    files = [".table.png.0123abcd.part", "train/tuned/.history.csv.0123abcd.part", "preprocess/.train.part/shard-000"]
    being_written = [".table.md.0123abcd.part", "download/.dataset.part/unpacked/1.jpg"]
    for name in [*files, *being_written]:
        (toy / "artifacts" / name).parent.mkdir(parents=True, exist_ok=True)
        (toy / "artifacts" / name).write_text("half")
    for name in [*files, "preprocess/.train.part", "download/.dataset.part", "download/.dataset.part/unpacked"]:
        os.utime(toy / "artifacts" / name, (0, 0))

    rwlock = toy / ".dvc/tmp/rwlock"
    rwlock.write_text(json.dumps({"write": {str(toy / "artifacts"): {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    assert mend(toy) == []
    rwlock.write_text("{}")
    assert len(mend(toy)) == 3
    assert [(toy / "artifacts" / name).exists() for name in [*files, *being_written]] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("content", ["[]", '{"write": []}', '{"write": {"a": {}}}'])
def test_an_rwlock_of_another_shape_is_in_pieces(toy: Path, content: str) -> None:
    (toy / ".dvc/tmp/rwlock").write_text(content)
    assert mend(toy) == [".dvc/tmp/rwlock (in pieces)"]


def test_where_a_dvc_is_at_work_nothing_is_removed(toy: Path) -> None:
    (toy / "dvc.lock").write_text("schema: '2.0'\nstag")
    with Repo(str(toy)) as working, working.lock:
        assert mend(toy) == []
    assert (toy / "dvc.lock").exists()
