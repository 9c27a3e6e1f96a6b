"""The references that the server is held against, on the same photos: ONNX Runtime alone, predict.py's own loop, and a naive endpoint."""

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from consumers import predict

BATCH_SIZE = 16  # as the server's


def write_jpegs(count: int) -> list[bytes]:
    """Photos in a few sizes, as web pages have them: smooth with some noise, which costs a decoder what photos do."""
    rng = np.random.default_rng(0)
    photos = []
    for index in range(count):
        width, height = ((640, 480), (480, 640), (500, 375), (300, 300))[index % 4]
        blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
        noisy = np.asarray(blobs).astype(np.int16) + rng.integers(-8, 9, (height, width, 1), dtype=np.int16)
        out = BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        photos.append(out.getvalue())
    return photos


def classify_request(photo: bytes) -> bytes:
    return _request("/classify", "", photo)


def infer_request(images: np.ndarray) -> bytes:
    """Images, uint8 (batch, height, width, 3), as a binary tensor."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": images.size}}]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return _request("/v2/models/classifier/infer", length, head + images.tobytes())


def _request(path: str, headers: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def infer_alone(path: Path, images: list[np.ndarray], seconds: float) -> tuple[float, float]:
    """Images a second, and processor seconds an image, of ONNX Runtime with its defaults in batches of BATCH_SIZE."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = np.stack(images[:BATCH_SIZE])
    session.run(None, {"image": batch})
    count, started, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        session.run(None, {"image": batch})
        count += len(batch)
    return count / (time.perf_counter() - started), (time.process_time() - used) / count


def decode_alone(path: Path, photos: list[bytes], seconds: float) -> tuple[float, float]:
    """The same of decoding and resizing by predict.py's threads."""
    side = predict.load_model(path, "cpu").side
    with files_of(photos) as files:
        return _rate(predict.decoded(files, side, BATCH_SIZE), seconds)


def classify_alone(path: Path, photos: list[bytes], seconds: float) -> tuple[float, float]:
    """The same of predict.py's whole loop in this process: what a server could reach that did nothing besides."""
    model = predict.load_model(path, "cpu", at_once=predict.AT_ONCE)
    with files_of(photos) as files:
        return _rate(predict.classify(model, files, BATCH_SIZE), seconds)


@contextlib.contextmanager
def files_of(photos: list[bytes]) -> Iterator[Iterator[tuple[str, Path]]]:
    """The photos as files, named again and again for ever."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.jpg") for index in range(len(photos))]
        for path, photo in zip(paths, photos, strict=True):
            path.write_bytes(photo)
        yield ((str(path), path) for path in itertools.cycle(paths))


def _rate(results: Iterator[object], seconds: float) -> tuple[float, float]:
    count, started, used = 0, time.perf_counter(), time.process_time()
    for _ in results:
        count += 1
        if time.perf_counter() - started >= seconds:
            break
    return count / (time.perf_counter() - started), (time.process_time() - used) / count


def decode_all(photos: list[bytes], side: int | None) -> list[np.ndarray]:
    return [predict.decode(BytesIO(photo), side) for photo in photos]
