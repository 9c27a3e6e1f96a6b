"""Run a round of a sweep as task runs: its experiments that are not done yet.

The first one runs alone: it leaves the data and the source model in DVC's cache for the others, and shows how much memory
one takes, from which follows how many run at a time.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed, Failed, State
from prefect.tasks import Task

from flows import dvc_experiments
from flows.project import TRANSIENT
from flows.sweep import capacity, experiments, machines
from flows.sweep.capacity import Memory
from flows.sweep.experiments import ExperimentFailed, Stopped
from flows.sweep.plan import Experiment

UNKNOWN_NEED = Memory(host=2 * 2**30, gpu=0)  # for when the first experiment failed


@dataclass(frozen=True)
class Round:
    """Some of a sweep's experiments after they have been run."""

    experiments: list[Experiment]
    metrics: dict[str, Any]  # of those that are done, by name
    counts: tuple[int, int]  # were done before, ran now
    failed: list[str]  # messages


def run_round(planned: list[Experiment], jobs: int | None, **how: Any) -> Round:
    """Run the experiments that are not finished yet, here or on any of several machines."""
    project, commit, git_remote = how["project"], how["commit"], how["git_remote"]
    names = [experiment.name for experiment in planned]
    if git_remote:
        dvc_experiments.pull(project, names, commit, git_remote)
    done = experiments.finished(project, commit, planned)
    pending = [experiment for experiment in planned if experiment.name not in done]
    if planned:
        get_run_logger().info("%d experiments: %d done, %d to run", len(planned), len(done), len(pending))
    states = run_all(pending, jobs, **how)
    if git_remote:
        dvc_experiments.pull(project, names, commit, git_remote)
    failed = [state.message or "" for state in states if not state.is_completed()]
    metrics = experiments.finished(project, commit, planned)
    return Round(planned, metrics, (len(done), len(pending) - len(failed)), failed)


def run_all(pending: list[Experiment], jobs: int | None, **how: Any) -> list[State]:
    """Run the first alone, then `jobs` at a time; returns how each ended. However this function ends, no experiment is left running."""
    stopping = threading.Event()
    futures: list[PrefectFuture[Any]] = []
    running: list[PrefectFuture[Any]] = []
    try:
        for experiment in pending:
            if len(futures) == 1:
                futures[0].wait()
                running.clear()
                jobs = jobs or fitting_jobs(futures[0].state, len(pending), how["threads"], how["git_remote"])
            if jobs and len(running) == jobs:
                running.remove(next(as_completed(running)))
            futures.append(run_experiment.submit(experiment, stopping, **how))
            running.append(futures[-1])
        for future in futures:
            future.wait()
    except BaseException:
        stopping.set()
        raise
    return [future.state for future in futures]


def fitting_jobs(first: State, num_pending: int, threads: int, git_remote: str | None) -> int:
    """Count how many run at a time, after the first has shown what one needs; on other machines the work pool sees to it."""
    if git_remote:
        return num_pending
    need: Any = first.result() if first.is_completed() else UNKNOWN_NEED
    free, cores = capacity.free_memory(), capacity.num_cores()
    jobs = capacity.jobs(need, free, threads=threads, cores=cores)
    sizes = f"one takes {need}, free are {free}"
    get_run_logger().info("%d at a time, %d thread(s) each: %s, %d cores", jobs, threads, sizes, cores)
    return jobs


def may_pass(task: Task[Any, Any], run: TaskRun, state: State) -> bool:
    """True for a failure of the kind that a later try may not see."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ExperimentFailed) and error.exit_code == TRANSIENT


@task(
    task_run_name="{experiment.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=30,
    retry_condition_fn=may_pass,
)
def run_experiment(
    experiment: Experiment, stopping: threading.Event, project: Path, commit: str, threads: int, git_remote: str | None
) -> State:
    """Run it here, or have another machine do it; the result is the memory that it took here."""
    try:
        if git_remote:
            machines.run(experiment, stopping, commit=commit, threads=threads, git_remote=git_remote)
            return Completed(message="ran elsewhere", data=Memory(0, 0))
        took = experiments.run(project, experiment, stopping, commit=commit, threads=threads)
    except ExperimentFailed as error:
        return Failed(message=str(error), data=error)
    except Stopped as error:
        return Cancelled(message=str(error))
    return Completed(message=f"ran, in {took}", data=took)
