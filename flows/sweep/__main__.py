"""`python -m flows.sweep NAME|FILE`: run a sweep here and now, with or without a Prefect server.

As flows.pipeline does, this process only starts the flow under a supervisor and passes on the wish to stop.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import supervise
from flows.settings import prefect_environment
from flows.sweep import plan

GRACE = 40.0  # seconds for the flow to stop its experiments, of which each has 10, and to tell the server


def main() -> None:
    arguments = _parser().parse_args()
    settings = {key: value for file in arguments.settings for key, value in _load(file).items()}
    settings |= dict(_pair(text) for text in arguments.set)
    sweep = plan.load_sweep(arguments.sweep)
    if arguments.dry_run:
        for experiment in plan.unfold(sweep, arguments.seeds, settings):
            print(experiment.name, experiment.target, *experiment.overrides)
        return
    chosen = {key: getattr(arguments, key) for key in ("seeds", "jobs", "threads", "git_remote")}
    raise SystemExit(_run_flow(json.dumps({"name": arguments.sweep, **chosen, "settings": settings})))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description="Run a sweep as DVC experiments.")
    ready = ", ".join(sorted(file.stem for file in plan.FOLDER.glob("*.yaml")))
    parser.add_argument("sweep", help=f"{ready}, or a YAML file")
    parser.add_argument("--seeds", type=_count, default=3, help="runs of each point (default: 3)")
    parser.add_argument("--jobs", type=_count, help="runs at a time (default: what cores and memory allow)")
    parser.add_argument("--threads", type=_count, default=1, help="CPU threads of each run (default: 1)")
    parser.add_argument(
        "-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of params.yaml, for every point"
    )
    parser.add_argument(
        "--settings", action="append", default=[], type=Path, metavar="FILE", help="the same from YAML: flows/demo.yaml"
    )
    parser.add_argument("--git-remote", metavar="NAME", help="let Prefect workers run the points and push them there")
    parser.add_argument("--dry-run", action="store_true", help="only show the experiments")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"-S {text}: write KEY=VALUE")
    try:
        return key, YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise ValueError(f"-S {text}: the value is not valid YAML: {error}") from None


def _load(file: Path) -> dict[str, Any]:
    try:
        return dict(YAML(typ="safe", pure=True).load(file))
    except (OSError, YAMLError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read as YAML of dotted keys: {error}") from None


def _run_flow(arguments: str) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    flow = supervise.start(
        [sys.executable, "-m", "flows.sweep.flow", arguments], grace=GRACE, env=prefect_environment(Path.cwd())
    )
    try:
        return flow.wait()
    except KeyboardInterrupt:
        print("stopping: waiting for the running experiments to end", file=sys.stderr, flush=True)
        return supervise.STOPPED
    finally:
        supervise.stop(flow, grace=GRACE)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
