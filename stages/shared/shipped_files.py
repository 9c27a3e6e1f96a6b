"""List the ONNX files that are shipped: what each takes, in which precision, and where it runs.

To add a precision: a line here, its limit in params.yaml and params.py, and how it is made in export/variants.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Names of tensors in the files.
IMAGE = "image"  # uint8 (batch, height, width, 3 or 4)
CROPS = "crops"  # uint8 (batch, crop, crop, 3): resized and cropped by the caller
PIXELS = "test_pixels"  # float32 (batch, 3, crop, crop), whole numbers in 0..255: resized and cropped
NORMALIZED = "normalized"  # float32 (batch, 3, crop, crop): what the network is fed
LOGITS = "logits"  # float32 (batch, classes)
FEATURES = "features"  # float32 (batch, d): what the last layer takes
UNIT_FEATURES = "unit_features"  # float32 (batch, d): scaled to length 1
CONTRASTS = "map_contrasts"  # float32 (batch, d): how much the early maps vary over the image
FAMILIARITY = "familiarity"  # float32 (batch,), in [0, 1]: share of held-out training images that look less familiar
HEATMAP = "heatmap"  # float32 (batch, rows, columns), not negative, over the crop; only with export.heatmap
PROBABILITIES = "probabilities"  # float32 (batch, classes)


@dataclass(frozen=True)
class ShippedFile:
    path: str  # under artifacts/
    precision: str  # of the arithmetic; `params.parity` has a limit of this name
    takes: Literal["image", "crops", "normalized"]  # the tensor of this name
    devices: tuple[str, ...]  # it is made for
    purpose: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def is_reduced(self) -> bool:
        """Less precise than the network that was trained: shipped only where it holds what params.yaml asks."""
        return self.precision != "fp32"


MODEL = ShippedFile("model.onnx", "fp32", "image", ("cpu", "cuda"), "images of any size to probabilities")
CORE = ShippedFile("export/core.onnx", "fp32", "normalized", ("cpu", "cuda"), "the network alone, for parity")
HALF = ShippedFile("export/core.fp16.onnx", "fp16", "normalized", ("cuda",), "the network alone in float16")
ON_CROPS = ShippedFile(
    "export/model.crops.onnx", "fp32", "crops", ("cpu", "cuda"), "crops, resized by the caller, to probabilities"
)
INT8 = ShippedFile("export/model.int8.onnx", "int8", "image", ("cpu",), "as model.onnx, its network in 8 bits")
FILES = (MODEL, ON_CROPS, CORE, HALF, INT8)
