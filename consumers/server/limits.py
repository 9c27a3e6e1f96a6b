"""The limits of a request: bytes, time, and a place among those that are being answered."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field


class RefusedError(Exception):
    """A request that is not answered: `status` is HTTP's, the message is for its sender."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    body: int = 64 * 2**20  # bytes, also once decompressed
    all_bodies: int = 512 * 2**20  # bytes of all requests that are being answered
    requests: int = 512  # that are being answered at once
    images: int = 64  # in one request
    pixels: int = 2**26  # in one request
    seconds: float = 30  # from a request's first byte to its answer


@dataclass
class Admission:
    """Count what is being answered now. Refuses with 503 what would be too much."""

    limits: Limits
    requests: int = 0
    held: int = field(default=0)  # bytes

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        if self.requests >= self.limits.requests:
            raise RefusedError(503, "too many requests at once; try again later")
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
            yield content
        finally:
            self.held -= size

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
