"""The Open Inference Protocol, version 2, over HTTP: JSON, with the binary tensor data and the classification extensions.

Requests hold one input, `image`: UINT8 [batch, height, width, 3 or 4]. Outputs are `probabilities`, FP32 [batch, classes],
and `familiarity`, FP32 [batch], where the model has it.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class ProtocolError(Exception):
    """A request that keeps to no rule of the protocol; the message is for its sender."""


@dataclass(frozen=True)
class Wanted:
    """An output as it was asked for."""

    name: str
    binary: bool = False
    num_classes: int = 0  # of the classification extension; 0: the tensor itself


@dataclass(frozen=True)
class Request:
    images: np.ndarray  # (batch, height, width, 3 or 4) uint8
    outputs: list[Wanted] = field(default_factory=list)  # empty: all
    id: str = ""
    binary: bool = False  # of the outputs that were not named


def split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """A request's JSON and the binary tensor behind it; `header_length` is the Inference-Header-Content-Length."""
    length = len(body) if header_length is None else _whole(header_length, "Inference-Header-Content-Length")
    if length > len(body):
        raise ProtocolError(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def parse(text: bytes, binary: memoryview, max_images: int, max_pixels: int) -> Request:
    """A request of its two parts. Raises ProtocolError."""
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("the request is no JSON") from None
    request, parameters = _object(request, "request"), _parameters(request)
    (tensor,) = _list(request, "inputs", 1)
    outputs = [_wanted(output) for output in _list(request, "outputs")]
    images = _tensor(_object(tensor, "input"), binary, max_images, max_pixels)
    name = request.get("id", "")
    if not isinstance(name, str) or len(name) > 256:
        raise ProtocolError("id is no text of at most 256 characters")
    return Request(images, outputs, name, parameters.get("binary_data_output") is True)


def _tensor(tensor: dict[str, Any], binary: memoryview, max_images: int, max_pixels: int) -> np.ndarray:
    if tensor.get("name") != "image" or tensor.get("datatype") != "UINT8":
        raise ProtocolError("expected one input `image` of datatype UINT8")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(n) is int and n > 0 for n in shape):
        raise ProtocolError("shape of `image` is not [batch, height, width, 3 or 4]")
    if shape[3] not in (3, 4):
        raise ProtocolError(f"`image` has {shape[3]} channels, expected 3 or 4 as its last axis")
    if shape[0] > max_images or math.prod(shape[:3]) > max_pixels:
        raise ProtocolError(f"more than {max_images} images or {max_pixels:,} pixels in one request")
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        return _from_json(tensor.get("data"), shape)
    if type(size) is not int or size != len(binary) or size != math.prod(shape):
        raise ProtocolError(f"binary_data_size, the bytes that follow ({len(binary)}) and shape {shape} do not agree")
    return np.frombuffer(binary, np.uint8).reshape(shape)


def _from_json(data: Any, shape: list[int]) -> np.ndarray:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError, RecursionError):
        raise ProtocolError("data of `image` is no regular array") from None
    if values.dtype.kind not in "iu" or values.size != math.prod(shape):
        raise ProtocolError(f"data of `image` are not {math.prod(shape)} whole numbers, as shape {shape} says")
    if values.min() < 0 or values.max() > 255:
        raise ProtocolError("data of `image` are not within 0 and 255")
    return values.astype(np.uint8).reshape(shape)


def _wanted(output: Any) -> Wanted:
    output = _object(output, "output")
    parameters = _parameters(output)
    num_classes = parameters.get("classification", 0)
    if not isinstance(output.get("name"), str) or type(num_classes) is not int or num_classes < 0:
        raise ProtocolError("an output has no name, or a classification that is no count")
    return Wanted(output["name"], parameters.get("binary_data") is True, num_classes)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is no JSON object")
    return value


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    return _object(value.get("parameters", {}), "parameters")


def _list(request: dict[str, Any], key: str, length: int | None = None) -> list[Any]:
    value = request.get(key, [])
    if not isinstance(value, list) or (length is not None and len(value) != length) or len(value) > 8:
        raise ProtocolError(f"`{key}` is no list of {'one entry' if length else 'at most 8 entries'}")
    return value


def _whole(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise ProtocolError(f"{what} is no whole number")
    return int(text)


# the answer


def render(
    request: Request, tensors: dict[str, np.ndarray], class_names: list[str], model_name: str
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where binary tensors follow. Raises ProtocolError for unknown outputs."""
    wanted = request.outputs or [Wanted(name, request.binary) for name in tensors]
    described, blobs = [], []
    for output in wanted:
        if output.name not in tensors:
            raise ProtocolError(f"there is no such output; the model has {', '.join(tensors)}")
        entry, blob = _output(output, tensors[output.name], class_names)
        if output.binary:
            blobs.append(blob)
            entry["parameters"] = {"binary_data_size": len(blob)}
            del entry["data"]
        described.append(entry)
    answer = {"model_name": model_name, "model_version": "1", "outputs": described}
    header = json.dumps({**answer, **({"id": request.id} if request.id else {})}).encode()
    return b"".join([header, *blobs]), len(header) if blobs else None


def _output(output: Wanted, values: np.ndarray, class_names: list[str]) -> tuple[dict[str, Any], bytes]:
    """A tensor in JSON, and as bytes: FP32, or BYTES of `probability:index:name` a row, most probable first."""
    if not output.num_classes or values.ndim != 2:
        entry = {"name": output.name, "datatype": "FP32", "shape": list(values.shape)}
        return {**entry, "data": values.astype(float).ravel().tolist()}, values.astype("<f4").tobytes()
    count = min(output.num_classes, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    rows = zip(values, order, strict=True)
    texts = [f"{row[index]:.6f}:{index}:{class_names[index]}" for row, indices in rows for index in indices]
    blob = b"".join(len(text).to_bytes(4, "little") + text for text in (text.encode() for text in texts))
    return {"name": output.name, "datatype": "BYTES", "shape": [len(values), count], "data": texts}, blob


def describe_model(name: str, num_classes: int, has_familiarity: bool) -> dict[str, Any]:
    """The model's metadata."""
    outputs: list[dict[str, Any]] = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, num_classes]}]
    if has_familiarity:
        outputs.append({"name": "familiarity", "datatype": "FP32", "shape": [-1]})
    image = {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, -1]}
    return {"name": name, "versions": ["1"], "platform": "onnxruntime_onnx", "inputs": [image], "outputs": outputs}
