"""Serve Prefect and the scheduled pipeline on this machine: `python -m flows.serve [FILE]`.

Both run under a supervisor of their own. Ctrl-C or SIGTERM ends the runner first, which cancels what it runs while the
server can still be told, then the server; if this process is killed, everything below it goes too.
"""

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from flows import supervise
from flows.foreground import interrupt_on_signals
from flows.settings import SCHEDULE, Schedule, load_schedule, prefect_environment

STARTUP = 180.0  # seconds; a cold start takes 12-15 on an idle machine
SERVER_GRACE = 10.0
RUNNER_GRACE = 45.0  # Prefect gives a cancelled flow 30 s


def main(path: str = str(SCHEDULE)) -> None:
    interrupt_on_signals()
    schedule = load_schedule(Path(path))
    refuse_a_taken_port(schedule)
    environment = {**prefect_environment(Path.cwd()), "PREFECT_API_URL": schedule.api_url}
    server_command = ["-m", "prefect", "server", "start", "--host", schedule.host, "--port", str(schedule.port)]
    server = supervise.start([sys.executable, *server_command], grace=SERVER_GRACE, env=environment)
    children = [(server, SERVER_GRACE)]
    try:
        wait_for_server(server, schedule.api_url)
        runner = supervise.start([sys.executable, "-m", "flows.schedule", path], grace=RUNNER_GRACE, env=environment)
        children.insert(0, (runner, RUNNER_GRACE))
        print(f"serving the pipeline at {schedule.cron} ({schedule.timezone}); stop with Ctrl-C", flush=True)
        wait_for_an_end([runner, server])
    except KeyboardInterrupt:
        print("stopping the runner, then the server", flush=True)
    finally:
        for process, grace in children:
            supervise.stop(process, grace=grace)


def refuse_a_taken_port(schedule: Schedule) -> None:
    """Raises ValueError where something listens there already; else its answers would pass for our server's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((schedule.host, schedule.port))
        except OSError as error:
            where = f"{schedule.host}:{schedule.port}"
            raise ValueError(f"{where}: {error.strerror}; stop what runs there, or change host and port") from None


def wait_for_server(server: subprocess.Popen[bytes], api_url: str) -> None:
    """Raises RuntimeError where the server ended, or says nothing in time."""
    deadline = time.monotonic() + STARTUP
    while not answers(api_url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{api_url}: the Prefect server does not answer; its last words are above")
        time.sleep(0.2)


def answers(api_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_for_an_end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Raises RuntimeError when one of them ends, which neither does of itself."""
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    raise RuntimeError("the server or the runner ended; its last words are above")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
