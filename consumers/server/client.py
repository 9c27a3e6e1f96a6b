"""Classify images on a Triton server (or another that speaks KServe's v2 protocol with Triton's extensions).

    python consumers/server/client.py photo.jpg more/*.png --url http://localhost:8000 --model classifier

Needs numpy and pillow; no other file than this. Pixels travel as bytes (binary tensor data extension), and the server
answers with class names (classification extension, from labels.txt beside the model's config.pbtxt).

Exit codes: 0 every image was classified, 1 some were not (each named on stderr), 2 the server cannot be used.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**26
ABOUT_THE_IMAGE = (400, 413, 422)  # answers that say nothing of other images


class ServerError(Exception):
    """The server cannot be used as it stands."""


class RefusedError(ServerError):
    """The server has answered by an error; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ImageError(Exception):
    """One image cannot be classified; the others go on."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Classify images on an inference server.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--url", default="http://localhost:8000", help="the server (default: http://localhost:8000)")
    parser.add_argument("--model", default="classifier", help="its name on the server (default: classifier)")
    parser.add_argument(
        "--workers", type=int, default=8, help="requests in flight; the server batches them (default: 8)"
    )
    parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for an answer (default: 30)")
    options = parser.parse_args(arguments)
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url {options.url}: begins with neither http:// nor https://")
    address = f"{options.url.rstrip('/')}/v2/models/{quote(options.model, safe='')}"
    try:
        num_classes = ask_num_classes(address, options.timeout)
        classify_one = partial(try_to_classify, address, num_classes, options.timeout)
        with ThreadPoolExecutor(max(1, options.workers)) as workers:
            failures = [report(path, answer) for path, answer in workers.map(classify_one, options.images)]
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any(failures) else 0


def report(path: Path, answer: list[tuple[str, float]] | ImageError) -> bool:
    """Print one answer; True for a failure."""
    if isinstance(answer, ImageError):
        print(f"error: {path}: {answer}", file=sys.stderr, flush=True)
        return True
    print(f"{path}: " + "  ".join(f"{name} {probability:.4f}" for name, probability in answer), flush=True)
    return False


def try_to_classify(
    address: str, num_classes: int, timeout: float, path: Path
) -> tuple[Path, list[tuple[str, float]] | ImageError]:
    try:
        return path, classify(address, read_image(path), num_classes, timeout)
    except ImageError as error:
        return path, error


# the image


def read_image(path: Path) -> np.ndarray:
    """uint8 (height, width, 3 or 4), upright; the fourth channel is alpha, which the model lays on white by itself."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; scale it down")
            if image.mode == "F" or image.mode.startswith("I"):
                raise ImageError(f"has more than 8 bits a channel (mode {image.mode}); convert it first")
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        raise ImageError(f"cannot be read: {str(error) or type(error).__name__:.200}") from None


# the protocol


def ask_num_classes(address: str, timeout: float) -> int:
    """The number of classes that the model gives. Raises ServerError where it is not there or takes anything but uint8 images."""
    try:
        metadata = json.loads(_ask(urllib.request.Request(address), timeout))
    except ValueError:
        raise ServerError(f"{address}: answers no JSON; is it an inference server?") from None
    image, probabilities = (metadata.get(side) or [{}] for side in ("inputs", "outputs"))
    if (image[0].get("name"), image[0].get("datatype")) != ("image", "UINT8"):
        raise ServerError(f"{address}: takes {image}, expected one UINT8 `image`; load the exported repository")
    return int(probabilities[0]["shape"][-1])


def classify(address: str, image: np.ndarray, num_classes: int, timeout: float) -> list[tuple[str, float]]:
    """Class names and probabilities, most probable first, of one uint8 (height, width, 3 or 4) image."""
    pixels = np.ascontiguousarray(image).tobytes()
    shape = [1, *image.shape]
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": len(pixels)}}
    wanted = {"name": "probabilities", "parameters": {"classification": num_classes}}
    header = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    try:
        answer = json.loads(_ask(urllib.request.Request(f"{address}/infer", header + pixels, headers), timeout))
    except RefusedError as error:
        if error.status in ABOUT_THE_IMAGE:
            raise ImageError(str(error)) from None
        raise
    return [_parse_class(text) for text in answer["outputs"][0]["data"]]


def _parse_class(text: str) -> tuple[str, float]:
    """`0.981000:0:hotdog`, or without the name where the server has no labels; a name may hold colons."""
    value, index, *name = text.split(":", 2)
    return (name[0] if name else f"class {index}"), float(value)


def _ask(request: urllib.request.Request, timeout: float) -> bytes:
    """The answer's body. A server that is full (503) is asked again when it says, until `timeout` is over."""
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                with urllib.request.urlopen(request, timeout=timeout) as response:
                    body: bytes = response.read()
                    return body
            except urllib.error.HTTPError as error:
                wait = error.headers.get("Retry-After", "")
                if error.code != 503 or not wait.isdigit() or time.monotonic() + int(wait) > deadline:
                    text = error.read().decode(errors="replace").strip()
                    raise RefusedError(error.code, f"{request.full_url}: answered {error.code}: {text:.300}") from None
                time.sleep(int(wait))
    except (OSError, http.client.HTTPException) as error:
        reason: Any = getattr(error, "reason", error)
        raise ServerError(f"{request.full_url}: no answer ({reason}); is the server running?") from None


if __name__ == "__main__":
    sys.exit(main())
