"""How a stage ends: each kind of error as one line and its own exit code; what is a defect keeps its traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.shared.cli import TransientError, run
from tests.experiment import ROOT


def failing(error: BaseException) -> Callable[..., None]:
    def main(*_: str) -> None:
        raise error

    return main


def test_main_gets_the_words_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stages.train", "finetune", "--fast"])
    words: list[str] = []
    run(lambda *given: words.extend(given))
    assert words == ["finetune", "--fast"]


def test_what_a_stage_compiles_is_kept_in_the_project_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages.train"])
    for told, expected in ((None, str(tmp_path / ".cache" / "inductor")), ("/elsewhere", "/elsewhere")):
        monkeypatch.setenv(name := "TORCHINDUCTOR_CACHE_DIR", told or "")
        if not told:
            monkeypatch.delenv(name)
        run(lambda: None)
        assert os.environ[name] == expected


def test_too_many_words_are_a_usage_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.compare", "finetune"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "usage: python -m stages.compare\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("seed: -1 is below 0"), "error: seed: -1 is below 0"),
        (
            OSError(errno.ENOSPC, "No space left on device", "artifacts/x.npy"),
            "error: artifacts/x.npy: No space left on device; make room or mend the permissions, then run again",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "artifacts/x.npy"),
            "error: artifacts/x.npy: no such file; run the stages before this one: dvc repro",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "artifacts"),
            "error: artifacts: Permission denied; make room or mend the permissions, then run again",
        ),
        (
            FileNotFoundError("No such file or directory: a.safetensors"),  # safetensors' way
            "error: No such file or directory: a.safetensors; run the stages before this one: dvc repro",
        ),
        (OSError("odd"), "error: odd; make room or mend the permissions, then run again"),
    ],
)
def test_bad_input_and_bad_disks_are_one_line_and_exit_1(error: Exception, message: str) -> None:
    with pytest.raises(SystemExit) as end:
        run(failing(error))
    assert end.value.code == message  # python prints it to stderr and exits 1
    assert end.value.__suppress_context__


def test_a_fault_that_may_pass_is_exit_75(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(failing(TransientError("http://h/a.zip: silent for 30 s; run download again")))
    assert end.value.code == 75
    assert capsys.readouterr().err == "error: http://h/a.zip: silent for 30 s; run download again\n"


def test_a_defect_is_not_disguised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError("a defect")))
