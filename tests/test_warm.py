"""flows/warm.py: stages that are forks behave as fresh processes do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import warm
from tests.toy_project import processes_in, wait_until

MODULE = """
import os, sys
print("loaded" if "colorsys" in sys.modules else "fresh", os.getcwd(), os.environ["COLOR"], *sys.argv[1:], flush=True)
print("words of warning", file=sys.stderr)
sys.stdin.read()
raise SystemExit(int(sys.argv[1]) if sys.argv[1:] else "the disk is full")
"""


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """The warm python, once it has loaded a library that nobody else would."""
    (tmp_path / "stage.py").write_text(MODULE)
    with warm.python(["colorsys"]) as folder:
        wait_until((folder / "socket").exists, 60, "the server listens")
        yield folder / "python"


def run(python: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLOR": "red"}
    return subprocess.run([python, *words], cwd=folder, env=environment, input="", capture_output=True, text=True)


def test_a_module_runs_where_and_as_it_was_asked_for_with_the_libraries_loaded(python: Path, tmp_path: Path) -> None:
    for code in (0, 7):
        done = run(python, tmp_path, "-m", "stage", str(code), "two words")
        assert done.stdout == f"loaded {tmp_path} red {code} two words\n"
        assert done.stderr == "words of warning\n"
        assert done.returncode == code
    told = run(python, tmp_path, "-m", "stage")
    assert (told.returncode, told.stderr) == (1, "words of warning\nthe disk is full\n")


def test_torch_takes_the_threads_that_are_asked_for(tmp_path: Path) -> None:
    """The server's own number was read when torch was imported."""
    (tmp_path / "torch.py").write_text("number = 2\ndef set_num_threads(asked): global number; number = asked\n")
    (tmp_path / "stage.py").write_text("import torch\nprint(torch.number)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with warm.python(["torch"]) as folder:
            for asked in ("3", "3,1"):
                patch.setenv("OMP_NUM_THREADS", asked)
                assert run(folder / "python", tmp_path, "-m", "stage").stdout == "3\n"


def test_a_defect_has_its_traceback_and_a_killed_stage_its_signal(python: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    done = run(python, tmp_path, "-m", "broken")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert run(python, tmp_path, "-m", "killed").returncode == 137


def test_libraries_that_were_never_imported_are_compiled_beside_the_first_ones(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.py").write_text(f"import os; print(os.getpid(), file=open({str(tmp_path / name)!r}, 'a'))")
    (tmp_path / "space").mkdir()  # as ruamel is of ruamel.yaml: a namespace, which has no file
    (tmp_path / "space" / "inner.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        for imports in ({"one": 1, "two": 1, "three": 2}, {"one": 2, "two": 2, "three": 3}):
            with warm.python(["one", "two", "three", "space.inner"]) as folder:
                wait_until((folder / "socket").exists, 60, "the server listens")
            assert {name: len((tmp_path / name).read_text().split()) for name in imports} == imports


def test_what_is_no_module_goes_to_the_real_python(python: Path, tmp_path: Path) -> None:
    done = run(python, tmp_path, "-c", "import sys; print('colorsys' in sys.modules, sys.executable)")
    assert done.stdout == f"False {sys.executable}\n"


def test_what_needs_no_library_does_not_wait_for_any(tmp_path: Path) -> None:
    (tmp_path / "slow_library.py").write_text("import time; time.sleep(600)")
    (tmp_path / "stage.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with warm.python(["slow_library"], light=["stage 0"]) as folder:
            done = run(folder / "python", tmp_path, "-m", "stage", "0")
    assert done.stdout == f"fresh {tmp_path} red 0\n"


def test_without_its_server_it_is_the_real_python(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(MODULE)
    with warm.python(["no_such_library"]) as folder:
        done = run(folder / "python", tmp_path, "-m", "stage", "0")
    assert done.stdout == f"fresh {tmp_path} red 0\n"


def test_nothing_is_left_when_the_command_has_ended(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import pathlib, time; pathlib.Path('running').touch(); time.sleep(600)")
    with warm.python(["colorsys"]) as folder:
        wait_until((folder / "socket").exists, 60, "the server listens")
        client = subprocess.Popen([folder / "python", "-m", "slow"], cwd=tmp_path)
        wait_until((tmp_path / "running").exists, 30, "the stage runs")
    assert client.wait(10) != 0
    assert processes_in(tmp_path) == []
