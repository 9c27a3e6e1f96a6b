"""`python -m flows.pipeline [--force] [targets...]`: run the pipeline here and now, with or without a Prefect server.

The flow runs under a supervisor, because without a server Prefect starts one for the run and would leave it behind
when the flow is killed. This process stays small: it only passes on the wish to stop.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from flows import supervise
from flows.settings import prefect_environment

GRACE = 25.0  # seconds for the flow to stop its stage (10) and to tell the server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="stages of dvc.yaml, run with all they need (default: all stages)")
    parser.add_argument("--force", action="store_true", help="run the stages even where nothing changed")
    parser.add_argument("--experiment", metavar="PREFIX", help="run the last commit apart from this checkout and save")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop after this time")
    arguments = json.dumps(vars(parser.parse_args()))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    flow = supervise.start(
        [sys.executable, "-m", "flows.pipeline.flow", arguments], grace=GRACE, env=prefect_environment(Path.cwd())
    )
    try:
        code = flow.wait()
    except KeyboardInterrupt:
        print("stopping: waiting for the running stage to end", file=sys.stderr, flush=True)
        code = supervise.STOPPED
    finally:
        supervise.stop(flow, grace=GRACE)
    raise SystemExit(code)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
