"""Run a sweep as a Prefect flow: its rounds, the winner's test, the table, the picture."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Cancelled, Completed, Failed, State

from flows import dvc_stages
from flows.project import read_yaml
from flows.sweep import backbones, experiments, picture, table
from flows.sweep.plan import Experiment, Sweep, finalists, load_sweep, tested, unfold
from flows.sweep.ranking import ranked, without_test
from flows.sweep.rounds import Round, run_round

OUTPUT = Path("artifacts/sweeps")


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
            show_in_report(project)
    except dvc_stages.Busy as error:
        return Cancelled(name="TurnedAway", message=str(error))
    failed = [*points.failed, *finals.failed, *tests.failed]
    done, ran = (sum(counts) for counts in zip(points.counts, finals.counts, strict=True))
    ending = f"{done} were done, {ran} ran; see {folder.relative_to(project) / 'table.md'}"
    return (
        Failed(message="\n".join([f"{len(failed)} failed, {ending}", *failed])) if failed else Completed(message=ending)
    )


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
            {"experiment": e.name, "seed": e.seed, **without_test(part.metrics[e.name])}
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


def show_in_report(project: Path) -> None:
    """Write the report anew, which shows every sweep, where it is there and up to date; otherwise its next run will."""
    if not (project / "artifacts/report.html").exists():
        return
    try:
        if dvc_stages.is_unchanged(project, "report"):
            dvc_stages.run(project, "report", on_line=get_run_logger().info, force=True)
    except (DvcException, dvc_stages.StageFailed) as error:  # the sweep itself went well
        get_run_logger().warning("the report does not show this sweep yet, `dvc repro` writes it: %s", error)


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
