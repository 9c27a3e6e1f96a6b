"""Run a sweep's experiments with DVC, and read what the finished ones measured.

Each run has a checkout of its own, a clone under `.cache/sweep/`: DVC keeps the experiments that wait, also those of `exp
run --temp`, in one list per clone, and a run that ends takes what another has just put there. A clone stays for the next
run, with the prepared data in place; all share the project's DVC cache, so no stage runs twice on the same input.
"""

import contextlib
import itertools
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from dvc.repo import Repo

from flows import checkout, dvc_experiments, dvc_stages, overrides, supervise
from flows.project import dvc_command, git, parse_yaml, stage_environment
from flows.sweep.capacity import Memory, free_gpu_memory
from flows.sweep.plan import Experiment

CHECKOUTS = Path(".cache/sweep")
# What an experiment is made of, beside the list of corrections that params.yaml names, and must be committed.
CODE = ("params.yaml", "dvc.yaml", "stages", "synthetic_images", "masking.py")
TAIL = 20  # lines of a failed run that are shown
_preparing = threading.Lock()  # DVC's settings are edited in this process


class ExperimentFailed(Exception):  # noqa: N818, said as what happened
    """An experiment's stage failed; `exit_code` is its command's own."""

    def __init__(self, name: str, exit_code: int, tail: str) -> None:
        super().__init__(name, exit_code, tail)
        self.name, self.exit_code, self.tail = name, exit_code, tail

    def __str__(self) -> str:
        return f"{self.name}: exited with code {self.exit_code}; its last lines:\n{self.tail}"


class Stopped(Exception):  # noqa: N818, said as what happened
    """An experiment was stopped because the sweep was."""


def committed(project: Path) -> str:
    """The project's last commit. Raises ValueError where code or params differ from it: experiments are made of commits."""
    fixes = params_at(project, "HEAD")["dataset"]["fixes"]
    if not (project / fixes).resolve().is_relative_to(project.resolve()):
        raise ValueError(f"dataset.fixes: {fixes} is outside {project}, and experiments have what is committed there")
    changed = git(project, "status", "--porcelain", "--untracked-files=no", "--", *CODE, fixes)
    if changed := changed or git(project, "ls-files", "--others", "--", fixes):
        raise ValueError(
            f"{project}: commit these first, or set values with -S; a sweep runs the last commit:\n{changed}"
        )
    return git(project, "rev-parse", "HEAD")


def validate(project: Path, commit: str, experiments: Iterable[Experiment]) -> None:
    """Raises ValueError naming each wrong key, with how many of the points have it, or a recipe without validation."""
    base = params_at(project, commit)
    points: dict[tuple[str, str], Experiment] = {}  # the first of its seeds
    for experiment in experiments:
        points.setdefault((str(experiment.point), experiment.target), experiment)
    params = {e.name: overrides.applied(base, e.settings) for e in points.values()}
    overrides.validate(project, params.items())
    for experiment in points.values():
        stage, _, recipe = experiment.scored.partition("@")
        if stage == "train" and params[experiment.name]["train"].get(recipe, {}).get("validation") == "none":
            raise ValueError(
                f"{experiment.name}: train.{recipe}.validation is none, and points are ranked by validation alone; "
                f"add recipe.validation: holdout (or folds) to the settings, or -S train.{recipe}.validation=holdout"
            )


def finished(project: Path, commit: str, experiments: Iterable[Experiment]) -> dict[str, dict[str, Any]]:
    """Name -> metrics of the experiments that exist at `commit`, were run with these very params, and have metrics."""
    references = dvc_experiments.revisions(project, commit)
    base = params_at(project, commit)
    ours = {
        experiment.name: experiment
        for experiment in experiments
        if experiment.name in references
        and params_at(project, references[experiment.name]) == overrides.applied(base, experiment.settings)
    }
    found = {}
    for path in {experiment.metrics for experiment in ours.values()}:
        names = {references[name]: name for name, experiment in ours.items() if experiment.metrics == path}
        with contextlib.chdir(project), Repo() as repo:  # DVC names files relative to the working directory
            shown = repo.metrics.show(targets=[path], revs=list(names), on_error="return")
        for revision, name in names.items():
            if metrics := shown.get(revision, {}).get("data", {}).get(path, {}).get("data"):
                found[name] = metrics
    return found


def run(
    project: Path, experiment: Experiment, stopping: threading.Event, *, commit: str, threads: int, pull: bool = False
) -> Memory:
    """Run the experiment at `commit` and hand it to the project; returns the most memory that it took.

    Everything it prints goes to `.cache/sweep/<name>.log`. `pull` fetches from the DVC remote what others have computed.
    Raises ExperimentFailed, and Stopped once `stopping` is set. Whatever ends this function, no process of the experiment is left.
    """
    with _free_checkout(project) as folder:
        with _preparing:
            workspace = _fresh(project, folder, commit)
        words = [word for override in experiment.overrides for word in ("--set-param", override)]
        command = ["exp", "run", "--name", experiment.name, *["--pull"] * pull, *words, experiment.target]
        log = project / CHECKOUTS / f"{experiment.name}.log"
        with log.open("wb") as file:
            process = supervise.start(
                dvc_command(*command),
                grace=dvc_stages.GRACE,
                cwd=workspace,
                env=stage_environment(OMP_NUM_THREADS=str(threads)),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            peak = _watch(process, stopping)
        finally:
            supervise.stop(process, grace=dvc_stages.GRACE)
        if process.returncode:
            raise _failure(experiment.name, process.returncode, log)
        dvc_experiments.hand_over(workspace, project, commit, experiment.name)
    return peak


def params_at(project: Path, revision: str) -> Any:
    """params.yaml as a commit or an experiment has it."""
    return parse_yaml(git(project, "show", f"{revision}:params.yaml"))


@contextlib.contextmanager
def _free_checkout(project: Path) -> Iterator[Path]:
    """Hold the first checkout that no run is at work in, in whatever process; yields its folder in the project."""
    for number in itertools.count():
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(dvc_stages.claimed(project / CHECKOUTS / f"{number}.lock"))
            except dvc_stages.Busy:
                continue
            yield CHECKOUTS / str(number)
            return


def _fresh(project: Path, folder: Path, commit: str) -> Path:
    """The checkout at `commit`, without what an interrupted run has left of DVC's own; prepared data and outs stay."""
    for left in (".git/index.lock", ".git/refs/exps", ".dvc/tmp"):
        path = project / folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    workspace = checkout.prepare(project, folder, commit)
    git(workspace, "reset", "--quiet", "--hard")
    return workspace


def _watch(process: "subprocess.Popen[bytes]", stopping: threading.Event) -> Memory:
    """Wait for the end; returns the most memory that the process and all below it held at one time.

    On a GPU it is the drop in free memory, which means something only while nothing else starts there.
    """
    host, free_before = 0, free_gpu_memory()
    lowest = free_before
    for look in itertools.count():
        if process.poll() is not None:
            break
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(process.pid)
            host = max(host, sum(p.memory_info().rss for p in [top, *top.children(recursive=True)]))
        if free_before and look % 5 == 0:
            lowest = min(lowest, free_gpu_memory())
        if stopping.wait(0.2):
            raise Stopped("stopped with the sweep")
    return Memory(host, free_before - lowest)


def _failure(name: str, exit_code: int, log: Path) -> ExperimentFailed:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    codes = [int(match[1]) for line in lines if (match := dvc_stages.EXIT_CODE.search(line))]
    return ExperimentFailed(name, codes[-1] if codes else exit_code, "\n".join(lines[-TAIL:]))
