"""consumers/server/serve.py as a process, asked by clients that nobody here wrote: tritonclient and urllib."""

import asyncio
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.requests import Request

from consumers import predict
from consumers.server.guard import Guard
from consumers.server.limits import Admission, Limits, RefusedError
from consumers.server.metrics import Metrics
from consumers.server.serve import listen, parse_arguments
from consumers.server.service import picture_in
from tests.exported_project import ROOT
from tests.tiny_model import CLASSES, write_tiny_model

SERVE = ROOT / "consumers" / "server" / "serve.py"
THRESHOLDS = {"familiarity": 0.2, "probability": {"red": 0.9}}


class Server:
    """A running serve.py; `lines` are what it has logged so far."""

    def __init__(self, model: Path, *words: str, **environment: str) -> None:
        command = [sys.executable, str(SERVE), "--model", str(model), "--port", "0", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("{"), first + self.process.stdout.read()
        self.lines = [json.loads(first)]
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = self.lines[0]["address"]
        self.host = self.url.removeprefix("http://")
        while self.ask("/v2/health/ready")[0] != 200:
            time.sleep(0.02)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line) if line.startswith("{") else {"event": "raw", "line": line})

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/octet-stream"} | names)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read(), lower(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), lower(error.headers)
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return 0, b"", {}
            raise

    def classify(self, picture: bytes, query: str = "") -> dict[str, object]:
        status, body, _ = self.ask(f"/classify{query}", picture)
        assert status == 200, body
        answer: dict[str, object] = json.loads(body)
        return answer

    def wait_for_line(self, **fields: object) -> dict[str, object]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if fields.items() <= line.items():
                    return line
            time.sleep(0.02)
        raise AssertionError(f"never logged {fields}: {self.lines[-5:]}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        return code


def lower(headers: object) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def picture(colour: tuple[int, ...] = (250, 5, 5), size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_tiny_model(path, thresholds=THRESHOLDS)
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    server = Server(model)
    yield server
    assert server.stop() == 0
    assert not [line for line in server.lines if line["event"] in ("error", "raw")]


# pictures


def test_classify_gives_predict_pys_answer_for_raw_and_form_uploads(server: Server, model: Path) -> None:
    content = picture()
    expected = predict.load_model(model, "cpu")
    answer = predict.infer(expected, [predict.decode(BytesIO(content), expected.side)])[0]
    assert isinstance(answer, predict.Answer)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    _, body, _ = server.ask("/classify", form, Content_Type="multipart/form-data; boundary=x")
    wanted = predict.record(expected, answer)
    for found in (server.classify(content), json.loads(body)):
        assert found["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
        assert (found["class"], found["decision"]) == (wanted["class"], wanted["decision"])


def test_a_form_is_read_where_nothing_may_be_written_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    content = bytes(2 * 2**20)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    request = Request({"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=x")]})
    assert asyncio.run(picture_in(request, form)) == content


def test_thresholds_decide_and_always_overrules_them(server: Server) -> None:
    assert server.classify(picture((5, 250, 5)))["decision"] == "unfamiliar"
    assert server.classify(picture((130, 120, 120)))["decision"] == "unsure"
    assert server.classify(picture((5, 250, 5)), "?always=true")["decision"] == "answered"


def test_refusals_are_json_and_say_why(server: Server) -> None:
    for path, body, status, reason in (
        ("/classify", b"no picture", 400, "the picture is no image in"),
        ("/classify", b"", 400, "the body is empty"),
        ("/classify", picture()[:50], 400, "the picture cannot be decoded"),
        ("/nothing", None, 404, "see /docs"),
        ("/v2/models/other", None, 404, "the model is classifier, version 1"),
        ("/v2/models/classifier/infer", b"{", 400, "the request is no JSON"),
        ("/classify", None, 405, "Method Not Allowed"),
    ):
        found, answer, _ = server.ask(path, body)
        assert found == status, path
        assert reason in json.loads(answer)["error"]


def test_docs_need_nothing_from_elsewhere_and_name_every_route(server: Server) -> None:
    schema = json.loads(server.ask("/openapi.json")[1])
    page = server.ask("/docs")[1].decode()
    assert "/classify" in schema["paths"]
    assert all(path in page for path in schema["paths"])
    assert "https://" not in page
    assert "http://" not in page


def test_answers_tell_nothing_of_the_machine(server: Server) -> None:
    for path, body in (("/classify", b"x"), ("/v2", None), ("/docs", None), ("/metrics", None), ("/%00", None)):
        _, content, headers = server.ask(path, body)
        for secret in (str(ROOT).encode(), b"Traceback", b".py", b".onnx", os.uname().nodename.encode() + b"/"):
            assert secret not in content
        assert "server" not in headers


def test_log_has_one_json_line_a_request_and_metrics_count_them(server: Server) -> None:
    server.classify(picture((5, 250, 5)))
    line = server.wait_for_line(route="/classify", decision="unfamiliar")
    assert set(line) == {"time", "event", "method", "route", "status", "milliseconds", "images", "bytes", "decision"}
    metrics = server.ask("/metrics")[1].decode()
    for name in (
        'requests_total{route="/classify",status="200"}',
        'answers_total{decision="unfamiliar"}',
        "batch_size_count",
    ):
        assert float(next(line for line in metrics.splitlines() if line.startswith(name)).split()[-1]) >= 1


# the protocol


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[object]:
    client = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(server.host, concurrency=4) as triton:
        yield triton


def pixels(batch: int, height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)


def test_tritonclient_finds_server_and_model(triton) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("classifier")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["name"] == "classifier"
    metadata = triton.get_model_metadata("classifier")
    assert [output["name"] for output in metadata["outputs"]] == ["probabilities", "familiarity"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, -1]}]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 20, 30, 3), (5, 20, 30, 3), (2, 20, 30, 4), (3, 16, 16, 3)]
)  # the model's side is 16
def test_tritonclient_gets_the_models_probabilities(
    triton, model: Path, binary: bool, shape: tuple[int, int, int, int]
) -> None:
    client = pytest.importorskip("tritonclient.http")
    images = pixels(*shape)
    tensor = client.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    outputs = [client.InferRequestedOutput(name, binary_data=binary) for name in ("familiarity", "probabilities")]
    result = triton.infer("classifier", [tensor], outputs=outputs, request_id="seven")
    assert result.get_response()["id"] == "seven"
    opaque = [np.asarray(predict.to_rgb(Image.fromarray(image))) for image in images]
    loaded = predict.load_model(model, "cpu")
    small = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in opaque]
    expected = predict.infer(loaded, small)
    np.testing.assert_allclose(result.as_numpy("probabilities"), [row.probabilities for row in expected], atol=1e-5)
    np.testing.assert_allclose(result.as_numpy("familiarity"), [row.familiarity for row in expected], atol=1e-5)


