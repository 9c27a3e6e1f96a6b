"""A sweep over several machines: each has a clone and a Prefect worker; experiments travel by git, what they hold by DVC.

The deployment `sweep-point` (prefect.yaml) runs one experiment in the worker's clone, on the commit that it is told, and pushes
it. Whoever asked for it pulls it.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.states import Cancelling, Crashed, Failed, State

from flows import supervise
from flows.sweep import experiments
from flows.sweep.experiments import ExperimentFailed, Stopped
from flows.sweep.plan import Experiment

DEPLOYMENT = "sweep-point/sweep-point"
POLL = 2.0  # seconds between two looks at a run elsewhere
PATIENCE = 8 * 3600.0  # seconds that a run elsewhere may take: a worker that died never says so


@flow(name="sweep-point", flow_run_name="{name}")
def sweep_point(
    name: str, target: str, overrides: list[str], commit: str, threads: int, git_remote: str, root: str = "."
) -> State | None:
    """Run one experiment in this machine's clone and push it to `git_remote` and the DVC remote."""
    project = Path(root).resolve()
    experiment = Experiment(name, {}, 0, target, tuple(overrides))
    fetch_commit(project, commit, git_remote)
    try:
        experiments.run(project, experiment, threading.Event(), commit=commit, threads=threads, pull=True)
    except ExperimentFailed as error:
        return Failed(message=str(error), data=error)
    dvc(project, "exp", "push", "--force", "--run-cache", git_remote, experiments.reference(commit, name))
    get_run_logger().info("%s: pushed to %s", name, git_remote)
    return None


def fetch_commit(project: Path, commit: str, git_remote: str) -> None:
    """Have the commit, without a change to what is checked out. Raises ValueError where the remote has it not."""
    if subprocess.run(
        ["git", "-C", str(project), "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True
    ).returncode:
        try:
            experiments.git(project, "fetch", "--quiet", "--no-write-fetch-head", git_remote, commit)
        except ValueError as error:
            raise ValueError(f"{git_remote} has no commit {commit}; push it first ({error})") from None


def pull(project: Path, names: Iterable[str], commit: str, git_remote: str) -> None:
    """Fetch from `git_remote` those of the experiments that it has, and what they hold from the DVC remote."""
    wanted = {experiments.reference(commit, name) for name in names}
    listed = experiments.git(project, "ls-remote", git_remote, f"{experiments.namespace(commit)}*")
    there = [line.split("\t")[1] for line in listed.splitlines()]
    if found := sorted(wanted.intersection(there)):
        dvc(project, "exp", "pull", "--force", git_remote, *found)


def run(experiment: Experiment, stopping: threading.Event, *, commit: str, threads: int, git_remote: str) -> None:
    """Have a worker run the experiment, and wait for it. Raises ExperimentFailed, and Stopped once `stopping` is set."""
    parameters = {"name": experiment.name, "target": experiment.target, "overrides": list(experiment.overrides)}
    where = {"commit": commit, "threads": threads, "git_remote": git_remote}
    created = run_deployment(DEPLOYMENT, parameters={**parameters, **where}, timeout=0, as_subflow=False)
    deadline = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(created.id).state  # type: ignore[union-attr]
            if state and state.is_final():
                break
            if time.monotonic() > deadline:
                client.set_flow_run_state(created.id, Crashed(message="no end in time"), force=True)  # type: ignore[union-attr]
                raise ExperimentFailed(
                    experiment.name, os.EX_TEMPFAIL, f"its worker did not end it in {PATIENCE:.0f} s"
                )
            if stopping.wait(POLL):
                client.set_flow_run_state(created.id, Cancelling())  # type: ignore[union-attr]
                raise Stopped("its worker was asked to stop")
    if not state.is_completed():
        raise ExperimentFailed(experiment.name, 1, f"{state.name}: {state.message}")


def dvc(project: Path, *words: str) -> None:
    process = supervise.start(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *words], grace=10, cwd=project, env=dict(os.environ)
    )
    try:
        if code := process.wait():
            raise RuntimeError(f"{project}: `dvc {' '.join(words)}` exited with {code}; its message is above")
    finally:
        supervise.stop(process, grace=10)
