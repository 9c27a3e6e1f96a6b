"""The client against a stand-in for Triton: it reads v2 requests as the specification writes them and answers with ONNX
Runtime. It is a double of the protocol only; no Triton runs here."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from PIL import Image

from consumers.server import client

CLIENT = Path(__file__).parents[1] / "consumers" / "server" / "client.py"
LABELS = ["hotdog", "not:hotdog", "third"]
NUM_CHANNELS = 3


def build_model(path: Path) -> None:
    """uint8 (batch, height, width, 3) -> probabilities: the softmax of each channel's mean, so that colours show."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = [
        helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.02]),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", "height", "width", NUM_CHANNELS])
    output = helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", len(LABELS)])
    graph = helper.make_graph(nodes, "means", [image], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"class_names": json.dumps(LABELS)})
    onnx.save(model, path)


class V2Handler(BaseHTTPRequestHandler):
    """/v2/models/classifier and its /infer, with the binary tensor data and the classification extension."""

    server: "V2Server"

    def __init__(self, session: onnxruntime.InferenceSession, *arguments: object) -> None:
        self.session = session
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path != "/v2/models/classifier":
            self.answer(400, {"error": f"Request for unknown model: '{self.path}' is not found"})
            return
        image = {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, -1]}
        probabilities = {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(LABELS)]}
        self.answer(200, {"name": "classifier", "versions": ["1"], "inputs": [image], "outputs": [probabilities]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        split = int(self.headers["Inference-Header-Content-Length"])
        request, binary = json.loads(body[:split]), body[split:]
        (tensor,), (wanted,) = request["inputs"], request["outputs"]
        assert tensor["datatype"] == "UINT8"
        assert tensor["parameters"]["binary_data_size"] == len(binary)
        if tensor["shape"][-1] != NUM_CHANNELS:
            self.answer(400, {"error": f"unexpected shape for input 'image': {tensor['shape']}"})
            return
        if self.server.num_busy:
            self.server.num_busy -= 1
            self.answer(503, {"error": "full"}, **{"Retry-After": "0"})
            return
        pixels = np.frombuffer(binary, np.uint8).reshape(tensor["shape"])
        (row,) = self.session.run(["probabilities"], {"image": pixels})[0]
        ranked = np.argsort(-row)[: wanted["parameters"]["classification"]]
        data = [f"{row[index]:.6f}:{index}:{LABELS[index]}" for index in ranked]
        self.answer(
            200, {"outputs": [{"name": wanted["name"], "datatype": "BYTES", "shape": [1, len(data)], "data": data}]}
        )

    def answer(self, status: int, value: object, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    build_model(path)
    return path


class V2Server(ThreadingHTTPServer):
    num_busy = 0  # requests that it refuses before it answers again


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[V2Server]:
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    server = V2Server(("127.0.0.1", 0), partial(V2Handler, session))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(server: V2Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def run_client(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLIENT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two pictures of unlike sizes and colours, one of them turned by EXIF."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    paths = [tmp_path / "red.png", tmp_path / "blue.jpg"]
    for path, tint, shape in zip(paths, ([90, 0, 0], [0, 0, 60]), ((40, 60, 3), (31, 17, 3)), strict=True):
        pixels = (rng.integers(0, 150, shape) + tint).astype(np.uint8)
        Image.fromarray(pixels).save(path, exif=turned if path.suffix == ".jpg" else Image.Exif())
    return paths


def test_server_and_predict_py_give_the_same_probabilities(url: str, model_path: Path, photos: list[Path]) -> None:
    predict = [sys.executable, CLIENT.parents[1] / "predict.py", *photos, "--model", model_path, "--top-k", "3"]
    local = subprocess.run(predict, capture_output=True, text=True, check=True).stdout
    served = run_client(*photos, "--url", url)
    assert served.returncode == 0
    assert served.stdout == local
    assert len(set(local.splitlines())) == 2
    assert "not:hotdog" in local


def test_a_bad_image_is_named_and_the_others_are_classified(url: str, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(photos[0].read_bytes()[:60])
    result = run_client(bad, tmp_path / "missing.png", *photos, "--url", url)
    assert result.returncode == 1
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [str(bad), str(tmp_path / "missing.png")]
    assert len(result.stdout.splitlines()) == 2


def test_a_full_server_is_asked_again(server: V2Server, url: str, photos: list[Path]) -> None:
    server.num_busy = 3
    result = run_client(*photos, "--url", url)
    assert (result.returncode, server.num_busy) == (0, 0)
    assert len(result.stdout.splitlines()) == 2


def test_an_unknown_model_a_refused_image_and_an_absent_server_are_said_plainly(
    url: str, photos: list[Path], tmp_path: Path
) -> None:
    unknown = run_client(*photos, "--url", url, "--model", "other/../x")
    assert unknown.returncode == 2
    assert "answered 400" in unknown.stderr
    assert "unknown model" in unknown.stderr
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "alpha.png")
    refused = run_client(tmp_path / "alpha.png", "--url", url)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {tmp_path / 'alpha.png'}: ")
    assert "[1, 9, 9, 4]" in refused.stderr
    absent = run_client(*photos, "--url", "http://127.0.0.1:1")
    assert absent.returncode == 2
    assert "no answer" in absent.stderr
    assert "Traceback" not in absent.stderr


@pytest.mark.parametrize("address", ["localhost:8000", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_said_plainly(address: str, photos: list[Path]) -> None:
    done = run_client(*photos, "--url", address)
    assert (done.returncode, address in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_a_web_server_is_told_from_an_inference_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ask", lambda *_: b"<html>")
    with pytest.raises(client.ServerError, match="is it an inference server"):
        client.ask_num_classes("http://localhost:8000/v2/models/classifier", 1)
