"""Plan the stages, run each as a task of its own, say what happened, publish the results.

Stages run one after another and in the flow's own thread: DVC locks the project around a stage, and a signal that
interrupts the flow interrupts the stage with it.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Cancelled, Completed, Failed, State, StateType
from prefect.tasks import Task

from flows import checkout, dvc_experiments, dvc_stages, overrides
from flows.dvc_stages import StageFailed, StageTimedOut
from flows.mend import mend
from flows.pipeline import local_sources, publish
from flows.project import TRANSIENT, git, read_yaml
from flows.promote.decide import decide, was_judged
from flows.settings import Promotion

WORKSPACE = Path(".cache/nightly")  # the checkout of scheduled runs
STATE_OF = {"cached": "Cached", "restored": "Restored", "ran": "Completed"}
BAD = ("Failed", "TimedOut", "Skipped")


@dataclass(frozen=True)
class Outcome:
    stage: str
    state: str  # Completed (it ran), Cached, Restored, Failed, TimedOut, Skipped
    seconds: float
    message: str


@flow(name="pipeline")
def pipeline(
    targets: list[str] | None = None,
    force: bool = False,
    experiment: str | None = None,
    timeout: float | None = None,
    retry_delay: float = 30.0,
    git_remote: str | None = None,
    settings: dict[str, Any] | None = None,
    promotion: dict[str, Any] | None = None,
    notify: str | None = None,
    root: str = ".",
) -> State:
    """Run the stages that `targets` need (default: all), each after its upstreams.

    experiment: run the last commit in a checkout of its own, and save the result as the DVC experiment <experiment>-<time>.
    timeout: seconds after which the running stage is stopped and the rest is skipped.
    git_remote: where an experiment's commit is taken from and its result is pushed to, on one of several machines.
    settings: keys of params.yaml, written into it as `dvc exp run -S` does; with `experiment`, into that checkout's.
    promotion: the rule by which the experiment's model is promoted, as schedule.yaml has it; None promotes nothing.
    notify: the Prefect notification block that is told the outcome, as slack-webhook/ops.
    retry_delay: seconds before a stage that exited with 75 (a fault that may pass) is tried again, twice at most.
    """
    if experiment and targets:
        raise ValueError("an experiment holds every stage's outs: give an experiment's name or targets, not both")
    if git_remote and not experiment:
        raise ValueError("git_remote is for experiments: give an experiment's name too")
    project = Path(root).resolve()
    deadline = time.monotonic() + (math.inf if timeout is None else timeout)
    try:
        with dvc_stages.claimed(project / ".cache" / ("nightly.lock" if experiment else "pipeline.lock")):
            commit = checkout.newest(project, git_remote) if git_remote else "HEAD"
            workspace = checkout.prepare(project, WORKSPACE, commit) if experiment else project
            for cleared in mend(workspace):
                get_run_logger().info("an interrupted run left this, cleared away: %s", cleared)
            overrides.write(workspace / "params.yaml", settings or {})
            overrides.validate(workspace, [("params.yaml", read_yaml(workspace / "params.yaml"))])
            outcomes = _run_stages(workspace, project, targets or [], force, deadline, retry_delay)
            publish.stages([{**vars(outcome), "seconds": round(outcome.seconds, 1)} for outcome in outcomes])
            publish.results(workspace)
            good = not any(outcome.state in BAD for outcome in outcomes)
            notes = _hand_back(workspace, project, experiment, promotion, git_remote) if experiment and good else []
        get_run_logger().info("%s", _summary(outcomes))
        verdict = _verdict(outcomes, notes)
    except dvc_stages.Busy as error:
        verdict = Cancelled(name="TurnedAway", message=str(error))
    except Exception as error:  # no remote, params that are refused, a promotion that fails: told before it is raised
        if notify:
            publish.notify(notify, f"{experiment or 'pipeline'}: Failed", str(error))
        raise
    if notify:
        publish.notify(notify, f"{experiment or 'pipeline'}: {verdict.name}", verdict.message or "")
    return verdict


def _hand_back(
    workspace: Path, project: Path, experiment: str, promotion: dict[str, Any] | None, git_remote: str | None
) -> list[str]:
    """Save what is new as an experiment, and promote the newest where the rule says so; returns what was done, in words."""
    if same := dvc_experiments.same_as(workspace, project, experiment):
        saved, notes = same, [f"nothing changed since {same}: no experiment was added"]
        if was_judged(project, same):  # and perhaps taken back by a person
            return notes
    else:
        saved = dvc_experiments.save(workspace, project, experiment)
        notes = [f"saved as experiment {saved}"]
        if git_remote:
            dvc_experiments.push(project, git(workspace, "rev-parse", "HEAD"), saved, git_remote)
    if promotion:
        try:
            decision = decide(project, saved, Promotion(**promotion), git_remote=git_remote)
        except dvc_stages.Busy as error:  # a person promotes at this moment; the night itself went well
            return [*notes, f"not judged for promotion: {error}"]
        get_run_logger().info("%s", decision.text)
        notes.append(decision.text.splitlines()[0])
    return notes


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retries=2)
def run_stage(stage: str, workspace: Path, force: bool, deadline: float, blocked_by: str) -> State:
    log = get_run_logger()
    if blocked_by:
        return Completed(name="Skipped", message=f"skipped: {blocked_by}")  # no error of this stage's
    if (seconds := deadline - time.monotonic()) <= 0:
        return Completed(name="Skipped", message="skipped: the run's time is up")
    if not force and dvc_stages.is_unchanged(workspace, stage):
        return Completed(name="Cached", message="cached: nothing changed since dvc.lock")
    timeout = None if math.isinf(seconds) else seconds
    try:
        status = dvc_stages.run(
            workspace, stage, on_line=lambda line: log.info("%s", line), force=force, timeout=timeout
        )
    except StageTimedOut as error:
        return State(type=StateType.FAILED, name="TimedOut", message=str(error), data=error)
    except StageFailed as error:
        return Failed(message=str(error), data=error)
    return Completed(name=STATE_OF[status], message=status)


def may_pass(task: Task[Any, Any], run: TaskRun, state: State) -> bool:
    """True for a failure of the kind that a later try may not see. Everything else fails at once."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.exit_code == TRANSIENT


