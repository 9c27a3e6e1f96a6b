"""A small experiment in a folder of its own: the checkout's files, params.yaml overridden."""

import atexit
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows import warm

ROOT = Path(__file__).parents[1]
DVC = (
    "dvc.cli", "dvc.commands.repro", "dvc.commands.experiments.run", "dvc.repo.reproduce",
    "dvc.repo.experiments.executor.local", "dvc.repo.experiments.queue.workspace",
)  # fmt: skip
REAL = ROOT.parent / "shared" / "real"

# Everything drawn, and as small as it can be and still go through every branch.
TINY: dict[str, Any] = {
    "dataset.source": "synthetic",
    "dataset.synthetic.num_train": 24,
    "dataset.synthetic.num_test": 12,
    "dataset.synthetic.side": 48,
    "model.architecture": "shufflenet_v2_x0_5",
    "model.weights": "synthetic",
    "pretrain.num_images": 32,
    "pretrain.batch_size": 16,
    "pretrain.epochs": 1,
    "preprocess.resize": 36,
    "preprocess.crop": 32,
    "train.finetune.batch_size": 8,
    "train.finetune.epochs": 2,
    "train.scratch.batch_size": 8,
    "train.scratch.epochs": 2,
    "runtime.save_every": 0.0,  # a resume file after every epoch
    "train.tuned.batch_size": 8,
    "train.tuned.epochs": 1,
    "evaluate.bootstrap_samples": 50,
    "export.max_accuracy_drop": 1.0,
    "export.min_speedup": 0.0,  # nor does their speed: whether a file is there must not hang on the clock
    "parity.int8": 10.0,  # weights this little trained do not survive 8 bits; that is not what is tested with them
}


def write_params(folder: Path, overrides: dict[str, Any], *, whole: bool = False) -> None:
    """folder/params.yaml: the checkout's own, with dotted keys set; unless `whole`, without `tuned`, which takes the longest."""
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    values["inspect"]["size"] = None  # no second, larger look at every image
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[last] = value
    if not whole:
        values["train"].pop("tuned", None)
        if values["export"]["recipe"] == "auto":
            values["export"]["recipe"] = next(iter(values["train"]))
    folder.mkdir(parents=True, exist_ok=True)
    YAML().dump(values, folder / "params.yaml")
    shutil.copy(ROOT / "fixes.yaml", folder)


def make_project(folder: Path, overrides: dict[str, Any]) -> Path:
    """A git and DVC project: the checkout's code and graph, and these params; committed."""
    for name in ("stages", "synthetic_images", "consumers", "flows", ".dvc", "artifacts"):
        ignore = shutil.ignore_patterns(
            "__pycache__", "cache", "tmp", "dist", "node_modules", "[!.]*" if name == "artifacts" else ""
        )
        shutil.copytree(ROOT / name, folder / name, ignore=ignore, dirs_exist_ok=True)
    for name in ("dvc.yaml", "masking.py", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    write_params(folder, overrides, whole=True)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Tiny"]):
        git(folder, *command)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def environment() -> dict[str, str]:
    """`python` is the one that runs the tests, on one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **dict.fromkeys(names, "test@localhost")}


def warm_environment() -> dict[str, str]:
    """As `environment`, but the stages are forks of one process that has imported their libraries."""
    plain = environment()
    return {**plain, "PATH": os.pathsep.join([str(warm_python(*warm.LIBRARIES).parent), plain["PATH"]])}


@cache
def warm_python(*libraries: str) -> Path:
    """A `python` whose modules are forks of one process that has imported these, for all tests in this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(warm.python(libraries)) / "python"


def dvc(folder: Path, *arguments: str, check: bool = True) -> str:
    """Output of a dvc command, both streams."""
    done = subprocess.run(
        [warm_python(*DVC), "-m", "dvc", *arguments],
        cwd=folder,
        env=warm_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def stage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m stages.<arguments>` in `folder`."""
    return subprocess.run(
        ["python", "-m", f"stages.{arguments[0]}", *arguments[1:]],
        cwd=folder,
        env=warm_environment(),
        text=True,
        capture_output=True,
    )


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
