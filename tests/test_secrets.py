"""Passwords and tokens in addresses: used where they must be, and shown nowhere."""

import base64
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
import torchvision

from flows.doctor import services, sources
from flows.sweep import table
from flows.sweep.plan import Sweep, unfold
from masking import masked
from stages.compare import __main__ as compare
from stages.export.__main__ import provenance
from stages.report import __main__ as report
from stages.report.card import model_card
from stages.shared import artifacts
from stages.shared.checkpoint import Facts
from stages.shared.files import write_json
from stages.shared.params import load_params
from stages.shared.shipped_files import FILES
from stages.shared.transforms import Transform
from tests import toy_project
from tests.experiment import TINY, environment, make_project, write_params
from tests.exported_project import write_photos
from tests.finished_experiment import write_experiment

SECRET = "TOPSECRET"
QUERY = f"token={SECRET}&X-Amz-Signature={SECRET}&{SECRET}"
ADDRESSES = [
    f"https://ann:{SECRET}@host/data.zip",
    f"https://{SECRET}@host:8080/data.zip",
    f"https://ann:pa/{SECRET}@host/data.zip",  # a / that should have been %2F
    f"https://ann:{SECRET}@{SECRET}@host/data.zip",  # an @ that should have been %40
    f"https://ann:{SECRET}?{SECRET}@host/data.zip",  # a ? that should have been %3F
    f"https://host/data.zip?{QUERY}",
    f"https://ann:{SECRET}@host/data.zip?{QUERY}#sha256={'0' * 64}",
    f"s3://ann:{SECRET}@bucket/data.zip",
    f"HTTPS://ann:{SECRET}@host/data.zip",
]


