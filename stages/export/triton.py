"""Write a model repository for NVIDIA Triton: config.pbtxt, labels.txt, 1/model.onnx."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from stages.shared.files import replacing, write_text
from stages.shared.shipped_files import FAMILIARITY, IMAGE, PROBABILITIES

NAME = "classifier"
MAX_BATCH = 64

CONFIG = """\
# One deployable ONNX file: uint8 images of any size in, class probabilities out. Images of one request share a size.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [
  {{
    name: "{image}"
    data_type: TYPE_UINT8
    dims: [ -1, -1, -1 ]  # height, width, 3 (RGB) or 4 (RGBA)
  }}
]
output [
  {{
    name: "{probabilities}"
    data_type: TYPE_FP32
    dims: [ {num_classes} ]
    label_filename: "labels.txt"
  }},
  {{
    name: "{familiarity}"
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape: {{ shape: [ ] }}  # one number an image
  }}
]
# Requests whose images have one size and as many channels are joined, waiting at most this long for company.
dynamic_batching {{
  preferred_batch_size: [ 8, 16, 32 ]
  max_queue_delay_microseconds: 2000
}}
instance_group [ {{ kind: KIND_AUTO }} ]
# no TF32, and cuDNN's algorithms by heuristic (an exhaustive search would start again at every new size of a batch): what
# the server answers is what parity was checked for
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator: [
      {{
        name: "cuda"
        parameters {{ key: "use_tf32" value: "0" }}
        parameters {{ key: "cudnn_conv_algo_search" value: "HEURISTIC" }}
      }}
    ]
  }}
}}
version_policy: {{ latest {{ num_versions: 1 }} }}
"""


def write_repository(root: Path, model_path: Path, class_names: Sequence[str]) -> None:
    """Write the repository under `root`; start it with `tritonserver --model-repository=<root>`."""
    folder = root / NAME
    config = CONFIG.format(
        name=NAME,
        max_batch=MAX_BATCH,
        image=IMAGE,
        probabilities=PROBABILITIES,
        familiarity=FAMILIARITY,
        num_classes=len(class_names),
    )
    write_text(folder / "config.pbtxt", config)
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in class_names))
    with replacing(folder / "1" / "model.onnx") as part:
        shutil.copyfile(model_path, part)