def test_tritonclient_may_compress_ask_for_classes_and_send_many_at_once(triton) -> None:
    client = pytest.importorskip("tritonclient.http")
    images = pixels(3)
    tensor = client.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    for compression in ("gzip", "deflate"):
        result = triton.infer("classifier", [tensor], request_compression_algorithm=compression)
        assert result.as_numpy("probabilities").shape == (3, 3)
    for binary in (True, False):
        wanted = client.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
        rows = triton.infer("classifier", [tensor], outputs=[wanted]).as_numpy("probabilities")
        texts = [text.decode() if isinstance(text, bytes) else text for text in rows.ravel()]
        assert rows.shape == (3, 2)
        assert {text.split(":")[2] for text in texts} <= set(CLASSES)
    pending = [triton.async_infer("classifier", [tensor]) for _ in range(40)]
    assert all(request.get_result().as_numpy("probabilities").shape == (3, 3) for request in pending)


def test_client_py_and_tritonclient_see_one_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(picture())
    command = [sys.executable, str(SERVE.parent / "client.py"), str(tmp_path / "red.png"), "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{tmp_path / 'red.png'}: red 0.9"), done.stderr


# limits


def test_full_queue_is_refused_with_when_to_come_again(tmp_path: Path, model: Path) -> None:
    server = Server(model, "--queue", "2", "--batch-size", "1", "--max-body", "1")
    big = picture(size=(4000, 3000))
    answers: list[tuple[int, bytes, dict[str, str]]] = []
    threads = [threading.Thread(target=lambda: answers.append(server.ask("/classify", big))) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [headers for status, _, headers in answers if status == 503]
    assert {status for status, _, _ in answers} == {200, 503}
    assert all(headers["retry-after"] for headers in refused)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [3, 1, 1, 3], "data": [0] * 9}
    status, body, _ = server.ask("/v2/models/classifier/infer", json.dumps({"inputs": [tensor]}).encode())
    assert (status, "more than 2 images" in body.decode()) == (400, True)  # they would never fit
    status, body, _ = server.ask("/classify", bytes(2**20 + 1))
    assert (status, "larger than" in body.decode()) == (413, True)
    assert server.stop() == 0


