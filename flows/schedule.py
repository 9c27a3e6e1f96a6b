"""Serve the deployment `nightly`: start the pipeline when schedule.yaml says.

Started by flows/serve.py, with the server's address in PREFECT_API_URL.
"""

import asyncio
import sys
from pathlib import Path

from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from flows.pipeline.flow import pipeline
from flows.settings import SCHEDULE, Schedule, load_schedule

NAME = "nightly"
UNFINISHED = {"type": {"any_": [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]}}


def deployment(schedule: Schedule) -> RunnerDeployment:
    """Describe the scheduled run. One that would overlap another is cancelled at once, with a message that says so, instead of queueing."""
    limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    made = pipeline.to_deployment(
        NAME,
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        concurrency_limit=limit,
        parameters={
            "experiment": schedule.experiment,
            "timeout": schedule.timeout,
            "promotion": schedule.promotion.model_dump() if schedule.promote else None,
            "notify": schedule.notify,
        },
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made


def close_interrupted_runs() -> int:
    """Close the runs that a killed or unplugged machine left unfinished, which would hold the only place for ever.

    Returns how many there were.
    """
    ours = DeploymentFilter(name=DeploymentFilterName(any_=[NAME]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": UNFINISHED}), deployment_filter=ours
        )
        for run in runs:
            message = "The process that ran it is gone; the next run picks up where it stopped."
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    return len(runs)


def main(path: str = str(SCHEDULE)) -> None:
    if num_closed := close_interrupted_runs():
        print(f"{num_closed} interrupted run(s) closed", flush=True)
    runner = Runner(pause_on_shutdown=False)
    runner.handle_sigterm = _exit  # type: ignore[method-assign]  # Prefect's own leaves a coroutine that nobody awaits
    runner.add_deployment(deployment(load_schedule(Path(path))))
    print(f"the deployment {NAME} is served", flush=True)
    asyncio.run(runner.start())


def _exit(*_: object) -> None:
    """End in order: the runner cancels what it runs on its way out."""
    raise SystemExit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
