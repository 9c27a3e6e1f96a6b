"""Run the stages of dvc.yaml one by one: plan, status, run, stop. Knows no Prefect.

Status is asked in-process (0.02 s a stage); a stage that must run is a `dvc repro --single-item` process under a
supervisor, because DVC's own API gives no handle to stop it and no stderr.
"""

import contextlib
import fcntl
import math
import os
import queue
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from flows import supervise
from flows.project import GRACE, dvc_command, stage_environment

TAIL = 20  # lines of stderr kept for the message of a failure

RUNNING = re.compile(r"Running stage '(.+)':$")
RESTORED = re.compile(r"Stage '(.+)' is cached - skipping run, checking out outputs$")
ADVICE = re.compile(  # what DVC tells a person after every stage
    r"(Generating|Updating) lock file 'dvc\.lock'|To track the changes with git, run:|\s*git add .*"
    r"|To enable auto staging, run:|\s*dvc config core\.autostage true|Use `dvc push` to send your updates .*"
)
EXIT_CODE = re.compile(r"failed to run: .*, exited with (-?\d+)$")


@dataclass(frozen=True)
class Stage:
    name: str  # as in dvc.yaml, `train@finetune` for an entry of a matrix
    upstreams: tuple[str, ...]  # names of the stages whose outs it reads


class StageFailed(Exception):  # noqa: N818, said as what happened
    """A stage's command failed. DVC exits 255 for all of them; `exit_code` is the command's own."""

    def __init__(self, stage: str, exit_code: int, stderr: tuple[str, ...]) -> None:
        super().__init__(stage, exit_code, stderr)
        self.stage, self.exit_code, self.stderr = stage, exit_code, stderr

    def __str__(self) -> str:
        return "\n".join(
            [f"stage {self.stage} exited with code {self.exit_code}; its last lines on stderr:", *self.stderr]
        )


class StageTimedOut(Exception):  # noqa: N818, said as what happened
    """A stage was stopped because its time was up."""


class Busy(Exception):  # noqa: N818, said as what happened
    """Another run is at work in the same checkout."""


@contextlib.contextmanager
def claimed(lock: Path) -> Iterator[None]:
    """Hold `lock` while a run is at work; the kernel frees it with the process. Raises Busy where another has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy(f"turned away: process {file.read()} runs the pipeline in this checkout; wait for it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def plan(root: Path, targets: Iterable[str] = ()) -> list[Stage]:
    """The stages that `targets` need (all for none), each after its upstreams.

    Raises ValueError where there is no DVC project in git or dvc.yaml has no such target; DvcException where the graph cannot be read.
    """
    with contextlib.chdir(root), _project(root) as repo:  # DVC names stages relative to the working directory
        graph = repo.index.graph  # an edge leads from a stage to its upstream
        wanted = _with_upstreams(repo, graph, list(targets))
        ordered = [stage for stage in networkx.dfs_postorder_nodes(graph) if stage in wanted and stage.cmd]
        names = {stage: stage.addressing for stage in ordered}
        return [Stage(names[s], tuple(sorted(names[u] for u in graph.successors(s) if u in names))) for s in ordered]


def _project(root: Path) -> Repo:
    try:
        return Repo()
    except DvcException as error:
        raise ValueError(f"{root.resolve()}: {error}; run from the project's root, in a git clone") from None


def is_unchanged(root: Path, stage: str) -> bool:
    """True where the stage's command, deps, params and outs are as dvc.lock has them."""
    with contextlib.chdir(root), Repo(_wait_for_lock=True) as repo:
        return not repo.status(targets=[stage])


def run(
    root: Path,
    stage: str,
    *,
    on_line: Callable[[str], None],
    force: bool = False,
    timeout: float | None = None,
) -> str:
    """Run one stage whose upstreams are up to date; returns "ran", "restored" (from DVC's run-cache) or "cached".

    Each line of its stdout and stderr goes to `on_line`, DVC's own advice left out. Raises StageFailed, and StageTimedOut after `timeout` seconds.
    Whatever ends this function, an exception from a signal handler included, no process of the stage is left.
    """
    process = supervise.start(
        dvc_command("repro", "--single-item", *["--force"] * force, stage),
        grace=GRACE,
        cwd=root,
        env=stage_environment(TQDM_MININTERVAL="30"),  # seconds: a log wants no bar redrawn ten times a second
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    status, exit_code, stderr = "cached", None, deque[str](maxlen=TAIL)
    try:
        for stream, line in _lines(process, stage, timeout):
            if line and not ADVICE.fullmatch(line):
                on_line(line)
            if stream == "stderr":
                stderr.append(line)
                exit_code = int(match[1]) if (match := EXIT_CODE.search(line)) else exit_code
            elif (match := RUNNING.match(line)) and match[1] == stage:
                status = "ran"
            elif (match := RESTORED.match(line)) and match[1] == stage:
                status = "restored"
        process.wait()
    finally:
        supervise.stop(process, grace=GRACE)
    if process.returncode != 0:
        raise StageFailed(stage, process.returncode if exit_code is None else exit_code, tuple(stderr))
    return status


def downstreams(stages: Iterable[Stage]) -> dict[str, set[str]]:
    """For each stage of a plan the names of all that need it, directly or through others."""
    found: dict[str, set[str]] = {}
    for stage in reversed(list(stages)):
        found.setdefault(stage.name, set())
        for upstream in stage.upstreams:
            found.setdefault(upstream, set()).update({stage.name}, found[stage.name])
    return found


def _with_upstreams(repo: Repo, graph: networkx.DiGraph, targets: list[str]) -> set[PipelineStage]:
    if not targets:
        return set(graph)
    known = {name for stage in graph for name in (stage.addressing, stage.addressing.split("@")[0])}
    if unknown := [target for target in targets if target not in known]:
        raise ValueError(f"dvc.yaml: no stage {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    chosen = {stage for target in targets for stage in repo.stage.collect(target)}
    return chosen.union(*(networkx.descendants(graph, stage) for stage in chosen))


def _lines(process: subprocess.Popen[bytes], stage: str, timeout: float | None) -> Iterator[tuple[str, str]]:
    """(stream, line) as they come, until both streams end. Raises StageTimedOut."""
    lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
    for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
        threading.Thread(target=_read, args=(name, stream, lines), daemon=True).start()
    deadline = time.monotonic() + (math.inf if timeout is None else timeout)
    num_open = 2
    while num_open:
        if time.monotonic() > deadline:
            raise StageTimedOut(f"stage {stage} was stopped after {timeout:.0f} s")
        try:
            name, line = lines.get(timeout=0.2)
        except queue.Empty:
            if (process.poll() or 0) < 0:  # the supervisor was killed; what it left may hold the streams open
                return
            continue
        if line is None:
            num_open -= 1
        else:
            yield name, line


def _read(name: str, stream: IO[bytes], lines: "queue.Queue[tuple[str, str | None]]") -> None:
    """Lines end with a newline or, as a progress bar's do, a carriage return."""
    rest = b""
    while block := os.read(stream.fileno(), 65536):
        *whole, rest = re.split(rb"\r\n|\n|\r", rest + block)
        for line in whole:
            lines.put((name, line.decode(errors="replace").rstrip()))
    if rest:
        lines.put((name, rest.decode(errors="replace").rstrip()))
    lines.put((name, None))