def _run_stages(
    workspace: Path, project: Path, targets: list[str], force: bool, deadline: float, retry_delay: float
) -> list[Outcome]:
    attempt = run_stage.with_options(retry_delay_seconds=retry_delay, retry_condition_fn=may_pass)
    sources = local_sources.read(workspace, project)
    outcomes: dict[str, Outcome] = {}
    stages = dvc_stages.plan(workspace, targets)
    downstreams = dvc_stages.downstreams(stages)
    for stage in stages:
        bad = [name for name, outcome in outcomes.items() if outcome.state in BAD]
        blocked_by = _reason_to_skip(stage, bad, downstreams, targets)
        changed = local_sources.changed(workspace, sources, stage.name)
        if changed:
            get_run_logger().info("%s: the local source is new, or has changed since it was read", stage.name)
        begin = time.monotonic()
        state = attempt(stage.name, workspace, force or changed, deadline, blocked_by, return_state=True)
        outcomes[stage.name] = Outcome(stage.name, state.name or "", time.monotonic() - begin, state.message or "")
        if state.name in STATE_OF.values():
            local_sources.remember(workspace, sources, stage.name)
    return list(outcomes.values())


def _reason_to_skip(
    stage: dvc_stages.Stage, bad: list[str], downstreams: dict[str, set[str]], targets: list[str]
) -> str:
    """Say why the stage cannot run, or need not because nothing that would use it can; empty where it should run."""
    if missing := [upstream for upstream in stage.upstreams if upstream in bad]:
        return f"it needs {', '.join(missing)}"
    blocked = {name for culprit in bad for name in downstreams[culprit]}
    users = downstreams[stage.name]
    wanted = stage.name in targets or stage.name.split("@")[0] in targets
    return f"all that needs it needs {', '.join(bad)} too" if users and users <= blocked and not wanted else ""


def _summary(outcomes: list[Outcome]) -> str:
    words = {"Completed": "ran"}
    width = max([len(outcome.stage) for outcome in outcomes], default=0)
    rows = [f"  {o.stage:{width}}  {words.get(o.state, o.state.lower()):9} {o.seconds:8.1f} s" for o in outcomes]
    return "\n".join([f"{len(outcomes)} stages:", *rows])


def _verdict(outcomes: list[Outcome], notes: list[str]) -> State:
    """Judge the flow run; its message names each failed stage, its exit code and its last lines on stderr."""
    culprits = [outcome for outcome in outcomes if outcome.state in ("Failed", "TimedOut")]
    num_bad = sum(outcome.state in BAD for outcome in outcomes)
    if num_bad:
        name = "TimedOut" if any(o.state == "TimedOut" for o in culprits) or not culprits else "Failed"
        skipped = [f"skipped: {o.stage}" for o in outcomes if o.state == "Skipped"]
        return State(type=StateType.FAILED, name=name, message="\n".join([*(o.message for o in culprits), *skipped]))
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in STATE_OF.values()}
    message = f"{counts['Completed']} ran, {counts['Restored']} restored, {counts['Cached']} cached"
    return Completed(message="; ".join([message, *notes]))


def main(arguments: str) -> int:
    """Run the flow with `arguments`, a JSON object; 0 where all went well."""
    return 0 if pipeline(**json.loads(arguments), return_state=True).is_completed() else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
