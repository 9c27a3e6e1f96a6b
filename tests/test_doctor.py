"""flows/doctor.py: each finding says what is wrong and what to do, and only what must be done fails."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fastapi
import pytest
from ruamel.yaml import YAML

from flows.doctor import __main__ as doctor
from flows.doctor import machine, services, sources
from flows.doctor.finding import Finding
from tests import toy_project


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as Prefect's health check does, and has one file."""

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/api/health" else 404, b"true")

    def do_HEAD(self) -> None:
        self.answer(200 if self.path == "/hotdog.zip" else 404, b"")

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("version", "level"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")])
def test_python_is_one_that_the_project_is_tested_on(version: tuple[int, int], level: str) -> None:
    assert machine.check_python(version).level == level


def test_pins_name_the_package_that_differs_and_skip_what_is_not_installed(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"# comment\nfastapi=={fastapi.__version__}\npytest==0.1\nno-such-package-here==1.0\n")
    findings = machine.check_pins(pins)
    assert [(finding.level, finding.subject) for finding in findings] == [("warn", "pytest"), ("ok", "pins")]
    assert "pinned ==0.1" in findings[0].message
    assert findings[1].message.startswith("1 package")


def test_a_version_known_to_break_prefect_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda name: "2.1.3")
    pins = tmp_path / "constraints.txt"
    pins.write_text("sqlalchemy==2.0.58\n")
    finding = machine.check_pins(pins)[0]
    assert (finding.level, finding.subject) == ("fail", "sqlalchemy")
    assert "starts no runs" in finding.message


def test_missing_pins_fail(tmp_path: Path) -> None:
    assert machine.check_pins(tmp_path / "constraints.txt")[0].level == "fail"


@pytest.mark.parametrize(
    ("found", "has_device", "levels", "words"),
    [
        ({"cuda": False}, False, ["warn"], "no NVIDIA device"),
        ({"cuda": False}, True, ["fail"], "update the driver"),
        ({"cuda": True, "loaded": ["CUDAExecutionProvider"]}, True, ["ok", "ok"], "provider loads"),
        ({"cuda": True, "loaded": ["CPUExecutionProvider"]}, True, ["ok", "fail"], "library is missing"),
        ({"cuda": True, "loaded": ["CPUExecutionProvider"], "providers": []}, True, ["ok", "fail"], "without CUDA"),
    ],
)
def test_a_cuda_provider_that_is_listed_but_does_not_load_fails(
    found: dict[str, object], has_device: bool, levels: list[str], words: str
) -> None:
    given = {"torch": "2.15.0", "device": "H200", "providers": ["CUDAExecutionProvider"], "loaded": []} | found
    findings = machine.judge_runtimes(given, has_device)
    assert [finding.level for finding in findings] == levels
    assert words in findings[-1].message


@pytest.mark.parametrize(("free", "level"), [(10**9, "fail"), (5 * 10**9, "warn"), (10**12, "ok")])
def test_disk(free: int, level: str) -> None:
    assert machine.check_disk(free).level == level


def test_dvc_lock_and_remotes(tmp_path: Path) -> None:
    toy = toy_project.create(tmp_path / "toy")
    assert [(f.level, f.subject) for f in services.check_dvc(toy)] == [
        ("ok", "dvc lock"),
        ("warn", "dvc links"),  # the toy leaves DVC's own default, which copies
        ("warn", "dvc remote"),
    ]

    toy_project.dvc(toy, "remote", "add", "--default", "store", str(tmp_path / "store"))
    assert services.check_dvc(toy)[2].level == "fail"
    (tmp_path / "store").mkdir()
    assert services.check_dvc(toy)[2].message.endswith("(default)")


def test_the_links_in_use_and_what_they_save_are_told(tmp_path: Path) -> None:
    toy = toy_project.create(tmp_path / "toy")
    (toy / ".dvc/config").write_text((toy / ".dvc/config").read_text() + "[cache]\n    type = hardlink,copy\n")
    toy_project.dvc(toy, "repro", "--quiet", "alone")
    assert (toy / "artifacts/alone").stat().st_nlink == 2
    finding = services.check_dvc(toy)[1]
    assert (finding.level, finding.subject) == ("ok", "dvc links")
    assert finding.message.startswith("hardlink: results share their bytes")


def test_a_held_dvc_lock_is_told(tmp_path: Path) -> None:
    toy = toy_project.create(tmp_path / "toy")
    with services.Repo(str(toy)) as repo, repo.lock:
        assert services.check_dvc(toy)[0].level == "warn"


def test_a_folder_that_is_no_dvc_project_fails(tmp_path: Path) -> None:
    (finding,) = services.check_dvc(tmp_path)
    assert finding.level == "fail"


def test_the_prefect_server_answers_is_absent_or_is_something_else(address: str) -> None:
    assert services.check_server(f"{address}/api").level == "ok"
    assert services.check_server(f"{address}/other").level == "fail"
    assert services.check_server("http://127.0.0.1:9/api").level == "warn"


