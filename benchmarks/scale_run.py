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
from stages.shared.params import load_params

CPU = torch.device("cpu")


def main(project: str, num_batches: str, batch_size: str) -> None:
    preprocess = Path(project, "artifacts", "preprocess")
    params, transform = load_params(Path(project, "params.yaml")), load_manifest(preprocess / "manifest.json").transform
    split = load_train_split(preprocess / "train", memory=int(params.runtime.memory_gb * 1e9))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(split), generator=generator)[: int(num_batches) * int(batch_size)].sort().values
    model = make_model(transform.crop)
    history = ours.fit_recipe(
        model, split, rows, crop=transform.crop, epochs=2, batch_size=int(batch_size), device=CPU, name="scale"
    )
    pixels = load_test_pixels(preprocess / "test")[:256]
    start = time.perf_counter()
    predict_logits(model, pixels, transform, device=CPU)
    print(
        json.dumps(
            {
                # Of the first epoch, in which every image of an encoded store is decoded.
                "train_images_per_second": history[0].examples_per_second,
                "train_loss": history[0].train_loss,
                "train_again_images_per_second": history[1].examples_per_second,
                "evaluate_images_per_second": len(pixels) / (time.perf_counter() - start),
                "train_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
