"""The page's own server, and what the page is built from; no browser."""

import hashlib
import http.client
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

WEB = Path(__file__).parents[1] / "consumers" / "web"
sys.path.insert(0, str(WEB))
import serve  # noqa: E402


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    model = tmp_path_factory.mktemp("model") / "model.onnx"
    model.write_bytes(b"a model")
    server = serve.create_server(0, [model])
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "127.0.0.1", 200),
        ("/app.js?x=1", "localhost:8000", 200),
        ("/model.onnx", "127.0.0.1", 200),
        ("/serve.py", "127.0.0.1", 404),
        ("/package.json", "127.0.0.1", 404),
        ("/dist/", "127.0.0.1", 404),
        ("/../../params.yaml", "127.0.0.1", 404),
        ("/%2e%2e/%2e%2e/params.yaml", "127.0.0.1", 404),
        ("//etc/passwd", "127.0.0.1", 404),
        ("/", "attacker.example", 421),
        ("/", "[", 421),
    ],
)
def test_server_gives_its_own_files_to_its_own_host_only(port: int, path: str, host: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    assert response.status == status
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


def test_server_lists_every_file_the_page_imports() -> None:
    files = {
        path.relative_to(WEB).as_posix() for path in WEB.iterdir() if path.suffix in {".html", ".css", ".js", ".svg"}
    }
    vendored = {f"dist/{name}" for name in json.loads((WEB / "vendor.json").read_text())}
    assert set(serve.PAGE) == files | vendored


def test_runtime_is_pinned_and_no_file_names_a_registry() -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert all(version[0].isdigit() and version.count(".") == 2 for version in package["dependencies"].values())
    assert "package-lock.json" in (WEB / ".gitignore").read_text()


def test_built_runtime_has_the_pinned_bytes() -> None:
    if not (WEB / "dist").is_dir():
        pytest.skip("the page is not built: npm --prefix consumers/web run build")
    pinned = json.loads((WEB / "vendor.json").read_text())
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (WEB / "dist").iterdir()} == pinned