def test_a_body_counts_as_large_as_it_is_decompressed_until_it_is_answered() -> None:
    admission = Admission(Limits())

    async def stream() -> AsyncIterator[bytes]:
        yield gzip.compress(bytes(10**6))

    async def held() -> tuple[int, int]:
        async with admission.body(stream(), "gzip") as body:
            return len(body), admission.held

    assert asyncio.run(held()) == (10**6, 10**6)
    assert admission.held == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """Requests behind an Admission, answered one by one in the order of their arrival by a simulated clock."""

    def __init__(self, limits: Limits) -> None:
        self.clock = Clock()
        self.admission = Admission(limits, self.clock)
        self.turns: list[asyncio.Event] = []
        self.waited: list[float] = []  # seconds, of those answered
        self.refused: list[int] = []  # statuses

    async def request(self) -> None:
        try:
            with self.admission.admit():
                async with self.admission.body(sent(b"body"), ""):
                    arrived = self.clock.now
                    self.turns.append(asyncio.Event())
                    await self.turns[-1].wait()
        except RefusedError as error:
            self.refused.append(error.status)
        else:
            self.waited.append(self.clock.now - arrived)

    async def run(self, answers: list[float]) -> None:
        """Answer one by one, in so many seconds each, while six come for every five; at last those that wait."""
        async with asyncio.TaskGroup() as group:
            for number, seconds in enumerate(answers):
                for _ in range(2 if number % 5 == 0 else 1):
                    group.create_task(self.request())
                await self.answer(seconds)
            while self.turns:
                await self.answer(seconds)

    async def answer(self, seconds: float) -> None:
        await settle()
        self.clock.now += seconds
        self.turns.pop(0).set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def sent(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    ("answers", "longest"),
    [([0.05] * 1500, 11), ([2.0] * 100, 14), ([0.05] * 1000 + [0.1] * 500, 22)],
    ids=["twenty a second", "one in two seconds", "slows down to a half"],
)
def test_what_is_taken_is_answered_in_time_and_the_rest_refused_at_once(answers: list[float], longest: float) -> None:
    queue = Queue(Limits(seconds=30))
    asyncio.run(queue.run(answers))
    assert max(queue.waited) < longest
    assert len(queue.waited) > len(answers)  # there was always one to answer
    assert len(queue.refused) + len(queue.waited) == 1.2 * len(answers)
    assert set(queue.refused) == {503}
    assert (queue.admission.requests, queue.admission.ahead, queue.admission.held) == (0, 0, 0)


def test_a_refusal_says_when_the_wait_will_be_short_enough() -> None:
    admission = Admission(Limits(seconds=30), pace=7.3, ahead=2)  # 14.6 seconds to wait, 10 are allowed
    with pytest.raises(RefusedError) as refused, admission.admit():
        pass
    answer = Guard(FastAPI(), Metrics(), None, 30).refusal(refused.value)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_nobody_waits_for_a_slow_sender() -> None:
    admission = Admission(Limits(seconds=30), pace=20)

    async def slow() -> AsyncIterator[bytes]:
        with admission.admit():
            yield b"a part of it"
        assert admission.ahead == 0
        yield b"and the rest"

    async def scenario() -> None:
        async with admission.body(slow(), ""):
            with pytest.raises(RefusedError, match="waiting"), admission.admit():
                pass

    asyncio.run(scenario())


def test_slow_request_is_given_up(model: Path) -> None:
    server = Server(model, "--timeout", "1")
    host, _, port = server.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nslow")
        assert connection.recv(4096).startswith(b"HTTP/1.1 504")
    assert server.stop() == 0


def test_token_is_asked_of_everyone_but_the_load_balancer(model: Path) -> None:
    server = Server(model, SERVE_TOKEN="secret-ü")
    for path in ("/classify", "/metrics", "/docs", "/openapi.json", "/v2/models/classifier"):
        for given in ("", "Bearer", "Bearer secret", "Basic secret"):
            status, _, headers = server.ask(path, **({"Authorization": given} if given else {}))
            assert status == 401
            assert headers["www-authenticate"] == "Bearer"
    assert server.ask("/v2/health/live")[0] == 200
    assert server.ask("/docs", Authorization="Bearer secret-ü".encode().decode("latin-1"))[0] == 200
    server.stop()
    assert "secret" not in json.dumps(server.lines)


