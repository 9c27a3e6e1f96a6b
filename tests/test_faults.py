"""Machines that fail: a full disk, no permission, a clock that jumps, two runs at once. Said clearly, and nothing is lost."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.shared.dataset import TrainSplit
from tests.experiment import TINY, environment, make_project
from tests.killer import Kill
from tests.nursery import Nursery
from tests.test_kills import copy_of, results
from tests.test_training import model_and_head, train

TO_SCRATCH = ["download dataset", "download model", "pretrain", "preprocess", "features", "inspect", "train scratch"]
REST = [
    "zero_shot",
    "train finetune",
    "train tuned",
    "evaluate finetune",
    "evaluate scratch",
    "evaluate tuned",
    "compare",
    "select",
    "export",
    "check_parity",
    "report",
]
OUTS = {
    "download dataset": "download/dataset", "pretrain": "pretrain", "preprocess": "preprocess", "train scratch": "train/scratch",
    "evaluate finetune": "evaluate/finetune", "compare": "comparison.json", "export": "export",
    "check_parity": "parity.json", "report": "report.html",
}  # fmt: skip
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in list(OUTS)[4:]]
NOBODY = 65534
ADVICE = "make room or mend the permissions, then run again"
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
EARLY, LATE = 86_400, 4_102_444_800  # 1970 and 2100


class Stages:
    """A project's stages, run as forks without DVC; each answers with its exit code and what it printed."""

    def __init__(self, root: Path, nursery: Nursery) -> None:
        self.root, self.nursery = root, nursery

    def run(self, stage: str, *, file_size: int | None = None, user: int | None = None) -> tuple[int, str]:
        log = self.root.with_suffix(".log")
        log.unlink(missing_ok=True)
        command = f"stages.{stage}".split()
        code = self.nursery.run(
            self.root, self.root.with_suffix(".journal"), log, *command, kill=Kill(), file_size=file_size, user=user
        )
        return code, log.read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """A project, run up to the training of `scratch`."""
    root = make_project(tmp_path_factory.mktemp("faults") / "done", TINY)
    for stage in TO_SCRATCH:
        code, output = Stages(root, nursery).run(stage)
        assert code == 0, output
    return root


@pytest.fixture(scope="module")
def all_done(done: Path, nursery: Nursery) -> Path:
    root = copy_of(done, "all-done", nursery).root
    for stage in REST:
        code, output = Stages(root, nursery).run(stage)
        assert code == 0, output
    return root


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, nursery: Nursery) -> Stages:
    """A copy of the project that is done as far as the test's stage needs."""
    stage = request.node.callspec.params.get("stage", "") if hasattr(request.node, "callspec") else ""
    source = request.getfixturevalue("done" if stage in ("", *TO_SCRATCH) else "all_done")
    return Stages(shutil.copytree(source, tmp_path / "project", symlinks=True), nursery)


def remove_outs(root: Path, stage: str) -> None:
    path = root / "artifacts" / OUTS[stage]
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / "artifacts").rglob("*") if path.is_file())


def check_clear_error(code: int, output: str, *words: str) -> None:
    assert code == 1, output
    assert "Traceback" not in output
    (error,) = re.findall(r"^error: .*", output, re.MULTILINE)
    for word in words:
        assert word in error


@pytest.mark.parametrize("stage", [*list(OUTS)[:4], *LATER])
def test_a_full_disk_is_an_error_with_a_path_and_leaves_nothing_half_written(project: Stages, stage: str) -> None:
    expected = results(project.root)
    remove_outs(project.root, stage)
    before = files_of(project.root)
    code, output = project.run(stage, file_size=600)  # as a full disk does, a limit ends a write in its middle
    check_clear_error(code, output, "File too large")
    assert re.search(r"error: (artifacts|\.cache)/", output)
    assert set(files_of(project.root)) - set(before) <= set(expected)
    assert not list(project.root.rglob(".*.part"))
    assert project.run(stage)[0] == 0
    assert results(project.root) == expected


@pytest.mark.parametrize("stage", ["download dataset", "preprocess", "train scratch"])
def test_no_permission_is_an_error_with_a_path_and_changes_nothing(project: Stages, stage: str) -> None:
    before = results(project.root)
    (project.root / ".cache").chmod(0o555)
    (project.root / "artifacts" / OUTS[stage]).parent.chmod(0o555)
    (project.root / "artifacts" / OUTS[stage]).chmod(0o555)
    for path in project.root.glob(".cache/**/"):
        path.chmod(0o555)
    code, output = project.run(stage, user=NOBODY if os.getuid() == 0 else None)
    check_clear_error(code, output, "Permission denied", ADVICE)
    assert re.search(r"error: (artifacts|\.cache)/", output)
    assert results(project.root) == before


