"""Serve the page on 127.0.0.1: its own files and the model, by an explicit list, and nothing else.

    python consumers/web/serve.py [--port 8000] [--model artifacts/model.onnx]

Every answer carries a policy under which the page can reach no other host, and the isolation that WebAssembly threads
need. A request under another host's name is refused, so that no foreign site can read the model by DNS rebinding.
"""

import argparse
import shutil
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "artifacts" / "model.onnx"

PAGE = (
    *("index.html", "style.css", "icon.svg", "app.js", "camera.js", "worker.js", "decode.js", "image-file.js"),
    *("webp-orientation.js", "model.js", "onnx-metadata.js"),
    *("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    *("dist/ort.webgpu.min.mjs", "dist/ort-wasm-simd-threaded.asyncify.mjs"),
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the page that runs the model in a browser.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port (default: 8000)")
    parser.add_argument("--model", type=Path, default=MODEL, help="the ONNX file (default: artifacts/model.onnx)")
    arguments = parser.parse_args()
    if not (HERE / "dist").is_dir():
        raise SystemExit(f"error: {HERE / 'dist'}: not built; run `npm run build` in {HERE}")
    try:
        server = create_server(arguments.port, arguments.model)
    except OSError as error:
        raise SystemExit(f"error: port {arguments.port}: {error.strerror}; choose another with --port") from None
    print(f"http://127.0.0.1:{server.server_port}/ (stop with Ctrl-C)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


def create_server(port: int, model: Path) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that answers for the page's files and for `model`, which it opens anew for each request."""
    files = {f"/{name}": HERE / name for name in PAGE} | {"/": HERE / "index.html", "/model.onnx": model}
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, files))


class Handler(BaseHTTPRequestHandler):
    server_version = "page"
    sys_version = ""
    timeout = 60  # seconds a silent client may hold a thread

    def __init__(self, files: dict[str, Path], *arguments: object) -> None:
        self.files = files
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        path = self.files.get(self.path.partition("?")[0])
        if path is None or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # the reader has gone
                    shutil.copyfileobj(file, self.wfile, 2**20)

    do_HEAD = do_GET  # noqa: N815

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say only what went wrong."""
        if isinstance(code, int) and code >= HTTPStatus.BAD_REQUEST:
            super().log_request(code, size)


if __name__ == "__main__":
    main()
