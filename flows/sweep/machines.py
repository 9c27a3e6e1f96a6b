"""Run a sweep's experiments on several machines, each with a clone and a Prefect worker.

Experiments travel by git, what they hold by DVC. The deployment `sweep-point` (prefect.yaml) runs one experiment in the worker's clone, on the commit that it is told, and pushes
it. Whoever asked for it pulls it.
"""

import threading
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.states import Cancelling, Crashed, Failed, State

from flows import dvc_experiments
from flows.project import TRANSIENT, git
from flows.sweep import experiments
from flows.sweep.experiments import ExperimentFailed, Stopped
from flows.sweep.plan import Experiment

DEPLOYMENT = "sweep-point/sweep-point"
POLL = 2.0  # seconds between two looks at a run elsewhere
PATIENCE = 8 * 3600.0  # seconds that a run may take once a worker has started it: one that died never says so
PASSING = "MayPass"  # name of the state of a run whose stage asked to be tried again


@flow(name="sweep-point", flow_run_name="{name}")
def sweep_point(
    name: str, target: str, settings: dict[str, Any], commit: str, threads: int, git_remote: str, root: str = "."
) -> State | None:
    """Run one experiment in this machine's clone and push it to `git_remote` and the DVC remote."""
    project = Path(root).resolve()
    fetch_commit(project, commit, git_remote)
    experiment = Experiment(name, {}, 0, target, settings, scored=target)
    try:
        experiments.run(project, experiment, threading.Event(), commit=commit, threads=threads, pull=True)
    except ExperimentFailed as error:
        name_of_state = PASSING if error.exit_code == TRANSIENT else "Failed"
        return Failed(name=name_of_state, message=str(error), data=error)
    dvc_experiments.push(project, commit, name, git_remote)
    get_run_logger().info("%s: pushed to %s", name, git_remote)
    return None


def fetch_commit(project: Path, commit: str, git_remote: str) -> None:
    """Fetch the commit and leave what is checked out as it is. Raises ValueError where the remote lacks it."""
    try:
        git(project, "cat-file", "-e", f"{commit}^{{commit}}")
    except ValueError:
        try:
            git(project, "fetch", "--quiet", "--no-write-fetch-head", git_remote, commit)
        except ValueError as error:
            raise ValueError(f"{git_remote} has no commit {commit}; push it first ({error})") from None


def run(experiment: Experiment, stopping: threading.Event, *, commit: str, threads: int, git_remote: str) -> None:
    """Have a worker run the experiment and wait for its end: without limit while it is queued, PATIENCE once it has begun.

    Raises ExperimentFailed, and Stopped once `stopping` is set.
    """
    parameters = {"name": experiment.name, "target": experiment.target, "settings": experiment.settings}
    where = {"commit": commit, "threads": threads, "git_remote": git_remote}
    created = run_deployment(DEPLOYMENT, parameters={**parameters, **where}, timeout=0, as_subflow=False)
    deadline: float | None = None
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(created.id).state  # type: ignore[union-attr]
            if state and state.is_final():
                break
            if deadline is None and state and state.is_running():
                deadline = time.monotonic() + PATIENCE
            if deadline is not None and time.monotonic() > deadline:
                client.set_flow_run_state(created.id, Crashed(message="no end in time"), force=True)  # type: ignore[union-attr]
                raise ExperimentFailed(experiment.name, TRANSIENT, f"its worker did not end it in {PATIENCE:.0f} s")
            if stopping.wait(POLL):
                client.set_flow_run_state(created.id, Cancelling())  # type: ignore[union-attr]
                raise Stopped("its worker was asked to stop")
    if not state.is_completed():
        may_pass = state.name == PASSING or state.is_crashed()  # a stage that said so, or a worker that was lost
        raise ExperimentFailed(experiment.name, TRANSIENT if may_pass else 1, f"{state.name}: {state.message}")
