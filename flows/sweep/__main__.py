"""Run a sweep here and now: `python -m flows.sweep NAME|FILE`."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from flows import overrides
from flows.foreground import run_flow
from flows.sweep import capacity, experiments, plan

GRACE = 40.0  # seconds for the flow to stop its experiments, of which each has 10, and to tell the server


def main() -> None:
    arguments = _parser().parse_args()
    settings = overrides.from_arguments(arguments)
    planned = plan.unfold(plan.load_sweep(arguments.sweep), arguments.seeds, settings)
    print(f"checking the params of {len(planned):,} experiments", file=sys.stderr, flush=True)
    experiments.validate(Path.cwd(), "HEAD", planned)
    if arguments.dry_run:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
        for experiment in planned:
            print(experiment.name, experiment.target, *experiment.overrides)
        return
    chosen: dict[str, Any] = {key: getattr(arguments, key) for key in ("seeds", "jobs", "threads", "git_remote")}
    flow_arguments = {"name": arguments.sweep, **chosen, "settings": settings}
    raise SystemExit(run_flow("flows.sweep.flow", flow_arguments, grace=GRACE))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description="Run a sweep as DVC experiments.")
    ready = ", ".join(sorted(file.stem for file in plan.FOLDER.glob("*.yaml")))
    parser.add_argument("sweep", help=f"{ready}, or a YAML file")
    parser.add_argument("--seeds", type=capacity.count, default=3, help="runs of each point (default: 3)")
    parser.add_argument("--jobs", type=capacity.count, help="runs at a time (default: what cores and memory allow)")
    parser.add_argument("--threads", type=capacity.count, default=1, help="CPU threads of each run (default: 1)")
    overrides.add_arguments(parser)
    parser.add_argument("--git-remote", metavar="NAME", help="let Prefect workers run the points and push them there")
    parser.add_argument("--dry-run", action="store_true", help="only show the experiments")
    return parser


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
