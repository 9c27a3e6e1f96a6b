"""Work on a project on disk: git, dvc, the environment of a stage, YAML as DVC reads it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import supervise

GRACE = 10.0  # seconds between TERM and KILL; Prefect kills a cancelled flow 30 s after TERM
TRANSIENT = os.EX_TEMPFAIL  # exit code of a stage that asks to be tried again


def git(folder: Path, *words: str) -> str:
    """Return what a git command prints. Raises ValueError with what git complains about, or where there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("git is not installed; the project's files and experiments are known by it") from None
    if done.returncode:
        raise ValueError(f"{folder}: `git {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout.strip()


def dvc(folder: Path, *words: str) -> None:
    """Run a dvc command, its stdout dropped, and wait for it. Raises RuntimeError where it fails."""
    process = supervise.start(dvc_command(*words), grace=GRACE, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        if code := process.wait():
            raise RuntimeError(f"{folder}: `dvc {' '.join(words)}` exited with {code}; its message is above")
    finally:
        supervise.stop(process, grace=GRACE)


def dvc_command(*words: str) -> list[str]:
    """The command line of this environment's DVC, which waits where another DVC is at work in the same project."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", *words]


def stage_environment(**settings: str) -> dict[str, str]:
    """This process's environment, so set that `python` in a stage's command is the python that runs the flow."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": path, **settings}


def read_yaml(path: Path) -> Any:
    """Read a YAML file as DVC does. Raises ValueError naming it where it is missing or no YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2. Raises ValueError saying where it is wrong."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None
