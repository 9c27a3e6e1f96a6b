"""A small real git and DVC project whose stages are one-line commands, and ways to look at the processes it starts.

    first -> second -> third        (a chain)
    alone                           (an independent branch)
    download@dataset, download@model  (a matrix)

A stage does what `knobs/<stage>` says, if that file exists when it runs: python source, executed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows import project
from tests.experiment import DVC, warm_python

DVC_YAML = """\
stages:
  first:
    cmd: python stage.py first
    deps: [source.txt]
    params: [number]
    outs: [artifacts/first]
  second:
    cmd: python stage.py second
    deps: [artifacts/first]
    outs: [artifacts/second]
  third:
    cmd: python stage.py third
    deps: [artifacts/second]
    outs: [artifacts/third]
  alone:
    cmd: python stage.py alone
    params: [other]
    outs: [artifacts/alone]
  download:
    matrix:
      what: [dataset, model]
    cmd: python stage.py download@${item.what}
    params:
      - ${item.what}
    outs:
      - artifacts/download@${item.what}
"""

STAGE_PY = """\
import os, pathlib, sys
name = sys.argv[1]
print(f"{name} says hello", flush=True)
knob = pathlib.Path(os.environ.get("KNOBS", "knobs"), name)
if knob.exists():
    exec(knob.read_text())
pathlib.Path("artifacts", name).write_text(name + pathlib.Path("source.txt").read_text())
"""

PARAMS_PY = """\
import json, sys
for line in sys.stdin:
    name, values = json.loads(line)
    numbers = {"number": values.get("number", 0)} | {f"train.{r}.lr": v["lr"] for r, v in values.get("train", {}).items()}
    for key, value in numbers.items():
        if isinstance(value, str):
            print(json.dumps([name, f"{key}: not a number (found {value!r})"]))
    for recipe, section in values.get("train", {}).items():
        for key in set(section) - {"lr", "seed"}:
            print(json.dumps([name, f"train.{recipe}.{key}: unknown key"]))
"""  # in place of the project's typed params

SLEEP = "import time; pathlib.Path('running').touch(); time.sleep(600)"
STUBBORN = """\
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True)
time.sleep(0.3)
pathlib.Path("running").touch()
time.sleep(600)
"""


def create(root: Path) -> Path:
    """Make the project in `root` (a new folder) and commit it."""
    (root / "knobs").mkdir(parents=True)
    files = {
        ".gitignore": "/.cache/\n/knobs/\n/running\n/__pycache__/\n",
        "dvc.yaml": DVC_YAML,
        "stage.py": STAGE_PY,
        "params.yaml": "number: 1\nother: 1\ndataset:\n  source: synthetic\nmodel:\n  weights: synthetic\n",
        "source.txt": "text",
    }
    return commit_project(root, files)


def commit_project(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a project, and those that every DVC project of the tests has, and commit them all."""
    common = {
        ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n    autostage = false\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".gitignore": "/.cache/\n__pycache__/\n",
        "artifacts/.gitignore": "*\n!.gitignore\n",
        "stages/__init__.py": "",
        "stages/shared/__init__.py": "",
        "stages/shared/params.py": PARAMS_PY,
    }
    for name, text in {**common, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet", "--initial-branch", "main")
    identify(root)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "A project")
    return root


def identify(root: Path) -> None:
    git(root, "config", "user.name", "Toy")
    git(root, "config", "user.email", "toy@example.invalid")


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def dvc(root: Path, *words: str) -> str:
    command = [warm_python(*DVC), "-m", "dvc", *words]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    ).stdout


def fork_dvc(patch: pytest.MonkeyPatch) -> None:
    """Have the flows start a DVC that is a fork of a process that has imported it; stopping it would stop its client alone."""
    patch.setattr(project, "sys", SimpleNamespace(executable=str(warm_python(*DVC))))


def processes_in(root: Path) -> list[str]:
    """Command lines of the processes that work in `root`: the stages, their shells, dvc, and their supervisors."""
    found = []
    for process in psutil.process_iter():
        try:
            working, command = Path(process.cwd()), process.cmdline()
        except (psutil.Error, OSError):
            continue
        if working.is_relative_to(root) and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(" ".join(command))
    return found


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
