"""Run a flow in the foreground, under a supervisor, until it ends or a person stops it.

Without a server Prefect starts one for the run and would leave it behind when the flow is killed; the supervisor ends it.
This process stays small: it only passes on the wish to stop.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows import supervise
from flows.settings import prefect_environment


def run_flow(module: str, arguments: dict[str, Any], *, grace: float) -> int:
    """Run `python -m module ARGUMENTS` (as JSON) and return its exit code; `grace`: seconds that it may take to stop."""
    interrupt_on_signals()
    flow = start(module, arguments, grace=grace)
    try:
        return flow.wait()
    except KeyboardInterrupt:
        print("stopping: waiting for what runs to end", file=sys.stderr, flush=True)
        return supervise.STOPPED
    finally:
        supervise.stop(flow, grace=grace)


def start(module: str, arguments: dict[str, Any], *, grace: float) -> "subprocess.Popen[bytes]":
    """Start `python -m module ARGUMENTS` (as JSON) under a supervisor; `supervise.stop` ends it."""
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    # A temporary server is stopped in the middle of writing its last events, and would tell so in sixty lines.
    environment = {"PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL", **prefect_environment(Path.cwd())}
    return supervise.start(command, grace=grace, env=environment)


def interrupt_on_signals() -> None:
    """Turn the first SIGTERM or SIGINT into KeyboardInterrupt and ignore those that follow."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
