"""Order unlabelled pictures, the most uncertain and most unlike each other first: for `predict.py --rank`.

Greedy: the next picture has the largest product of its uncertainty (1 - margin between its two best classes) and its
squared distance to all that were named before it, in the network's own features where the file names them. Uncertainty
alone would name ten pictures of one burst; distance alone, whatever is odd. In a simulation on two small tasks this saved no
labels against labelling at random (benchmarks/label_ranking.py): it is for looking where the model is unsure.
"""

from collections.abc import Iterator

import numpy as np

EXACT = 2_000  # places that are filled greedily, O(n) each; the rest follows by uncertainty and distance to those


def order(probabilities: list[np.ndarray], features: list[np.ndarray | None]) -> Iterator[int]:
    """Indices of (classes,) probabilities with (dimensions,) features or None, first what to label first."""
    if not probabilities:
        return
    rows = np.stack(probabilities).astype(np.float32)
    points = np.stack([row if feature is None else feature for row, feature in zip(rows, features, strict=True)])
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    ranked = np.sort(rows, axis=1)
    uncertainty = 1.0 - (ranked[:, -1] - ranked[:, -2] if rows.shape[1] > 1 else ranked[:, -1])
    uncertainty += 1e-6  # so that distance decides among the certain ones
    distance = np.ones(len(rows))
    left = np.ones(len(rows), bool)
    for _ in range(min(len(rows), EXACT)):
        index = int(np.argmax(np.where(left, uncertainty * distance, -1)))
        yield index
        left[index] = False
        distance = np.minimum(distance, np.maximum(0, 1 - points @ points[index]))  # half the squared distance
    rest = np.flatnonzero(left)
    yield from (int(index) for index in rest[np.argsort(-(uncertainty * distance)[rest], kind="stable")])


def with_output(model: bytes, name: str) -> bytes:
    """The ONNX file with the tensor `name` among its outputs.

    A message that is appended in Protocol Buffers' format is merged into the one before it: ModelProto.graph (7),
    GraphProto.output (12), ValueInfoProto.name (1).
    """
    return model + _field(7, _field(12, _field(1, name.encode())))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return (bytes([value & 127 | 128]) + _varint(value >> 7)) if value > 127 else bytes([value])
