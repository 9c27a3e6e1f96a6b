"""Kills the process group that it is in, at a chosen change to the files of a project."""

import json
import os
import random
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


@dataclass(frozen=True)
class Kill:
    """When to die: at a change, or after some time.

    how: "before" the change; "torn": an open for writing has emptied its file, and nothing was written yet; "power": as
    "before", and the power fails: artifacts/ and .cache/ lose the ends of what this run wrote and did not flush to the disk.
    """

    who: str = ""  # the words after `python -m`: "stages.train scratch", "dvc repro"
    change: int = -1  # which of its opens for writing, renames, removals, new folders; from 0
    how: str = "before"
    at: str = (
        ""  # a regular expression: only the changes that have it count; one reads "os.rename artifacts/model.onnx"
    )
    seed: int = 0  # of what "power" takes
    seconds: float | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"after {self.seconds:.2f} s"
        return f"{self.who}, change {self.change} of '{self.at}', {self.how}, seed {self.seed}"


class Killer:
    """Notes in `journal` (JSON lines) what this process and its forks do to files below `root`; dies as `kill` says."""

    def __init__(self, root: Path, journal: Path, kill: Kill) -> None:
        self.root, self.kill, self.journal_path = str(root), kill, journal
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.fsync, os.fsync = os.fsync, self.flush  # type: ignore[assignment]
        self.dying, self.begun = False, time.time_ns() - 50_000_000  # a file's time may lag behind
        self.known = frozenset(sys.modules)
        self.become("")
        sys.addaudithook(self.hook)

    def become(self, name: str) -> None:
        self.name, self.count = name, -1

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.dying or not (event in CHANGES or (event == "open" and arguments[2] & WRITING)):
            return
        if isinstance(arguments[0], int):  # a file descriptor
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 (resolve would follow links)
        if not path.startswith(f"{self.root}/") or "__pycache__" in path:
            return
        path = path.removeprefix(f"{self.root}/")
        if self.name == self.kill.who and re.search(self.kill.at, f"{event} {path}"):
            self.count += 1
            if self.count == self.kill.change:
                self.die(event, path)
        self.note("did", self.name, event, path)

    def note(self, *line: Any) -> None:
        with suppress(OSError):  # the run that is watched may be one whose disk is full
            os.write(self.journal, f"{json.dumps(line)}\n".encode())

    def flush(self, file: Any) -> None:
        self.fsync(file)
        found = os.fstat(file if isinstance(file, int) else file.fileno())
        self.note("flushed", found.st_dev, found.st_ino, found.st_mtime_ns)

    def die(self, event: str, path: str) -> None:
        self.dying = True
        if self.kill.how == "torn" and event == "open":
            Path(self.root, path).write_bytes(b"")
        if self.kill.how == "power":
            self.lose()
        self.note("killed", event, path, asdict(self.kill))
        os.killpg(0, signal.SIGKILL)

    def lose(self) -> None:
        lines = [json.loads(line) for line in self.journal_path.read_text().splitlines()]
        flushed = {tuple(line[1:]) for line in lines if line[0] == "flushed"}
        generator = random.Random(self.kill.seed)
        files = [path for folder in ("artifacts", ".cache") for path in sorted(Path(self.root, folder).rglob("*"))]
        for path in files:
            found = path.lstat()
            safe = found.st_mtime_ns < self.begun or (found.st_dev, found.st_ino, found.st_mtime_ns) in flushed
            is_cached = found.st_nlink > 1  # a link to an object in DVC's cache, which is spared
            if safe or is_cached or not path.is_file() or not found.st_size:
                continue
            kept = generator.randrange(found.st_size)
            os.truncate(path, kept)
            if generator.random() < 0.5:
                os.truncate(path, found.st_size)  # the length is there, the bytes are not: zeros
            self.note("lost", str(path.relative_to(self.root)), found.st_size - kept)
