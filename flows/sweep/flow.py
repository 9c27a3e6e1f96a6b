"""Run the experiments that are not done yet, as task runs of a Prefect flow; then write the table and the picture.

The first one runs alone: it leaves the data and the source model in DVC's cache for the others, and shows how much memory
one takes, from which follows how many run at a time.
"""

import json
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed, Failed, State
from prefect.tasks import Task

from flows import dvc_experiments, dvc_stages
from flows.project import TRANSIENT, read_yaml
from flows.sweep import backbones, capacity, experiments, machines, picture, table
from flows.sweep.capacity import Memory
from flows.sweep.experiments import ExperimentFailed, Stopped
from flows.sweep.plan import Experiment, Sweep, finalists, load_sweep, tested, unfold
from flows.sweep.ranking import ranked

OUTPUT = Path("artifacts/sweeps")
UNKNOWN_NEED = Memory(host=2 * 2**30, gpu=0)  # for when the first experiment failed


@flow(name="sweep", flow_run_name="{name}")
def sweep(
    name: str,
    seeds: int = 3,
    jobs: int | None = None,
    threads: int = 1,
    settings: dict[str, Any] | None = None,
    git_remote: str | None = None,
    root: str = ".",
) -> State:
    """Run every point of the sweep `name` with `seeds` seeds, and write artifacts/sweeps/<name>/.

    jobs: experiments at a time, by default as many as cores and memory allow. threads: of each experiment.
    settings: keys of params.yaml for all points. git_remote: the workers of several machines run the experiments and push
    them there.
    """
    project, chosen = Path(root).resolve(), load_sweep(name)
    planned = unfold(chosen, seeds, settings or {})
    try:
        commit = experiments.committed(project)
        experiments.validate(project, commit, planned)
        with dvc_stages.claimed(project / ".cache" / f"sweep-{chosen.name}.lock"):
            run = partial(run_round, jobs=jobs, project=project, commit=commit, threads=threads, git_remote=git_remote)
            points = run(planned)
            finals = run(_finalists(chosen, planned, points))
            contest = finals if chosen.finals else points
            winner = _winner(chosen, contest)
            tests = run(tested(winner))
            folder = write_results(chosen, points, finals, winner, list(tests.metrics.values()), project)
    except dvc_stages.Busy as error:
        return Cancelled(name="TurnedAway", message=str(error))
    failed = [*points.failed, *finals.failed, *tests.failed]
    done, ran = (sum(counts) for counts in zip(points.counts, finals.counts, strict=True))
    ending = f"{done} were done, {ran} ran; see {folder.relative_to(project) / 'table.md'}"
    return (
        Failed(message="\n".join([f"{len(failed)} failed, {ending}", *failed])) if failed else Completed(message=ending)
    )


@dataclass(frozen=True)
class Round:
    """Some of a sweep's experiments after they have been run."""

    experiments: list[Experiment]
    metrics: dict[str, Any]  # of those that are done, by name
    counts: tuple[int, int]  # were done before, ran now
    failed: list[str]  # messages


def run_round(planned: list[Experiment], jobs: int | None, **how: Any) -> Round:
    """Run those of the experiments that are not done yet, wherever they can be had from."""
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


def _finalists(chosen: Sweep, planned: list[Experiment], points: Round) -> list[Experiment]:
    """The second round; empty while the first is not complete, because its ranking could still change."""
    if not chosen.finals or points.failed:
        return []
    best = ranked(planned, points.metrics, chosen.scores[0])[: chosen.finals.keep]
    return finalists(chosen.finals, [experiment for group in best for experiment in group])


def _winner(chosen: Sweep, contest: Round) -> list[Experiment]:
    """The seeds of the point with the best validation score; none while a point is missing: test is opened once."""
    ranking = ranked(contest.experiments, contest.metrics, chosen.scores[0])
    return ranking[0] if ranking and not contest.failed else []


def run_all(pending: list[Experiment], jobs: int | None, **how: Any) -> list[State]:
    """The first alone, then `jobs` at a time; returns how each ended. Whatever ends this function, none goes on."""
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
    """How many run at a time, after the first has shown what one needs; on other machines the work pool sees to it."""
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


def write_results(
    chosen: Sweep, points: Round, finals: Round, winner: list[Experiment], tests: list[Any], project: Path
) -> Path:
    """Write table.json, table.md, table.csv and the picture of the experiments that are done; returns their folder."""
    folder = project / OUTPUT / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = table.summarize(points.experiments, points.metrics, chosen.scores)
    final_rows = table.summarize(finals.experiments, finals.metrics, chosen.scores)
    if chosen.weights:
        _add_costs([*rows, *final_rows], points.experiments, project)
    described: dict[str, Any] = {
        "title": chosen.title,
        "ranked_by": chosen.scores[0],
        "winner": table.describe(winner, tests),
        "rows": rows,
        "finals": final_rows,
        "runs": [
            {"experiment": e.name, "seed": e.seed, **part.metrics[e.name]}
            for part in (points, finals)
            for e in part.experiments
            if e.name in part.metrics
        ],
    }
    (folder / "table.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table.as_markdown(described, chosen.scores), encoding="utf-8")
    (folder / "table.csv").write_text(table.as_csv(rows), encoding="utf-8")
    picture.draw(chosen, points.experiments, points.metrics, table.winner_line(described["winner"]), folder)
    create_table_artifact(rows, key=f"sweep-{chosen.name.replace('_', '-')}", description=chosen.title)
    return folder


def _add_costs(rows: list[dict[str, Any]], planned: list[Experiment], project: Path) -> None:
    """Add size and latency to the rows of a sweep over backbones, measured once an architecture."""
    side = int(read_yaml(project / "params.yaml")["preprocess"]["crop"])
    architectures = {str(e.point["name"]): str(e.settings["model.architecture"]) for e in planned}
    costs = {name: backbones.cost(project, name, side) for name in dict.fromkeys(architectures.values())}
    for row in rows:
        row.update(costs[architectures[row["name"]]])


def main(arguments: str) -> int:
    """Run the flow with `arguments`, a JSON object; 0 where all went well."""
    state: State = sweep(**json.loads(arguments), return_state=True)
    print(state.message, file=sys.stderr if not state.is_completed() else sys.stdout, flush=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