@pytest.mark.parametrize("token", ["", " \n"])
def test_a_blank_token_is_refused_and_not_taken_for_none(model: Path, token: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SERVE), "--model", str(model), "--port", "0"],
        env={**os.environ, "SERVE_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "SERVE_TOKEN is empty" in done.stderr) == (2, True)


def test_a_connection_that_asks_nothing_is_closed(model: Path) -> None:
    server = Server(model, "--keep-alive", "1")
    host, port = server.host.split(":")
    whole, half = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /classify HTTP/1.1\r\nHost:"
    for first, then in ((b"", b""), (half, b""), (whole, half)):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(first)
            if then:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
                connection.sendall(then)
            assert connection.recv(4096) in (b"", b'{"live":true}')
            assert connection.recv(4096) == b""
    assert server.stop() == 0


def test_a_load_balancer_may_ask_by_head_and_a_wrong_method_is_told_the_right_one(server: Server) -> None:
    for path, status, allowed in (
        ("/v2/health/live", 200, None),
        ("/v2/health/ready", 200, None),
        ("/classify", 405, "POST"),
    ):
        connection = http.client.HTTPConnection(server.host, timeout=30)
        connection.request("HEAD", path)
        response = connection.getresponse()
        assert (response.status, response.getheader("allow")) == (status, allowed)
        connection.close()


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--model", "none.onnx"], "no such model"), (["--host", "203.0.113.1"], "choose another --port")],
)
def test_unusable_model_or_address_is_exit_code_2(model: Path, words: list[str], reason: str) -> None:
    command = [sys.executable, str(SERVE), "--model", str(model), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["--batch-size", "0"], ["--queue", "-1"], ["--timeout", "0"], ["--poll", "inf"], ["--budget", "nan"]]
)
def test_a_limit_that_answers_nothing_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve.py", *words])
    with pytest.raises(SystemExit, match="2"):
        parse_arguments()
    assert words[0] in capsys.readouterr().err


def test_a_budget_of_zero_waits_for_no_other_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serve.py", "--budget", "0"])
    assert parse_arguments().budget == 0


def test_a_port_that_is_none_is_told_as_one_in_use_is() -> None:
    with pytest.raises(OSError, match=r"99999.*choose another --port"):
        listen("127.0.0.1", 99999)


def test_answers_do_not_wait_for_the_clients_acknowledgement() -> None:
    listener = listen("127.0.0.1", 0)

    async def is_immediate() -> bool:
        accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.set_result(bool(option))
            writer.close()

        async with await asyncio.start_server(note, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.close()
            return await accepted

    assert asyncio.run(is_immediate())


# the model file


def test_newer_file_takes_over_after_its_checks_and_a_bad_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_tiny_model(path)
    server = Server(path, "--poll", "0.2")
    before = server.classify(picture())["probabilities"]
    for content, reason in ((path.read_bytes()[:-40], "cannot be loaded"), (b"", "cannot be loaded")):
        path.write_bytes(content)
        assert reason in str(server.wait_for_line(event="model", outcome="refused")["detail"])
        server.lines.clear()
        assert server.classify(picture())["probabilities"] == before
    write_tiny_model(path, class_names=["a", "b", "c"])
    assert "other classes" in str(server.wait_for_line(event="model", outcome="refused")["detail"])
    write_tiny_model(path, scale=1.0)
    server.wait_for_line(event="model", outcome="loaded")
    assert server.classify(picture())["probabilities"] != before
    assert server.stop() == 0


# the end


@pytest.mark.parametrize("keep_alive", [True, False])
def test_sigterm_under_load_loses_no_request_that_was_taken(model: Path, keep_alive: bool) -> None:
    server = Server(model)
    host, _, port = server.host.partition(":")
    content, answered, broken = picture(size=(300, 200)), [], []

    def ask_on_and_on() -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            while True:
                connection.request("POST", "/classify", content, {} if keep_alive else {"Connection": "close"})
                response = connection.getresponse()
                response.read()
                answered.append(response.status)
        except (ConnectionError, http.client.HTTPException, OSError) as error:
            broken.append(error)

    threads = [threading.Thread(target=ask_on_and_on) for _ in range(16)]
    for thread in threads:
        thread.start()
    while len(answered) < 100:
        time.sleep(0.01)
    assert server.stop() == 0
    for thread in threads:
        thread.join(timeout=60)
    taken = [line for line in server.lines if line["event"] == "request"]
    assert server.lines[-1]["event"] == "stop"
    assert len(answered) == len(taken)  # every request in the log came back, and none was answered unlogged
    assert set(answered) == {line["status"] for line in taken} == {200}
    assert len(broken) == 16  # each client ended at a closed door, not at half an answer
    assert not [error for error in broken if isinstance(error, http.client.IncompleteRead)]
