"""Run a command so that nothing it starts outlives it, us, or our death.

`python -m flows.supervise GRACE COMMAND...`: DVC starts a shell, which starts python, which starts workers; a signal to the first reaches none of the others. So a
small process stands between: it adopts every orphan below it (PR_SET_CHILD_SUBREAPER), and when its command has ended,
or its standard input reaches the end, or it is told to terminate, it ends whatever is left: TERM, then KILL after GRACE
seconds. The other end of its standard input belongs to the caller alone, so the caller's death, SIGKILL included, is
such an end. Should the supervisor itself be killed, the command dies with it (PR_SET_PDEATHSIG), and `stop` ends the
rest of its session. Linux; elsewhere orphans that left the process tree are missed.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOPPED = 128 + signal.SIGTERM  # the exit code of a supervisor that had to stop its command


def start(
    command: list[str],
    *,
    grace: float,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` under a supervisor, which ends every process below it at `stop`, or when this process dies."""
    supervisor = [sys.executable, "-P", str(Path(__file__).resolve()), str(grace), *command]
    return subprocess.Popen(
        supervisor, cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True
    )


def stop(process: subprocess.Popen[bytes], *, grace: float) -> None:
    """End a process that `start` returned, and all below it; returns when they are gone. Safe to call twice."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(2 * grace + 5)  # the command's grace, then that of what it left behind
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode < 0:  # the supervisor was killed: its session may have survivors
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main(grace: float, command: list[str]) -> int:
    """Run `command` to its end or ours; returns its exit code (128 + signal where one ended it), or STOPPED."""
    stopping = False

    def ask_to_stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    if sys.platform == "linux":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    while child.poll() is None and not stopping:
        stopping = bool(select.select([sys.stdin], [], [], 0.05)[0])  # readable is end of file: nobody writes to it
    code = child.returncode
    end_everything_below(child, grace)
    if code is None:
        return STOPPED
    return code if code >= 0 else 128 - code


def end_everything_below(child: subprocess.Popen[bytes], grace: float) -> None:
    """The command first, so that it may end its own children in order; then whatever is left."""
    if child.poll() is None:
        _end([psutil.Process(child.pid)], grace)
    deadline = time.monotonic() + grace
    while left := psutil.Process().children(recursive=True):
        _end(left, deadline - time.monotonic())


def _end(processes: list[psutil.Process], grace: float) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=max(grace, 0))
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]), sys.argv[2:]))
