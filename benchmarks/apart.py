"""A contestant in a process of its own, as it would be in life: its own allocator, threads and caches. One runs at a time."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Runs = dict[str, Callable[[], float]]  # by name; each does its work once and returns how much it was (images, FLOP)


class Apart:
    """`make(*arguments)`, called in a new process, returns the runs that this process is asked for by name."""

    def __init__(self, make: Callable[..., Runs], *arguments: Any):
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments))
        self.process.start()
        theirs.close()  # so that the end of the process ends the wait for its answer

    def run(self, name: str) -> Callable[[], float]:
        def ask() -> float:
            self.connection.send(name)
            try:
                done: float = self.connection.recv()
            except EOFError:
                raise RuntimeError(f"the process that was to run {name} ended; its message is above") from None
            return done

        return ask

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, make: Callable[..., Runs], arguments: tuple[Any, ...]) -> None:
    runs = make(*arguments)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(runs[name]())
