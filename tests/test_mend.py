"""What a killed DVC leaves in pieces is removed, and nothing else."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.mend import mend
from tests import toy_project


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


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.9])
def test_a_torn_lock_is_removed_and_the_next_repro_writes_it_anew(toy: Path, kept: float) -> None:
    lock = toy / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(whole[: int(kept * len(whole))])
    removed = mend(toy)
    assert removed == [] or "dvc.lock" in removed[0]
    toy_project.dvc(toy, "repro", "alone")
    assert lock.read_bytes() == whole


def test_a_torn_rwlock_and_an_empty_note_of_a_run_are_removed(toy: Path) -> None:
    rwlock, note = toy / ".dvc/tmp/rwlock", toy / ".dvc/cache/runs/ab" / ("ab" + 62 * "0")
    rwlock.write_text('{"/some/path": {"wri')
    note.mkdir(parents=True)
    assert len(mend(toy)) == 2
    assert not rwlock.exists()
    assert not note.exists()


def test_where_a_dvc_is_at_work_nothing_is_removed(toy: Path) -> None:
    (toy / "dvc.lock").write_text("schema: '2.0'\nstag")
    with Repo(str(toy)) as working, working.lock:
        assert mend(toy) == []
    assert (toy / "dvc.lock").exists()
