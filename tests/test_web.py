"""The page in headless Chromium, against Pillow and ONNX Runtime. The model is made here, small and quick to answer."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from consumers import predict
from tests.test_decode_fuzz import hostile_files
from tests.web_pictures import HOSTILE, PHOTOS, PNG

WEB = Path(__file__).parents[1] / "consumers" / "web"
sys.path.insert(0, str(WEB))
import serve  # noqa: E402

CLASSES = ["hotdog", "not-hotdog", "<b>third</b>"]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"),
)


def build_model(path: Path) -> None:
    """uint8 (1, height, width, 3) -> probabilities (1, 3), steep enough for one wrong channel or turn to show."""
    rng = np.random.default_rng(0)
    tensors = {
        "size": np.array([32, 32]),
        "kernel": rng.normal(0, 0.004, (8, 3, 5, 5)).astype(np.float32),
        "head": rng.normal(0, 0.01, (8 * 28 * 28, 3)).astype(np.float32),
    }
    resize = {"mode": "linear", "antialias": 1, "exclude_outside": 1, "axes": [1, 2]}
    nodes = [
        helper.make_node("Resize", ["image", "", "", "size"], ["small"], **resize),
        helper.make_node("Transpose", ["small"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Flatten", ["positive"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", "height", "width", 3])
    output = helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", 3])
    weights = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "model", [image], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"class_names": json.dumps(CLASSES)})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    build_model(path)
    return path


@pytest.fixture(scope="module")
def url_of() -> Iterator[Callable[[Path | list[Path]], str]]:
    """Serve the page with a model or several; gives its address."""
    servers = []

    def start(models: Path | list[Path]) -> str:
        server = serve.create_server(0, [models] if isinstance(models, Path) else models)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium, or set CHROMIUM to its path")
    if not (WEB / "dist").is_dir():
        pytest.skip("the page is not built: npm --prefix consumers/web run build")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, url_of, model_path):
    page = open_page(browser, url_of(model_path))
    yield page
    assert not page.problems


def open_page(browser, url: str):
    """A page that notes each address it asks for and each complaint of the browser."""
    page = browser.new_context().new_page()
    page.requests, page.problems = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if "Content Security" in line.text else None)
    page.goto(url)
    page.wait_for_selector("body:not([data-state=loading])", timeout=20_000)
    return page


def classify(page, name: str, content: bytes) -> dict[str, float] | str:
    """Choose a file; gives the probabilities by class name, or the page's message."""
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    return answer(page)


def answer(page, timeout: int = 20_000) -> dict[str, float] | str:
    page.wait_for_selector("body[data-state=result], body[data-state=error]", timeout=timeout)
    if page.get_attribute("body", "data-state") == "error":
        return page.inner_text("#error")
    bars = page.evaluate("[...document.querySelectorAll('#bars li')].map((bar) => ({...bar.dataset}))")
    return {bar["name"]: float(bar["probability"]) for bar in bars}


