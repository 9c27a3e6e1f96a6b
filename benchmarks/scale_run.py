"""One process of the scale benchmark: python -m benchmarks.scale_run PROJECT BATCHES BATCH trains and evaluates, and prints JSON."""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.workload import make_model
from stages.shared.dataset import load_manifest, load_test_pixels, load_train_split
from stages.shared.inference import predict_logits

CPU = torch.device("cpu")


def main(project: str, num_batches: str, batch_size: str) -> None:
    preprocess = Path(project, "artifacts", "preprocess")
    transform = load_manifest(preprocess / "manifest.json").transform
    split = load_train_split(
        preprocess / "train"
    )  # nothing stays decoded, as where the images are many times the memory
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(split), generator=generator)[: int(num_batches) * int(batch_size)].sort().values
    model, start_cpu = make_model(transform.crop), time.process_time()
    history = ours.fit_recipe(
        model, split, rows, crop=transform.crop, epochs=2, batch_size=int(batch_size), device=CPU, name="scale"
    )
    cpu_seconds = time.process_time() - start_cpu
    pixels = load_test_pixels(preprocess / "test")[:256]
    start = time.perf_counter()
    predict_logits(model, pixels, transform, device=CPU)
    print(
        json.dumps(
            {
                "train_images_per_second": history[1].examples_per_second,  # the first epoch warms up
                "train_cpu_seconds_per_image": cpu_seconds / (2 * len(rows)),
                "train_loss": history[0].train_loss,
                "evaluate_images_per_second": len(pixels) / (time.perf_counter() - start),
                "train_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
