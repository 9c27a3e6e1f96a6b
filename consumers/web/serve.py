"""Serve the page on 127.0.0.1: its own files and the model, by an explicit list, and nothing else.

    python consumers/web/serve.py [--port 8000] [--model artifacts/model.onnx [more.onnx …]]

Every answer carries a policy under which the page can reach no other host, and the isolation that WebAssembly threads
need. A request under another host's name is refused, so that no foreign site can read the model by DNS rebinding.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "artifacts" / "model.onnx"

PAGE = (
    *("index.html", "style.css", "icon.svg", "app.js", "answer.js", "gallery.js", "decision.js", "camera.js"),
    *("worker.js", "decode.js", "image-file.js", "webp-orientation.js", "model.js", "onnx-metadata.js"),
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
    parser.add_argument(
        "--model",
        type=Path,
        nargs="+",
        default=[MODEL],
        help="ONNX files to choose from (default: artifacts/model.onnx)",
    )
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


def create_server(port: int, models: Sequence[Path]) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that answers for the page's files and for `models`, which it opens anew for each request."""
    named = name_models(models)
    files = {f"/{name}": HERE / name for name in PAGE} | {"/": HERE / "index.html", "/model.onnx": models[0]}
    files |= {f"/models/{quote(name, safe='')}": path for name, path in named.items()}
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, files, json.dumps(list(named)).encode()))


def name_models(models: Sequence[Path]) -> dict[str, Path]:
    """Their files' names; of two alike the later ones are numbered."""
    named: dict[str, Path] = {}
    for path in models:
        alike = sum(other.name == path.name for other in named.values())
        named[f"{path.name} ({alike + 1})" if alike else path.name] = path
    return named


class Handler(BaseHTTPRequestHandler):
    server_version = "page"
    sys_version = ""
    timeout = 60  # seconds a silent client may hold a thread

    def __init__(self, files: dict[str, Path], names: bytes, *arguments: object) -> None:
        self.files, self.names = files, names  # names of the models, as JSON
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        if self.path == "/models.json":
            self.start(len(self.names), "application/json")
            self.wfile.write(b"" if self.command == "HEAD" else self.names)
            return
        path = self.files.get(self.path.partition("?")[0])
        if path is None or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            state = path.stat()
            self.start(state.st_size, TYPES.get(path.suffix, "application/octet-stream"), state.st_mtime)
            if self.command == "GET":
                with suppress(ConnectionError):  # the reader has gone
                    shutil.copyfileobj(file, self.wfile, 2**20)

    do_HEAD = do_GET  # noqa: N815

    def start(self, length: int, kind: str, changed: float | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if changed is not None:
            self.send_header("Last-Modified", self.date_time_string(changed))
        self.end_headers()

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
