"""The rows on evaluation: folded, bfloat16 and compiled, beside torch's float32, ONNX Runtime and the peers' evaluations."""

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.contestants import peer_runs
from benchmarks.process import ContestantProcess
from benchmarks.record import Row, Rows, attempt
from benchmarks.timing import interleave, ratio
from benchmarks.workload import MEAN, STD, Size, Workload, make_model
from stages.shared.inference import agreement, fast_predictor, predict_logits
from stages.shared.shipped_files import NORMALIZED
from stages.shared.transforms import Transform, network_input, normalize

Predict = Callable[[np.ndarray], np.ndarray]
OPSET = 18


def measure_evaluation(work: Workload, size: Size, folder: Path, device: torch.device, precision: torch.dtype) -> Rows:
    """Images per second over the test split, pixels in and logits out, and how far the fast way's logits are off."""
    model, pixels = trained_model(work, size, device), work.test.pixels[:]
    transform = Transform(size.resize, size.crop, MEAN, STD)
    settings: dict[str, Any] = {"transform": transform, "device": device, "batch_size": size.batch_size}
    fast = fast_predictor(model, **settings, precision=precision, compiled=size.compiled)
    yield from attempt(("evaluation_eager",), partial(compare_with_eager, fast, model, pixels, size, settings))
    yield from attempt(("evaluation_onnxruntime",), partial(compare_with_onnx, fast, model, pixels, size, device))
    for name in ("evaluation_torchvision", "evaluation_timm"):
        with ContestantProcess(peer_runs, name, size, folder, device) as peer:
            for row, what in ((name, "timer"), (f"{name}_end_to_end", "end_to_end")):
                if name.endswith("timm") and find_spec("timm") is None:
                    yield row, {"not_measured": "timm is not installed"}
                else:
                    yield from attempt((row,), partial(compare_with_peer, row, what, fast, pixels, peer, size, device))


def compare_with_eager(
    fast: Predict, model: nn.Module, pixels: np.ndarray, size: Size, settings: dict[str, Any]
) -> dict[str, Row]:
    eager = partial(predict_eagerly, model, batch_size=size.batch_size, device=settings["device"])
    # What the evaluate stage runs is timed too: float32 as well, but channels last.
    stage = partial(predict_logits, copy.deepcopy(model), **settings)
    same, difference = agreement(fast(pixels), eager(pixels))
    ways: dict[str, Predict] = {"ours": fast, "eager": eager, "evaluate stage": stage}
    rates = interleave({name: _counted(way, pixels) for name, way in ways.items()}, size.rounds, settings["device"])
    exactness = {"same_top1": same, "relative_logit_difference": difference}
    return {"evaluation_eager": {"rates": rates, **ratio(rates["ours"], rates["eager"]), **exactness}}


def compare_with_onnx(
    fast: Predict, model: nn.Module, pixels: np.ndarray, size: Size, device: torch.device
) -> dict[str, Row]:
    onnx, reason = onnx_predictor(model, size, device)
    if onnx:
        off = agreement(onnx(pixels), predict_eagerly(model, pixels, size.batch_size, device))[1]
        if off >= (0.03 if device.type == "cuda" else 0.01):  # on CUDA both may compute in TF32
            onnx, reason = None, f"ONNX Runtime's logits are off by {off:.2g}"
    if onnx is None:
        return {"evaluation_onnxruntime": {"not_measured": reason}}
    contestants = {"ours": _counted(fast, pixels), "onnxruntime": _counted(onnx, pixels)}
    rates = interleave(contestants, size.rounds, device)
    return {"evaluation_onnxruntime": {"rates": rates, **ratio(rates["ours"], rates["onnxruntime"])}}


def compare_with_peer(
    row: str,
    what: str,
    fast: Predict,
    pixels: np.ndarray,
    peer: ContestantProcess,
    size: Size,
    device: torch.device,
) -> dict[str, Row]:
    """Ours from uint8 crops in memory; the peer's from batches that are ready on the host (timer), or from JPEG files."""
    rates = interleave({"ours": _counted(fast, pixels), "peer": peer.run(what)}, max(2, size.rounds // 2), device)
    return {row: {"rates": rates, **ratio(rates["ours"], rates["peer"])}}


def trained_model(work: Workload, size: Size, device: torch.device) -> nn.Module:
    """A few steps of training, so that batch norm's statistics are those of images."""
    model = make_model(size.crop).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels = torch.from_numpy(work.test.labels).to(device)
    images = normalize(
        torch.from_numpy(np.array(work.test.pixels)).to(device).permute(0, 3, 1, 2), MEAN, STD, torch.float32
    )
    for start in range(0, min(len(images), 128), 16):
        loss = nn.functional.cross_entropy(model(images[start : start + 16]), labels[start : start + 16])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def predict_eagerly(model: nn.Module, pixels: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """float32 and NCHW, as torch runs a model that nobody touched, and as the book's loop evaluates it."""
    logits = []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        logits.append(model(normalize(batch, MEAN, STD, torch.float32).contiguous()))
    return torch.cat(logits).cpu().numpy()


def onnx_predictor(model: nn.Module, size: Size, device: torch.device) -> tuple[Predict | None, str]:
    """ONNX Runtime in float32 on the same device, fed with the same pixels; or why there is none."""
    try:
        import onnxruntime

        from stages.export.core import export_core
    except ImportError as error:
        return None, f"{error.name} is not installed"
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return None, f"this onnxruntime has no {provider}"
    if device.type == "cuda":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    core = export_core(model, size.crop, OPSET).SerializeToString()
    session = onnxruntime.InferenceSession(core, options, providers=[provider])
    if session.get_providers()[0] != provider:
        return None, f"onnxruntime did not load {provider}"

    def predict(pixels: np.ndarray) -> np.ndarray:
        logits = []
        for start in range(0, len(pixels), size.batch_size):
            images = network_input(
                pixels[start : start + size.batch_size], Transform(size.resize, size.crop, MEAN, STD)
            )
            logits.append(session.run(None, {NORMALIZED: images})[0])
        return np.concatenate(logits)

    return predict, ""


def _counted(way: Predict, pixels: np.ndarray) -> Callable[[], int]:
    return lambda: len(way(pixels))