@pytest.fixture(scope="module")
def expected(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """predict.py's probabilities for each of PHOTOS, by file name."""
    folder = tmp_path_factory.mktemp("photos")
    for name, content in PHOTOS.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, WEB.parent / "predict.py", folder, "--model", model_path, "--json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {Path(line["image"]).name: line["probabilities"] for line in map(json.loads, lines)}


@pytest.mark.parametrize("name", PHOTOS)
def test_page_gives_the_probabilities_that_predict_py_gives(page, expected, name: str) -> None:
    assert classify(page, name, PHOTOS[name]) == pytest.approx(expected[name], abs=1e-4)


def test_comparison_would_notice_a_wrong_turn_and_a_wrong_background(expected) -> None:
    turned = ("opaque.png", *(f"turned{way}.webp" for way in range(2, 9)))
    for group in (turned, ("transparent.png", "on_black.png", "opaque.png")):
        for one, other in itertools.combinations(group, 2):
            assert expected[one] != pytest.approx(expected[other], abs=1e-3), (one, other)


@pytest.mark.parametrize("name", HOSTILE)
def test_page_says_what_is_wrong_with_a_hostile_file_and_goes_on(page, name: str) -> None:
    content, reason = HOSTILE[name]
    message = classify(page, name, content)
    assert isinstance(message, str)
    assert reason in message
    assert name in message
    assert isinstance(classify(page, "good.png", PNG), dict)


def test_page_shows_class_names_as_text_and_says_what_ran_and_how_long(page) -> None:
    classify(page, "good.png", PNG)
    assert page.locator("#bars b").count() == 0
    assert "<b>third</b>" in page.inner_text("#bars")
    assert "WebAssembly" in page.inner_text("#facts")
    assert " ms" in page.inner_text("#facts")


def test_dropped_and_pasted_pictures_are_classified(page, expected) -> None:
    for kind, carrier in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        classify(page, "other.png", PHOTOS["1x1.png"])
        page.evaluate(SEND_EVENT, [kind, carrier, list(PNG)])
        assert answer(page) == pytest.approx(expected["opaque.png"], abs=1e-4), kind


@pytest.mark.slow
def test_each_hostile_file_dropped_ends_in_predict_pys_answer_or_in_a_message(
    browser, url_of, model_path: Path, tmp_path: Path
) -> None:
    model = predict.load_model(model_path, "cpu")
    page = open_page(browser, url_of(model_path))
    page.on("console", lambda line: page.problems.append(line.text) if line.type in ("error", "warning") else None)
    good = classify(page, "good.png", PNG)
    outcomes: Counter[str] = Counter()
    for number, (name, content) in enumerate(hostile_files(400, 1)):
        page.evaluate(DROP, [name, base64.b64encode(content).decode()])
        found = answer(page, timeout=120_000)  # the page itself gives up after 60 s
        if isinstance(found, str):
            assert name in found
            assert "could not be classified" not in found, found  # said by the page, not by an exception
        else:
            assert sum(found.values()) == pytest.approx(1, abs=1e-4), name
            (tmp_path / name).write_bytes(content)
            try:
                row = predict.run(model, [predict.read_image(tmp_path / name)])[0].probabilities
            except predict.ImageError:
                outcomes["answered by the page alone"] += 1  # broken metadata around sound pixels
            else:
                # Each decoder enlarges AVIF's halved colours in its own way, which counts where a picture has 24 x 18 pixels.
                near = 0.05 if content[4:11] == b"ftypavi" else 1e-3
                expected = dict(zip(model.class_names, map(float, row), strict=True))
                assert found == pytest.approx(expected, abs=near), name
        outcomes["message" if isinstance(found, str) else "probabilities"] += 1
        if number % 20 == 19:
            assert classify(page, "good.png", PNG) == good
    print(outcomes)
    assert outcomes["message"] + outcomes["probabilities"] == 400
    assert min(outcomes["message"], outcomes["probabilities"]) > 40
    assert outcomes["answered by the page alone"] < 10
    assert not page.problems
    assert all(address.startswith(page.url) for address in page.requests)


DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
SEND_EVENT = """([kind, carrier, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "sent.png", { type: "image/png" }));
  const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
  document.dispatchEvent(new Kind(kind, { [carrier]: transfer, bubbles: true, cancelable: true }));
}"""


def test_camera_takes_a_picture_and_is_switched_off(page) -> None:
    page.click("#camera")
    page.click("#shoot")
    assert isinstance(answer(page), dict)
    assert page.evaluate("document.querySelector('#video').srcObject") is None


def test_page_asks_no_other_host_and_may_not(page, url_of) -> None:
    classify(page, "good.png", PNG)
    assert page.requests
    assert all(address.startswith(page.url) for address in page.requests)
    elsewhere = url_of(Path("nothing.onnx"))
    assert page.evaluate("(url) => fetch(url).then(() => 'reached', () => 'blocked')", elsewhere) == "blocked"
    page.problems[:] = [line for line in page.problems if elsewhere not in line]


def test_webgpu_gives_the_same_probabilities(browser, url_of, model_path: Path, expected) -> None:
    page = open_page(browser, f"{url_of(model_path)}?backend=webgpu")
    if not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
        pytest.skip("this Chromium has no WebGPU adapter, not even an emulated one")
    name = "transparent.png"
    assert classify(page, name, PHOTOS[name]) == pytest.approx(expected[name], abs=1e-4)
    assert "by WebGPU" in page.inner_text("#facts")
    assert not page.problems


def test_missing_and_broken_models_are_named(browser, url_of, model_path: Path, tmp_path: Path) -> None:
    whole, broken = model_path.read_bytes(), tmp_path / "model.onnx"
    assert "There is no model yet" in answer(open_page(browser, url_of(broken)))
    nameless = onnx.load(model_path)
    del nameless.metadata_props[:]
    for content, reason in (
        (whole[:-100], "cut off"),
        (b"<html>", "cut off"),
        (nameless.SerializeToString(), "no class"),
    ):
        broken.write_bytes(content)
        assert reason in answer(open_page(browser, url_of(broken)))