def test_sources_are_asked_where_the_download_would_ask(address: str, tmp_path: Path) -> None:
    far = "http://user:secret@127.0.0.1:9/data/hotdog.zip"
    refused = sources.check_source("dataset.source", far, tmp_path, None)
    assert refused.level == "fail"
    assert "MIRROR_BASE" in refused.message
    assert "secret" not in refused.message
    assert sources.check_source("dataset.source", far, tmp_path, address).level == "ok"
    assert sources.check_source("dataset.source", f"{address}/other.zip", tmp_path, None).level == "fail"


def test_sources_by_path_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert sources.check_source("dataset.source", "photos", tmp_path, None).level == "ok"
    assert sources.check_source("dataset.source", "potos", tmp_path, None).level == "fail"
    assert sources.check_source("dataset.source", "synthetic", tmp_path, None).level == "ok"
    weights = {"architecture": "resnet18", "weights": "photos"}
    YAML().dump({"dataset": {"source": "photos#sha1=0123abcd"}, "model": weights}, tmp_path / "params.yaml")
    assert [finding.level for finding in sources.check_sources(tmp_path)] == ["ok", "ok"]


def test_weights_by_name_are_looked_for_where_torchvision_has_them(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = """import json; print(json.dumps({"url": "http://127.0.0.1:9/models/hotdog.zip", "names": ["V1"]}))"""
    monkeypatch.setattr(sources, "WEIGHTS", known)
    refused = sources.check_named_weights("resnet18", "V1", tmp_path, None)
    assert refused.level == "fail"
    assert "MIRROR_BASE" in refused.message
    assert sources.check_named_weights("resnet18", "V1", tmp_path, address).level == "ok"
    folder = tmp_path / "artifacts/download/model"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text('{"source": "V1"}')
    (folder / "weights.safetensors").write_bytes(b"there")
    assert sources.check_named_weights("resnet18", "V1", tmp_path, None).message == "V1 (downloaded)"


def test_unknown_weights_are_told_what_torchvision_has(tmp_path: Path) -> None:
    finding = sources.check_named_weights("resnet18", "IMAGENET1K_V9", tmp_path, None)
    assert finding.level == "fail"
    assert finding.message == "IMAGENET1K_V9: neither a file nor torchvision's; resnet18 has IMAGENET1K_V1, DEFAULT"


def test_a_lock_with_a_merge_conflict_fails(tmp_path: Path) -> None:
    toy = toy_project.create(tmp_path / "toy")
    (toy / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> theirs\n")
    (finding,) = services.check_dvc(toy)
    assert (finding.level, finding.subject) == ("fail", "dvc.lock")
    assert "git checkout --ours dvc.lock" in finding.message


def test_the_exit_code_is_one_only_where_something_must_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("warn", "disk", "5.0 GB free")]
    monkeypatch.setattr(doctor, "examine", lambda root: findings)
    assert doctor.main() == 0
    findings.append(Finding("fail", "python", "too old"))
    assert doctor.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "fail  python  too old"


def test_the_runtimes_are_asked_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RUNTIMES", """print('a warning'); print('{"cuda": false, "torch": "2.15.0"}')""")
    monkeypatch.setattr(machine.Path, "exists", lambda self: False)
    assert [finding.level for finding in machine.check_runtimes()] == ["warn"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('ImportError: libcudart.so.13')", "do not work: ImportError: libcudart.so.13"),
        ("import os; os.kill(os.getpid(), 9)", "do not work: exit code -9"),
    ],
)
def test_runtimes_that_do_not_import_fail_with_their_last_words(
    monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    monkeypatch.setattr(machine, "RUNTIMES", code)
    (finding,) = machine.check_runtimes()
    assert finding.level == "fail"
    assert words in finding.message
    assert "remove .venv" in finding.message


def test_another_version_that_breaks_nothing_known_is_a_warning() -> None:
    finding = machine._wrong_version("sqlalchemy", "2.0.1", "==2.0.58")
    assert (finding.level, finding.message.split(";")[0]) == ("warn", "2.0.1, pinned ==2.0.58")


def test_both_sources_of_params_yaml_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIRROR_BASE", raising=False)
    (tmp_path / "params.yaml").write_text(
        "dataset: {source: synthetic}\nmodel: {architecture: resnet18, weights: missing/weights.pth}\n"
    )
    findings = sources.check_sources(tmp_path)
    assert [(finding.subject, finding.level) for finding in findings] == [
        ("dataset.source", "ok"),
        ("model.weights", "fail"),
    ]


def test_everything_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_project.create(tmp_path / "toy")
    (toy / "constraints.txt").write_text("pytest>=1\n")
    monkeypatch.setattr(machine, "RUNTIMES", """print('{"cuda": false, "torch": "2.15.0"}')""")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    subjects = {finding.subject for finding in doctor.examine(toy)}
    assert {"python", "pins", "cuda", "disk", "dvc lock", "prefect server", "dataset.source"} <= subjects
