"""Find the source weights that are at hand, and measure what each backbone costs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.project import stage_environment

# torchvision's names: resnet18-f37072fd.pth, efficientnet_b0_rwightman-7f5810bc.pth
FILE = re.compile(r"([a-z][a-z0-9_]*?)(_rwightman|_lukemelas|(_lc)?_swag)?(-[^/]*)?\.(pth|pt|safetensors)")

COST = """
import json, statistics, sys, time, torch, torchvision
architecture, side = sys.argv[1], int(sys.argv[2])
model = torchvision.models.get_model(architecture, num_classes=2).eval()
image, times = torch.rand(1, 3, side, side), []
with torch.inference_mode():
    for _ in range(3):
        model(image)
    for _ in range(15):
        begin = time.perf_counter()
        model(image)
        times.append(time.perf_counter() - begin)
size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
print(json.dumps({"size_mb": round(size / 1e6, 1), "latency_ms": round(1000 * statistics.median(times), 2)}))
"""


def points(folders: Iterable[str]) -> list[dict[str, Any]]:
    """A sweep's point for each weights file in the folders, in the order of names.

    Raises ValueError where there is none.
    """
    found = {}
    for folder in folders:
        for file in sorted(Path(folder).expanduser().glob("*")):
            if match := FILE.fullmatch(file.name):
                found[file.stem] = {
                    "name": file.stem,
                    "model.architecture": match[1],
                    "model.weights": str(file.resolve()),
                }
    if not found:
        where = ", ".join(map(str, folders))
        raise ValueError(
            f"no weights at hand in {where}: put files there that are named as torchvision does, <architecture>-<anything>.pth"
        )
    return list(found.values())


def cost(project: Path, architecture: str, side: int) -> dict[str, float]:
    """size_mb of the weights in float32, and latency_ms of one image (torch, CPU, one thread; median of 15)."""
    environment = stage_environment(OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", COST, architecture, str(side)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {}  # no reason to lose a sweep's results
    costs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return costs
