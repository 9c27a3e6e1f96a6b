"""Generate load over HTTP: requests built beforehand, connections kept, answers told by status and time."""

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

PERIOD = 10  # seconds


@dataclass
class Load:
    """The answers that came back."""

    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # seconds, of those answered 200
    seconds: float = 0
    own_cpu: float = 0  # processor seconds of this generator

    @property
    def rate(self) -> float:
        """Requests answered 200 a second."""
        return self.statuses["200"] / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return 1000 * float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


class Connection:
    """One that is kept, and opened again where the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> str:
        """The status, or the name of what went wrong."""
        try:
            if self.opened is None or self.opened[0].at_eof():  # never used, or closed by the server while it was idle
                self.opened = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.opened
            writer.write(request)
            header = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = header.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            if b"connection: close" in header:
                self.close()
            return header[9:12].decode()
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return type(error).__name__

    def close(self) -> None:
        if self.opened is not None:
            self.opened[1].close()
        self.opened = None


async def timed(connection: Connection, request: bytes, load: Load) -> None:
    started = time.perf_counter()
    load.asked += 1
    status = await connection.ask(request)
    load.statuses[status] += 1
    if status == "200":
        load.latencies.append(time.perf_counter() - started)


async def closed_loop(port: int, requests: list[bytes], num_clients: int, seconds: float) -> Load:
    """Each client asks again as soon as it is answered."""
    load, started, used = Load(), time.perf_counter(), time.process_time()

    async def client(number: int) -> None:
        connection, count = Connection(port), number
        while time.perf_counter() - started < seconds:
            await timed(connection, requests[count % len(requests)], load)
            count += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    load.seconds, load.own_cpu = time.perf_counter() - started, time.process_time() - used
    return load


def follow(rate: float, excess: float, answered: float) -> float:
    """`excess` times as many a second as were answered; at least half of `rate`, for the whole machine may have paused."""
    return max(rate / 2, excess * answered)


async def open_loop(
    port: int, requests: list[bytes], rate: float, seconds: float, *, even: bool = False, excess: float | None = None
) -> Load:
    """`rate` requests a second whether or not earlier ones were answered: at random times (Poisson), or evenly spaced.

    With `excess` the rate follows the server, whose share of the machine may rise and fall: every PERIOD it becomes so many
    times what was answered meanwhile.
    """
    rng, load, started, used = np.random.default_rng(0), Load(), time.perf_counter(), time.process_time()
    free: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def ask(request: bytes) -> None:
        connection = free.pop() if free else Connection(port)
        await timed(connection, request, load)
        free.append(connection)

    due, looked, answered = 0.0, 0.0, 0  # seconds since the start; requests
    for request in itertools.cycle(requests):
        due += 1 / rate if even else rng.exponential(1 / rate)
        if due >= seconds:
            break
        await asyncio.sleep(max(0, started + due - time.perf_counter()))
        task = asyncio.create_task(ask(request))
        running.add(task)
        task.add_done_callback(running.discard)
        if excess and due - looked >= PERIOD:
            rate = follow(rate, excess, (load.statuses["200"] - answered) / (due - looked))
            looked, answered = due, load.statuses["200"]
    await asyncio.gather(*running)
    for connection in free:
        connection.close()
    load.seconds, load.own_cpu = time.perf_counter() - started, time.process_time() - used
    return load
