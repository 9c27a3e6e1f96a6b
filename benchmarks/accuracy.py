"""Compare the fast loop's accuracy with the plain loop's: python -m benchmarks.accuracy [--real DIR] [--seeds N] [--out FILE] [--quick]

Both fine-tune from the same source weights with params.yaml's finetune recipe. The plain one is the book's loop, written
out: float32, NCHW, PIL transforms, a DataLoader. Each seed draws its own head, order and crops in both loops.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.ours import fit_recipe
from benchmarks.peers import book_optimizer, book_transform, d2l_step
from benchmarks.tasks import Labelled, Task, drawn_task, real_task
from benchmarks.workload import ARCHITECTURE, MEAN, STD
from stages.shared.dataset import TrainSplit, pack_canvas
from stages.shared.files import write_json
from stages.shared.inference import predict_logits
from stages.shared.model import build_model, load_source
from stages.shared.reproducibility import choose_device, choose_precision, describe_machine
from stages.shared.transforms import Transform, resize_center_crop


def main() -> None:
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    tasks = [drawn_task(device, arguments.quick)]
    if arguments.real:
        tasks.append(real_task(arguments.real))
    results = [compare(task, arguments.seeds, device) for task in tasks]
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    write_json(arguments.out, {"machine": describe_machine(device), "precision": precision, "tasks": results})
    print(render(results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--real", type=Path, help="a folder with hotdog-small.zip and resnet18-food100.pth")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11))
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accuracy.json")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its numbers mean nothing")
    return parser.parse_args()


def compare(task: Task, seeds: int, device: torch.device) -> dict[str, Any]:
    """Test accuracies of both loops, seed by seed, with the 95 % intervals of their means and of the mean difference."""
    loops: dict[str, Callable[[Task, int, torch.device], float]] = {"ours": run_ours, "plain": run_plain}
    accuracies: dict[str, list[float]] = {name: [] for name in loops}
    for seed in range(seeds):
        for name, run in loops.items():
            accuracies[name].append(run(task, seed, device))
            print(f"{task.name}, seed {seed}, {name}: test accuracy {accuracies[name][-1]:.3f}", flush=True)
    differences = [ours - plain for ours, plain in zip(accuracies["ours"], accuracies["plain"], strict=True)]
    return {
        "task": task.name,
        "num_train": len(task.train),
        "num_test": len(task.test),
        "crop": task.crop,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        **{name: mean_and_interval(values) for name, values in accuracies.items()},
        "difference": mean_and_interval(differences),
    }


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean with its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def run_ours(task: Task, seed: int, device: torch.device) -> float:
    """Train as the pipeline does: canvases, a sampling plan, fit, predict_logits."""
    model = source_model(task, seed)
    pixels, sizes = pack_canvas(
        [image for image, _ in task.train], max(max(image.shape[:2]) for image, _ in task.train)
    )
    split = TrainSplit(pixels, sizes, labels_of(task.train))
    settings: dict[str, Any] = {"crop": task.crop, "epochs": task.epochs, "batch_size": task.batch_size}
    chosen = torch.arange(len(split))
    fit_recipe(model, split, chosen, **settings, device=device, seed=seed, name=f"ours, seed {seed}")
    tests = np.stack([resize_center_crop(image, task.resize, task.crop) for image, _ in task.test])
    logits = predict_logits(model, tests, Transform(task.resize, task.crop, MEAN, STD), device=device)
    return float((logits.argmax(1) == labels_of(task.test)).mean())


def run_plain(task: Task, seed: int, device: torch.device) -> float:
    """Train as the book does, from images in memory instead of files."""
    model = source_model(task, seed).to(device)
    loader = DataLoader(InMemory(task.train, book_transform(task.crop)), batch_size=task.batch_size, shuffle=True)
    train_batch = d2l_step(model, book_optimizer(model), device)
    for _ in range(task.epochs):
        for images, labels in loader:
            train_batch(images, labels)
    squash = [transforms.Resize([task.resize, task.resize]), transforms.CenterCrop(task.crop)]
    tests = transforms.Compose([*squash, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in DataLoader(InMemory(task.test, tests), batch_size=task.batch_size):
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return correct / len(task.test)


class InMemory(Dataset):
    """Decoded images, transformed as torchvision's ImageFolder would."""

    def __init__(self, images: Labelled, transform: Callable[[Image.Image], torch.Tensor]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(Image.fromarray(image)), label


def source_model(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(ARCHITECTURE, 2, task.crop)
    load_source(model, ARCHITECTURE, task.crop, task.source, {})
    return model


def labels_of(images: Labelled) -> np.ndarray:
    return np.array([label for _, label in images], dtype=np.int64)


def render(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| test accuracy, mean of seeds [95 %] | plain loop | ours | difference |", "| --- | --- | --- | --- |"]
    for result in results:
        what = f"{result['task']}: {result['num_train']} train, {result['num_test']} test, {len(result['ours']['values'])} seeds"
        lines.append(
            f"| {what} | " + " | ".join(_interval(result[name]) for name in ("plain", "ours", "difference")) + " |"
        )
    return "\n".join(lines)


def _interval(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
