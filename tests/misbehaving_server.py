"""A loopback HTTP server that serves one file well, or in each of the ways that servers and networks fail."""

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MisbehavingServer:
    """`body` is what it serves under every path; `faults` are used up, one a request; then it behaves.

    Faults: a status ("404"), "reset", "cut" (half, then closed), "drip" (a byte at a time), "drip-headers", "silent",
    "longer" and "shorter" (of the stated length), "html", "no-ranges", "other-range", "mixed-range" (a range of a file
    that has changed since), "no-validator", "cut-chunks", and "redirect:URL".
    """

    def __init__(self) -> None:
        self.body = b""
        self.faults: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []  # path, headers
        self.closing = threading.Event()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.httpd.daemon_threads = True
        self.httpd.owner = self  # type: ignore[attr-defined]
        self.base = f"http://127.0.0.1:{self.httpd.server_port}"

    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:12]}"'

    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]


@contextmanager
def misbehaving_server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.httpd.shutdown()
        server.httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server: MisbehavingServer = self.server.owner  # type: ignore[attr-defined]
        server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        fault = server.faults.pop(0) if server.faults else ""
        with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up, as it should
            self._answer(server, fault)

    def _answer(self, server: MisbehavingServer, fault: str) -> None:
        body = server.body
        if fault.isdigit():
            self._head(int(fault), {"Content-Length": "0"})
        elif fault.startswith("redirect:"):
            self._head(302, {"Location": fault.removeprefix("redirect:"), "Content-Length": "0"})
        elif fault == "html":
            page = b"\n<!DOCTYPE html><html><title>Please log in</title></html>"
            self._head(200, {"Content-Length": str(len(page)), "Content-Type": "text/html"})
            self.wfile.write(page)
        elif fault == "drip-headers":
            self._drip(server, b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 1000)
        elif fault == "cut-chunks":
            self._head(200, {"Transfer-Encoding": "chunked"})
            self.wfile.write(b"%x\r\n" % len(body) + body[: len(body) // 2])
        else:
            self._file(server, fault, body)

    def _file(self, server: MisbehavingServer, fault: str, body: bytes) -> None:
        first = self._first_byte(server, fault)
        length = len(body) - first + {"longer": 100, "shorter": -100}.get(fault, 0)
        headers = {"Content-Length": str(length)}
        if fault != "no-validator":
            headers["ETag"] = server.etag()
        if first:
            shift = 1 if fault == "other-range" else 0
            headers["Content-Range"] = f"bytes {first - shift}-{len(body) - 1 - shift}/{len(body)}"
        self._head(206 if first else 200, headers)
        half = first + (len(body) - first) // 2
        if fault in ("reset", "cut", "silent", "no-validator"):
            self.wfile.write(body[first:half])
        if fault == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "silent":
            server.closing.wait(10)
        elif fault == "drip":
            self._drip(server, body[first:])
        elif fault not in ("cut", "no-validator"):
            self.wfile.write(body[first : first + length])

    def _first_byte(self, server: MisbehavingServer, fault: str) -> int:
        asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        if asked is None or fault == "no-ranges":
            return 0
        valid = self.headers.get("If-Range") in (None, server.etag())
        return int(asked[1]) if valid or fault in ("mixed-range", "other-range") else 0

    def _drip(self, server: MisbehavingServer, data: bytes) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            if server.closing.wait(0.02):
                return

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
