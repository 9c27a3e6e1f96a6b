"""Run the whole pipeline on drawn images, in a copy of the checkout: `python -m flows.demo`.

The copy is .demo/, a git and DVC project of its own, so the checkout's params.yaml, dvc.lock and artifacts stay untouched.
A second run updates the copy and runs only what changed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows import overrides, warm
from flows.project import dvc_command, git, read_yaml, stage_environment
from flows.sweep.capacity import num_cores

ROOT = Path(__file__).parents[1]
DEMO = ROOT / ".demo"
OVERRIDES = Path(__file__).with_suffix(".yaml")


def main() -> None:
    files = project_files()
    remove_others(files, DEMO)
    copy(files, DEMO)
    overrides.write(DEMO / "params.yaml", read_yaml(OVERRIDES))
    commit(DEMO)
    repro()
    print(summary(DEMO / "artifacts"))


def project_files() -> list[str]:
    """The checkout's files as git knows them, uncommitted edits included. Raises ValueError outside git."""
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    return [name for name in names if name and (ROOT / name).is_file() and name != "dvc.lock"]


def remove_others(files: list[str], target: Path) -> None:
    """Remove what an earlier demo copied and the checkout no longer has."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=target, capture_output=True) if target.exists() else None
    names = listed.stdout.decode().split("\0") if listed and listed.returncode == 0 else []
    for name in set(filter(None, names)) - {*files, "dvc.lock"}:
        (target / name).unlink(missing_ok=True)


def copy(files: list[str], target: Path) -> None:
    for name in files:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path)


def commit(folder: Path) -> None:
    """Make the copy a repository, so that `dvc metrics diff` and `dvc exp run` work in it too."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    author = ["-c", "user.name=demo", "-c", "user.email=demo@localhost"]
    git(folder, *author, "commit", "--quiet", "--allow-empty", "--message", "The demo")


def repro() -> None:
    """Run the stages: the trainings side by side, on a thread each, which wastes less than two; evaluations beside the export."""
    recipes = list(read_yaml(DEMO / "params.yaml")["train"])
    with warm.python(light=["stages.download dataset"]) as folder:
        environment = stage_environment()
        environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
        run([dvc_command("repro", "inspect")], environment)
        threads = str(max(1, num_cores() // len(recipes)))
        run([these_alone(f"train@{recipe}") for recipe in recipes], {**environment, "OMP_NUM_THREADS": threads})
        evaluations = these_alone("zero_shot", *(f"evaluate@{recipe}" for recipe in recipes), "compare")
        run([evaluations, these_alone("select", "export", "check_parity")], environment)
        run([dvc_command("repro")], environment)


def these_alone(*stages: str) -> list[str]:
    """The command that runs the stages in this order and looks at no others, whose files another DVC may be writing."""
    return dvc_command("repro", "--single-item", *stages)


def run(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
    """Run the commands at the same time, each to its end. Raises SystemExit with the code of one that fails or is killed."""
    started = [subprocess.Popen(command, cwd=DEMO, env=environment) for command in commands]
    codes = [process.wait() for process in started]
    if failed := [code for code in codes if code]:
        raise SystemExit(failed[0] if failed[0] > 0 else 128 - failed[0])


def summary(artifacts: Path) -> str:
    where, python = from_here(artifacts), from_here(Path(sys.executable))
    comparison = (artifacts / "comparison.md").read_text(encoding="utf-8")
    return (
        f"\n{comparison}\nreport: {where / 'report.html'}\nmodel:  {where / 'model.onnx'}\n"
        f"try it: {python} consumers/predict.py --model {where / 'model.onnx'} IMAGE..., or make server MODEL={where / 'model.onnx'}"
    )


def from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
