"""The settings of one acceptance run, the same for every step."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import describe_run
from benchmarks.record import results_path
from benchmarks.workload import Size, choose_size
from stages.shared.reproducibility import choose_precision

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Setup:
    device: str  # cpu | cuda
    small: bool  # tiny inputs: a dry run
    out: str  # folder of the results file
    work: str  # scratch folder that steps of several calls share
    real: str | None  # a real data set: a zip or a folder
    weights: str | None  # its source weights; None: the drawn source model's
    python: str = sys.executable  # what runs the stages

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def precision(self) -> torch.dtype:
        return choose_precision("auto", self.torch_device)

    @property
    def size(self) -> Size:
        return choose_size(self.torch_device, self.small)

    @property
    def results(self) -> Path:
        return results_path(Path(self.out), self.torch_device)

    @property
    def about(self) -> dict[str, Any]:
        return describe_run(self.size, self.torch_device, self.precision, self.small)

    def as_json(self) -> str:
        return json.dumps(asdict(self))
