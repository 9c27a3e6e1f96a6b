"""Serve an exported model over HTTP: pictures at /classify, tensors by the Open Inference Protocol v2. No torch.

    python consumers/server/serve.py --model artifacts/model.onnx
    curl --data-binary @photo.jpg http://127.0.0.1:8000/classify

SERVE_TOKEN in the environment: a bearer token that every request but the health checks must bring. SIGTERM ends it: no
new connections, an answer to every request that was taken. Exit code 2: the model or the port cannot be used.
"""

import argparse
import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # not this folder: its files are found as consumers.server

from consumers import predict  # noqa: E402
from consumers.server.app import create_app  # noqa: E402
from consumers.server.guard import log  # noqa: E402
from consumers.server.limits import Limits  # noqa: E402
from consumers.server.model_file import ModelFile  # noqa: E402
from consumers.server.service import Service  # noqa: E402


def main() -> int:
    options = parse_arguments()
    try:
        token = read_token()
        file = ModelFile(options.model, options.provider, options.poll)
        listener = listen(options.host, options.port)
    except (predict.UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    body = options.max_body * 2**20
    all_bodies = max(body, Limits.all_bodies)
    limits = Limits(
        body=body,
        all_bodies=all_bodies,
        requests=2 * options.queue,
        images=min(options.queue, Limits.images),
        seconds=options.timeout,
    )
    queue = {"max_batch": options.batch_size, "max_queue": options.queue, "budget": options.budget / 1000}
    app = create_app(Service(file, limits, **queue), token)
    config = uvicorn.Config(
        app,
        http=Protocol,
        log_level="warning",
        access_log=False,  # every request has its JSON line
        server_header=False,
        timeout_keep_alive=options.keep_alive,
        timeout_graceful_shutdown=math.ceil(options.timeout),
    )
    log(event="start", address=f"http://{options.host}:{listener.getsockname()[1]}", model=file.current.digest)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more when all is answered
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])
    log(event="stop")
    return 0


class Protocol(H11Protocol):
    """uvicorn's HTTP on h11, which bounds headers, but closing a connection whose request's head takes over `--keep-alive` seconds."""

    patience: asyncio.TimerHandle | None = None  # while a head is awaited; uvicorn's own timer ends with its first byte

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.end_patience()
        elif self.patience is None:
            self.await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end_patience()
        super().connection_lost(exc)

    def await_head(self) -> None:
        self.patience = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def end_patience(self) -> None:
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None


def read_token() -> str | None:
    """The bearer token. One that was set but is blank is a mistake, and would leave the server open."""
    token = os.environ.get("SERVE_TOKEN")
    if token is not None and not token.strip():
        raise predict.UsageError("SERVE_TOKEN is empty; unset it to serve without a token")
    return token and token.strip()


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def from_zero(text: str) -> float:
    return 0.0 if float(text) == 0 else above_zero(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve an exported model over HTTP.")
    add = parser.add_argument
    add(
        "--model", type=Path, default=ROOT / "artifacts" / "model.onnx", help="the ONNX file; a newer one is taken over"
    )
    add("--host", default="127.0.0.1", help="0.0.0.0 for all of this machine's addresses (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="0 takes any free port (default: 8000)")
    add("--provider", choices=predict.PROVIDERS, default="cpu", help="what computes; never falls back")
    add("--batch-size", type=predict.count, default=16, help="images that are run together at most (default: 16)")
    add("--budget", type=from_zero, default=5, help="milliseconds that an image waits for others, or 0 (default: 5)")
    add("--queue", type=predict.count, default=256, help="images that may wait; beyond, 503 (default: 256)")
    add("--timeout", type=above_zero, default=30, help="seconds until a request is given up (default: 30)")
    add("--max-body", type=predict.count, default=64, help="megabytes of a request (default: 64)")
    add("--poll", type=above_zero, default=2, help="seconds between looks for a newer model file (default: 2)")
    add("--keep-alive", type=predict.count, default=75, help="seconds that an idle connection stays open (default: 75)")
    return parser.parse_args()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is told before anything starts.

    asyncio sets TCP_NODELAY only where the protocol is given: without it an answer waits 40 ms for the client's acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise OSError(f"{host}:{port}: {getattr(error, 'strerror', error)}; choose another --port") from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