def test_an_image_that_may_not_be_read_stops_preprocess_by_name(project: Stages) -> None:
    image = next((project.root / "artifacts/download/dataset/images").rglob("*.png"))
    image.chmod(0)
    for path in [project.root, *project.root.glob("artifacts/**/")]:
        path.chmod(0o777)
    code, output = project.run("preprocess", user=NOBODY if os.getuid() == 0 else None)
    check_clear_error(code, output, f"{image.relative_to(project.root)}: cannot be opened: Permission denied; mend")


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory."""
    folder.mkdir(exist_ok=True)
    options = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with mounted(tmp_path / "disk", 8) as disk:
            yield disk
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a file system here: {error.stderr}")


@root_only
def test_a_disk_that_fills_up_under_dvc_loses_nothing(small_disk: Path, nursery: Nursery, done: Path) -> None:
    """There is room for the data set, and none for DVC's copy of it."""
    project = copy_of(done, "unused", nursery)
    project.root = shutil.copytree(done, small_disk / "project", ignore=shutil.ignore_patterns("artifacts", ".cache"))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - 500_000)
    project.journal.unlink(missing_ok=True)
    (project.root / ".dvc" / "config.local").write_text("[cache]\n    type = copy\n")  # links would take no room
    code = project.repro("download@dataset")
    assert code == 255
    assert "No space left on device" in project.output()
    assert "Traceback" not in project.output()
    filler.unlink()
    assert project.repro("download@dataset") == 0, project.output()
    images = "artifacts/download/dataset/images"
    assert {path for path in results(project.root) if images in path} == {
        path for path in results(done) if images in path
    }


@root_only
def test_a_disk_that_became_read_only_is_an_error_with_a_path(small_disk: Path, done: Path, nursery: Nursery) -> None:
    root = shutil.copytree(done, small_disk / "project", ignore=shutil.ignore_patterns("artifacts"))
    stages = Stages(root, nursery)
    assert stages.run("download dataset")[0] == 0
    before = results(root)
    remount(small_disk, "ro")
    log, journal = (small_disk.parent / name for name in ("log", "journal"))
    code = nursery.run(root, journal, log, "stages.download", "dataset")
    check_clear_error(code, log.read_text(), "Read-only file system", ADVICE)
    assert results(root) == before


@pytest.mark.parametrize("when", [EARLY, LATE])
def test_dvc_and_its_stages_do_not_go_by_the_clock(tmp_path: Path, nursery: Nursery, done: Path, when: int) -> None:
    """Files from long before and from long after now: the same as a clock that jumped the other way."""
    project = copy_of(done, f"clock-{when}", nursery)
    shutil.rmtree(project.root / "artifacts/download")
    assert project.repro("preprocess") == 0, project.output()
    expected = results(project.root)
    for path in project.root.rglob("*"):
        if ".git" not in path.parts and not path.is_symlink():
            os.utime(path, (when, when))
    assert project.repro("preprocess") == 0, project.output()
    assert "Running stage" not in project.output()
    assert project.repro("--force", "-s", "preprocess") == 0, project.output()
    assert results(project.root) == expected


@pytest.mark.parametrize("when", [EARLY, LATE])
def test_a_resume_file_is_taken_whatever_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], when: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 36, 36, 3), dtype=np.uint8)
    split = TrainSplit(pixels, np.full((12, 2), 36, np.int32), np.arange(12, dtype=np.int64) % 2)
    path = tmp_path / "resume.pt"
    train(*model_and_head(), split, epochs=1, batch_size=6, resume_path=path)
    os.utime(path, (when, when))
    train(*model_and_head(), split, epochs=1, batch_size=6, resume_path=path)
    assert f"resuming after epoch 1 ({path})" in capsys.readouterr().out


def start(root: Path, *command: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=root, env=environment(), text=True, **pipes)


def wait_for_line(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    seen = ""
    while words not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


@contextlib.contextmanager
def downloading(root: Path) -> Iterator[None]:
    """As if another process were downloading the dataset into this checkout."""
    lock = root / ".cache/download/dataset.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


WAITING = "another process is downloading the dataset; waiting for it"


def test_two_repros_at_once_one_is_turned_away_with_a_reason(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", TINY)
    with downloading(root):  # so that the first is in the middle of its stage for as long as the second needs
        first = start(root, "dvc", "repro", "download@dataset")
        wait_for_line(first, WAITING)
        second = start(root, "dvc", "repro", "download@dataset")
        said = second.communicate()[0]
    assert second.returncode == 255
    assert "artifacts/download/dataset' is busy, it is being blocked by" in said
    assert f"(PID {first.pid})" in said
    rest = first.communicate()[0]
    assert first.returncode == 0, rest
    third = start(root, "dvc", "repro", "download@dataset")
    assert "didn't change, skipping" in third.communicate()[0]
    assert third.returncode == 0


def test_two_downloads_at_once_wait_for_each_other(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", TINY)
    with downloading(root):
        both = [start(root, "stages.download", "dataset") for _ in range(2)]
        for process in both:
            wait_for_line(process, WAITING)
    rest = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], rest
    assert len(list((root / "artifacts/download/dataset").rglob("*.png"))) == 36
    assert not list(root.rglob(".*.part"))
