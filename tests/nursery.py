"""Runs `dvc repro` and stages as forks of one process that has imported them, and kills them: a run costs no imports.

DVC's own code runs; only where it would have a shell start `python -m stages.X`, the stage is forked as well. Every run is
a process group of its own, of which nothing is left when it has ended or was killed.
"""

import ctypes
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from tests.experiment import ROOT, environment
from tests.killer import Kill, Killer

PR_SET_CHILD_SUBREAPER = 36


class Nursery:
    """The test's side: `with Nursery("download", "train") as nursery: code = nursery.run(...)`.

    The stages that it is given, and DVC, are imported beforehand.
    """

    def __init__(self, *stages: str) -> None:
        self.stages = stages

    def __enter__(self) -> "Nursery":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", *self.stages], cwd=ROOT, env=environment(), text=True, **pipes
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def run(
        self,
        root: Path,
        journal: Path,
        log: Path,
        *command: str,
        kill: Kill | None = None,
        file_size: int | None = None,  # bytes; writing beyond fails
        user: int | None = None,
    ) -> int:
        """The exit code of `dvc …` or `stages.X …` in `root`, negative for a signal; what it prints is added to `log`."""
        assert self.process.stdin is not None
        paths = {"root": str(root), "journal": str(journal), "log": str(log)}
        limits = {"file_size": file_size, "user": user}
        request = {**paths, "command": command, "kill": asdict(kill or Kill()), "limits": limits}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def main(*stages: str) -> None:
    """The forking side: a request a line on stdin, an exit code a line on stdout."""
    for module in ("dvc.cli", "dvc.commands.repro", "dvc.repo.reproduce", *_modules(stages)):
        importlib.import_module(module)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that it sees the end of every orphan of a run
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        kill = Kill(**request["kill"])
        pid = os.fork()
        if pid == 0:
            paths = (Path(request[name]) for name in ("root", "journal", "log"))
            _run(*paths, request["command"], kill, **request["limits"])
        code = _end(pid, kill.seconds)
        _learn(Path(request["journal"]))
        print(json.dumps(code), flush=True)


def _learn(journal: Path) -> None:
    """Import what forks had to import, so that the next ones need not."""
    lines = [
        line for line in journal.read_text().splitlines() if line.startswith('["imported"') and line.endswith("]]")
    ]
    for name in {name for line in lines for name in json.loads(line)[1]} - set(sys.modules):
        with suppress(Exception):
            importlib.import_module(name)


def _modules(stages: tuple[str, ...]) -> list[str]:
    """All but the stages' `__main__`, which runpy runs afresh; what that imports is imported with its neighbours."""
    found = [module.name for module in pkgutil.walk_packages([str(ROOT / "stages")], "stages.")]
    return [name for name in found if name.split(".")[1] in stages and not name.endswith("__main__")]


def _end(pid: int, seconds: float | None) -> int:
    """Wait for the group's leader, `seconds` at most where they are given, then kill what is left of the group."""
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    return code


def _run(
    root: Path, journal: Path, log: Path, command: list[str], kill: Kill, *, file_size: int | None, user: int | None
) -> NoReturn:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(root)
    killer = Killer(root, journal, kill)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if user is not None:
        os.setuid(user)
    if command[0] == "dvc":
        killer.become(" ".join(command[:2]))
        _exit_with(lambda: _dvc(command[1:], killer), killer)
    _stage(command, killer)


def _dvc(arguments: list[str], killer: Killer) -> int:
    import dvc.cli
    import dvc.stage.run
    from dvc.stage.exceptions import StageCmdFailedError

    def fork_stage(_: str, command: str, *, env: dict[str, str], **__: Any) -> None:
        pid = os.fork()
        if pid == 0:
            os.environ.update(env)
            _stage(command.split(" -m ", 1)[1].split(), killer)
        if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise StageCmdFailedError(command, code)

    dvc.stage.run._run = fork_stage
    return dvc.cli.main(arguments)


def _stage(words: list[str], killer: Killer) -> NoReturn:
    killer.become(" ".join(words))
    sys.modules.pop(words[0], None)  # runpy runs it afresh
    sys.argv = words
    _exit_with(lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=True), killer)


def _exit_with(call: Any, killer: Killer) -> NoReturn:
    """End this fork as the interpreter would, without the parent's clean-up."""
    code: Any = 1
    try:
        returned = call()
        code = returned if isinstance(returned, int) else 0
    except SystemExit as error:
        code = error.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    killer.note("imported", [name for name in sys.modules if name not in killer.known and "__main__" not in name])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
