"""The way of every request: the token, the time limit, an answer whatever fails, the counters and the log."""

import asyncio
import contextlib
import hmac
import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consumers.server.batching import QueueFullError
from consumers.server.limits import RefusedError
from consumers.server.metrics import Metrics
from consumers.server.protocol import ProtocolError

OPEN = ("/v2/health/live", "/v2/health/ready")  # a load balancer has no token
GONE = 499  # the client left before the answer


class Guard:
    """ASGI middleware. Outside it no exception is seen, and no answer tells of this machine."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None, seconds: float) -> None:
        self.app, self.metrics, self.token, self.seconds = app, metrics, token, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if self.token is not None and scope["path"] not in OPEN and not knows(self.token, scope):
                raise RefusedError(401, "a bearer token is needed")
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive, noting)
        except Exception as error:
            if not status:
                with contextlib.suppress(OSError):
                    await self.refusal(error)(scope, receive, noting)
        self.note(scope, status, time.perf_counter() - started)
        return None

    def refusal(self, error: Exception) -> JSONResponse:
        match error:
            case RefusedError():
                return refuse(error.status, str(error), error.seconds)
            case ProtocolError():
                return refuse(400, str(error))
            case QueueFullError():
                return refuse(503, "the queue is full; try again later")
            case TimeoutError():
                return refuse(504, f"not answered within {self.seconds:g} seconds")
            case ClientDisconnect():
                return refuse(GONE, "the client has gone")
        log(event="error", kind=type(error).__name__, detail=str(error)[:500])
        return refuse(500, "internal error")

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.latency.labels(route).observe(seconds)
        if route not in OPEN:
            fields: dict[str, Any] = {"method": scope["method"], "route": route, "status": status}
            noted = scope.get("state", {}).get("noted", {})
            log(event="request", **fields, milliseconds=round(1000 * seconds, 1), **noted)


def knows(token: str, scope: Scope) -> bool:
    kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


def refuse(status: int, message: str, seconds: float = 1, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`seconds`: when a request that was too much may come again."""
    ours = {503: {"Retry-After": str(math.ceil(seconds))}, 401: {"WWW-Authenticate": "Bearer"}}
    headers = ours.get(status, headers or {})
    if status in (401, 413, GONE, 503, 504):  # what is left of the body is not read
        headers = {**headers, "Connection": "close"}
    return JSONResponse({"error": message}, status, headers)


def log(**fields: object) -> None:
    """One JSON line on stdout."""
    print(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}), flush=True)
