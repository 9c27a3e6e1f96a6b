"""A contestant's own process, as it would have in life: its own allocator, threads and caches. One runs at a time."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Runs = dict[str, Callable[[], float]]  # by name; each does its work once and returns how much it was (images, FLOP)


class ContestantProcess:
    """Calls `make(*arguments)` in a new process, which then runs by name what that returned.

    The process starts with the first run. One that failed has ended, and the next run starts another: after an error on
    the device nothing in that process can be believed.
    """

    def __init__(self, make: Callable[..., Runs], *arguments: Any):
        self.make, self.arguments = make, arguments
        self.process: multiprocessing.process.BaseProcess | None = None

    def run(self, name: str) -> Callable[[], float]:
        def ask() -> float:
            if self.process is None:
                self.start()
            try:
                self.connection.send(name)
                answer = self.connection.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                answer = RuntimeError("the process ended; its message is above")
            if isinstance(answer, Exception):
                self.stop()
                raise RuntimeError(f"{name}: {answer}")
            done: float = answer
            return done

        return ask

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.make, self.arguments))
        self.process.start()
        theirs.close()  # so that the end of the process ends the wait for its answer

    def stop(self) -> None:
        if self.process is not None:
            self.connection.close()
            self.process.join()
            self.process = None

    def __enter__(self) -> "ContestantProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _serve(connection: Connection, make: Callable[..., Runs], arguments: tuple[Any, ...]) -> None:
    runs: Runs | None = None
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        try:
            runs = make(*arguments) if runs is None else runs
            answer: Any = runs[name]()
        except Exception as error:
            traceback.print_exc()
            answer = RuntimeError(
                f"{type(error).__name__}: {str(error) or 'no message':.300}"
            )  # its own class may not pickle
        connection.send(answer)
        if isinstance(answer, Exception):
            return
