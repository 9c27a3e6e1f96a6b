"""Thousands of bodies that no honest client sends to consumers/server: none is answered 500, and the server goes on."""

import gzip
import http.client
import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.test_decode_fuzz import hostile_files
from tests.test_server import Server, picture
from tests.tiny_model import write_tiny_model

INFER, CLASSIFY = "/v2/models/classifier/infer", "/classify"
Asked = tuple[str, bytes, dict[str, str]]  # path, body, headers

JUNK: list[object] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**400,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "image",
        "\0",
        "ü" * 300,
    ),
    *([], [[]], [0], {}, {"a": {}}, [None], [1, [2]], "9" * 5000),
]


def honest(rng: random.Random) -> tuple[dict[str, object], bytes]:
    shape = [rng.choice((1, 2)), rng.choice((1, 5)), 4, rng.choice((3, 4))]
    data = np.arange(int(np.prod(shape)), dtype=np.uint8)
    tensor: dict[str, object] = {"name": "image", "datatype": "UINT8", "shape": shape}
    outputs = [{"name": "probabilities", "parameters": {"classification": 1}}, {"name": "familiarity"}]
    request = {"id": "1", "inputs": [tensor], "outputs": outputs, "parameters": {"binary_data_output": True}}
    if rng.random() < 0.5:
        return {**request, "inputs": [{**tensor, "data": data.tolist()}]}, b""
    tensor["parameters"] = {"binary_data_size": data.size}
    return request, data.tobytes()


def damage(value: object, rng: random.Random) -> object:
    """The same with one part, anywhere inside, replaced by junk, left out or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: damage(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value * rng.choice((0, 2, 9))
        return [*value[:index], damage(value[index], rng), *value[index + 1 :]]
    return rng.choice(JUNK)


def hostile_requests(count: int, seed: int) -> Iterator[Asked]:
    rng = random.Random(seed)
    pictures = [content for _, content in hostile_files(count // 4 + 1, seed)]
    for number in range(count):
        request, binary = honest(rng)
        body = json.dumps(damage(request, rng)).encode() + binary
        lengths = ("", "0", "-1", "5", "٣", str(len(body)), "9" * 30, "1e3", str(len(body) - len(binary)))
        header = {"Inference-Header-Content-Length": rng.choice(lengths).encode().decode("latin-1")}
        kind = number % 4
        if kind == 0:
            yield CLASSIFY, pictures[number // 4], {}
        elif kind == 1:
            yield INFER, body, {"Inference-Header-Content-Length": str(len(body) - len(binary))}
        elif kind == 2:
            cut = rng.randrange(len(body) + 1)
            yield INFER, body[:cut] + rng.randbytes(rng.choice((0, 1, 30))), header if rng.random() < 0.7 else {}
        else:
            yield other(rng, body)


def other(rng: random.Random, body: bytes) -> Asked:
    """Deep nesting, forms in pieces, encodings that are none, other paths."""
    boundary = rng.choice(("x", "", "y" * 300, "\x7f"))
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../a"\r\n\r\n' + picture() + b"\r\n--x--\r\n"
    )
    deep = b"[" * rng.choice((10, 10_000, 200_000))
    return rng.choice(
        [
            (INFER, deep, {}),
            (INFER, b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1,1,1,3], "data": ' + deep, {}),
            (CLASSIFY, form[: rng.randrange(len(form))], {"Content-Type": f"multipart/form-data; boundary={boundary}"}),
            (CLASSIFY, form, {"Content-Type": "multipart/form-data"}),
            (CLASSIFY, form * 3, {"Content-Type": "multipart/form-data; boundary=x"}),
            (
                CLASSIFY,
                rng.randbytes(50),
                {"Content-Encoding": rng.choice(("gzip", "deflate", "br", "x, gzip", "\xff"))},
            ),
            (INFER, body, {"Content-Encoding": "gzip"}),
            (f"/v2/models/{rng.choice(('', '%00', '..%2f..', 'classifier/versions/2', 'x' * 5000))}/infer", body, {}),
            (f"/classify?always={rng.choice(('maybe', '%ff', '1' * 3000))}", picture(), {}),
            ("/v2/health/ready", body, {}),
        ]
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_tiny_model(path)
    server = Server(path)
    yield server
    assert server.stop() == 0
    assert not [line for line in server.lines if line["event"] == "error"]


@pytest.mark.parametrize(
    ("count", "seed"), [(120, 0), *(pytest.param(300, seed, marks=pytest.mark.slow) for seed in range(1, 11))]
)
def test_hostile_bodies_are_refused_or_answered_and_never_break_the_server(
    server: Server, count: int, seed: int
) -> None:
    good = server.classify(picture())
    connection = http.client.HTTPConnection(server.host, timeout=60)
    outcomes: Counter[int] = Counter()
    for path, body, headers in hostile_requests(count, seed):
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
        outcomes[response.status] += 1
        assert response.status < 500, (path, body[:300], headers, content)
        if response.status >= 400:
            assert json.loads(content)["error"]
        assert b"Traceback" not in content
        if response.will_close:
            connection.close()
    print(dict(outcomes))
    assert sum(outcomes.values()) == count
    assert outcomes[200] > count / 30  # not all are hopeless
    assert outcomes[400] > count / 3
    assert server.classify(picture()) == good


@pytest.mark.parametrize(
    "words",
    [
        b"\0\0\0\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    ],
)
def test_what_is_no_http_closes_its_own_connection_alone(server: Server, words: bytes) -> None:
    host, _, port = server.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(2**16)
        except ConnectionError:
            answer = b""
    assert b" 500 " not in answer.split(b"\r\n")[0]
    assert server.ask("/v2/health/live")[0] == 200


def test_compressed_bomb_is_not_unpacked(server: Server) -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    assert len(bomb) < 2**18
    assert server.ask("/classify", bomb, Content_Encoding="gzip")[0] == 413
    peak = next(line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    assert int(peak.split()[1]) < 2_000_000  # kB
