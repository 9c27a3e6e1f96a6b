"""The limits of a request: bytes, time, and a place among those that are being answered."""

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

SMOOTHING = 1 / 32  # weight of the newest request in the measured pace


class RefusedError(Exception):
    """A request that is not answered: `status` is HTTP's, the message is for its sender, who may come again in so many seconds."""

    def __init__(self, status: int, message: str, seconds: float = 1) -> None:
        super().__init__(message)
        self.status, self.seconds = status, seconds


@dataclass(frozen=True)
class Limits:
    body: int = 64 * 2**20  # bytes, also once decompressed
    all_bodies: int = 512 * 2**20  # bytes of all requests that are being answered
    requests: int = 512  # that are being answered at once
    images: int = 64  # in one request
    pixels: int = 2**26  # in one request
    seconds: float = 30  # from a request's first byte to its answer

    @property
    def wait(self) -> float:
        """Seconds that a request may have to wait; the rest is left for a machine that slows down meanwhile."""
        return self.seconds / 3


@dataclass
class Admission:
    """Count what is being answered now. Refuses with 503 what would be too much, or have to wait for too long.

    The wait is the number of requests ahead times the pace. The pace is measured: a request that came as the n-th and was
    answered after t seconds says t / n (Little's law). Where nobody is ahead it is taken, so a wrong pace mends itself.
    """

    limits: Limits
    clock: Callable[[], float] = time.monotonic
    requests: int = 0
    ahead: int = 0  # those whose bodies are here: others do not wait for a slow sender
    pace: float = 0  # seconds from one answer to the next; 0 until the first
    held: int = 0  # bytes

    @property
    def wait(self) -> float:
        """Seconds that a request which comes now may expect to wait."""
        return self.ahead * self.pace

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        if self.requests >= self.limits.requests:
            raise RefusedError(503, "too many requests at once; try again later")
        self._check_wait()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextlib.asynccontextmanager
    async def body(self, stream: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
        """The whole body, decompressed; its bytes are counted until the block ends, so answer within it."""
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in stream:
                size += len(chunk)
                self.held += len(chunk)
                if size > self.limits.body:
                    raise RefusedError(413, f"the body is larger than {self.limits.body:,} bytes")
                self._check_all()
                chunks.append(chunk)
            content = b"".join(chunks)
            chunks.clear()
            if encoding not in ("", "identity"):
                content = await asyncio.to_thread(decompress, content, encoding, self.limits.body)
                self.held += len(content) - size
                size = len(content)
                self._check_all()
            self._check_wait()  # once more: others came while this body was read
            with self._measured():
                yield content
        finally:
            self.held -= size

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        self.ahead += 1
        place, started = self.ahead, self.clock()
        try:
            yield
            seconds = (self.clock() - started) / place  # not of a request that failed: that is quicker
            self.pace += (seconds - self.pace) * (SMOOTHING if self.pace else 1)
        finally:
            self.ahead -= 1

    def _check_wait(self) -> None:
        if self.wait > self.limits.wait:
            over = self.wait - self.limits.wait
            raise RefusedError(503, "too many requests are waiting; try again later", max(1, over))

    def _check_all(self) -> None:
        if self.held > self.limits.all_bodies:
            raise RefusedError(503, "too many large requests at once; try again later")


def decompress(content: bytes, encoding: str, limit: int) -> bytes:
    """gzip or deflate, up to `limit` bytes: a bomb is not unpacked."""
    if encoding not in ("gzip", "deflate"):
        raise RefusedError(415, "Content-Encoding is none of gzip, deflate")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    try:
        unpacked = unpacker.decompress(content, limit + 1)
    except zlib.error:
        raise RefusedError(400, f"the body is no {encoding}") from None
    if len(unpacked) > limit:
        raise RefusedError(413, f"the body is larger than {limit:,} bytes once decompressed")
    if not unpacker.eof:
        raise RefusedError(400, f"the body is cut off {encoding}")
    return unpacked