class Guarded(BaseHTTPRequestHandler):
    """Serves `files` by path to whoever knows the password or the token."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (set by `guarded_server`)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        password = f"Basic {base64.b64encode(f'ann:{SECRET}'.encode()).decode()}"
        known = self.headers.get("Authorization") == password or parse_qs(parts.query).get("token") == [SECRET]
        body = self.files.get(parts.path)
        self.send_response(401 if not known else 404 if body is None else 200)
        content = body if known and body is not None else b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def guarded_server(files: dict[str, bytes]) -> Iterator[str]:
    """Its host and port."""
    handler = type("Handler", (Guarded,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_masked_address_has_no_secret(address: str) -> None:
    shown = masked(f"{address}: not found")
    assert SECRET not in shown
    assert shown.lower().startswith(("https://", "s3://"))


@pytest.mark.parametrize("address", ADDRESSES)
def test_params_that_are_refused_are_shown_without_secrets(tmp_path: Path, address: str) -> None:
    for value in ([address], {"url": address}, {address: 1}):
        write_params(tmp_path, {"dataset.source": value, "model.weights": value})
        with pytest.raises(ValueError, match=r"dataset\.source: [^\0]*model\.weights: ") as caught:
            load_params(tmp_path / "params.yaml")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_doctor_shows_no_secret_of_a_source_it_cannot_reach(tmp_path: Path, address: str) -> None:
    far = address.replace("host", "host.invalid")
    for key, mirror in (("dataset.source", None), ("model.weights", None), ("model.weights", far)):
        finding = sources.check_source(key, far, tmp_path, mirror)
        assert finding.level == "fail"
        assert SECRET not in finding.message


def test_the_doctor_reaches_what_needs_a_password_or_a_token(tmp_path: Path) -> None:
    with guarded_server({"/data.zip": b"zip"}) as host:
        for source in (f"http://ann:{SECRET}@{host}/data.zip", f"http://{host}/data.zip?token={SECRET}"):
            finding = sources.check_source("dataset.source", source, tmp_path, None)
            assert (finding.level, SECRET in finding.message) == ("ok", False), finding
        mirror = f"http://{host}/?token={SECRET}"
        finding = sources.check_source("dataset.source", "http://elsewhere.invalid/data.zip", tmp_path, mirror)
        assert (finding.level, SECRET in finding.message) == ("ok", False), finding
        finding = sources.check_source("dataset.source", f"http://ann:wrong{SECRET}@{host}/data.zip", tmp_path, None)
        assert finding.level == "fail"
        assert "Unauthorized" in finding.message
        assert SECRET not in finding.message


def test_the_doctor_shows_no_secret_of_servers_and_remotes(tmp_path: Path) -> None:
    with guarded_server({"/api/health": b"true"}) as host:
        finding = services.check_server(f"http://ann:{SECRET}@{host}/api")
        assert (finding.level, SECRET in finding.message) == ("ok", False), finding
    for api_url in (f"http://ann:{SECRET}@127.0.0.1:9/api", f"http://ann:{SECRET}/api"):
        finding = services.check_server(api_url)
        assert finding.level in ("warn", "fail")
        assert SECRET not in finding.message
    toy = toy_project.create(tmp_path / "toy")
    toy_project.dvc(toy, "remote", "add", "store", f"https://ann:{SECRET}@host/store")
    assert not any(SECRET in finding.message for finding in services.check_dvc(toy))


def test_a_sweep_over_sources_runs_with_their_secrets_and_shows_none() -> None:
    sources = [f"https://ann:{SECRET}@host/one.zip?token={SECRET}", f"https://host/two.zip?X-Amz-Signature={SECRET}"]
    sweep = Sweep(name="sources", title="Sources", x="dataset.source", grid={"dataset.source": sources})
    experiments = unfold(sweep, 1, {})
    assert [f"++dataset.source='{source}'" in e.overrides for e, source in zip(experiments, sources, strict=True)]
    rows = table.summarize(experiments, {}, ["validation_loss"])
    described = {"title": "Sources", "rows": rows, "finals": [], "winner": {}}
    for shown in (str(rows), table.as_markdown(described, ["validation_loss"]), table.as_csv(rows)):
        assert SECRET not in shown
        assert "one.zip" in shown
        assert "two.zip" in shown
    assert not any(SECRET in experiment.name for experiment in experiments)


@pytest.mark.parametrize("address", ADDRESSES)
def test_export_json_and_the_model_card_have_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"dataset.source": address, "model.weights": address})
    left_out = [{"file": file.name, "shipped": False, "reason": "no"} for file in FILES if file.is_reduced]
    written = [artifacts.ROOT / file.path for file in FILES if not file.is_reduced]
    for path in (*written, artifacts.EXPORT / "reference.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"exported")
    for folder in (artifacts.SOURCE_DATASET, artifacts.SOURCE_MODEL):
        write_json(folder / "source.json", {"kind": "url", "source": masked(address)})
    facts = Facts("resnet18", ("a", "b"), Transform(256, 224, (0.5,) * 3, (0.5,) * 3), "finetune", 0, None, "d" * 64)
    sidecar = provenance(load_params(), "finetune", facts, {"weights_digest": "e" * 64}, left_out)
    card = model_card(sidecar, artifacts.evaluate_dir("finetune"), None, num_train=1, num_test=1, fixes={})
    assert SECRET not in json.dumps(sidecar)
    assert sidecar["data"]["source"]["source"] == masked(address)
    assert SECRET not in card
    assert masked(address) in card


@pytest.mark.parametrize("address", [ADDRESSES[2], ADDRESSES[5]])
def test_the_report_and_the_comparison_have_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_experiment(num_images=4)
    write_params(tmp_path, {"dataset.source": address, "model.weights": address})
    for folder in (artifacts.SOURCE_DATASET, artifacts.SOURCE_MODEL):
        write_json(folder / "source.json", {"kind": "url", "source": masked(address)})
    compare.main()
    report.main()
    written = [path for path in artifacts.ROOT.rglob("*") if path.is_file()]
    assert artifacts.REPORT in written
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert "dataset.source" in artifacts.REPORT.read_text()


def archive(folder: Path) -> bytes:
    """A zip of a few photos in train/ and test/."""
    write_photos(folder)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, path.relative_to(folder))
    return content.getvalue()


def weights(architecture: str) -> bytes:
    content = io.BytesIO()
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(architecture).state_dict(), content)
    return content.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds: six stages, each a process of its own, and a Prefect server
def test_nothing_that_a_run_up_to_the_export_writes_or_says_has_a_secret(tmp_path: Path) -> None:
    """Except params.yaml and what DVC copies from it word for word: dvc.lock and its run cache. The README says so."""
    architecture = "shufflenet_v2_x0_5"
    with guarded_server({"/photos.zip": archive(tmp_path / "photos"), "/w.pth": weights(architecture)}) as host:
        overrides = {
            "dataset.source": f"http://ann:{SECRET}@{host}/photos.zip?{QUERY}",
            "model.weights": f"http://{host}/w.pth?{QUERY}",
            "model.architecture": architecture,
        }
        project = make_project(tmp_path / "project", TINY | overrides)
        bare = {name: value for name, value in environment().items() if not name.startswith("PREFECT")}
        flow = [sys.executable, "-m", "flows.pipeline"]
        done = subprocess.run([*flow, "export"], cwd=project, env=bare, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        source = json.loads((project / artifacts.SOURCE_DATASET / "source.json").read_text())["source"]
        assert source == f"http://***@{host}/photos.zip?***"
        assert source in (project / artifacts.EXPORT / "export.json").read_text()
        check_files(project)
        params = project / "params.yaml"
        params.write_text(params.read_text().replace("photos.zip", "missing.zip"))
        failed = subprocess.run([*flow, "download@dataset"], cwd=project, env=bare, capture_output=True, check=False)
        assert failed.returncode == 1
        assert b"missing.zip" in failed.stdout + failed.stderr

    for stream in (done.stdout, done.stderr, failed.stdout, failed.stderr):
        assert SECRET.encode() not in stream
    check_files(project)


def check_files(project: Path) -> None:
    files = [path for path in project.rglob("*") if path.is_file() and ".git" not in path.relative_to(project).parts]
    holding = {path.relative_to(project).as_posix() for path in files if SECRET.encode() in path.read_bytes()}
    print(len(files), "files;", *sorted(holding))
    assert {"params.yaml", "dvc.lock"} <= holding  # this test would notice a secret
    assert {name for name in holding if not name.startswith(".dvc/cache/runs/")} == {"params.yaml", "dvc.lock"}
    assert any(path.suffix == ".db" for path in files)  # Prefect's, with every line that the stages said
