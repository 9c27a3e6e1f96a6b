"""python -m stages.evaluate <recipe>: the recipe's checkpoint on the test split, once."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.evaluate.measure import measure, measure_before_fixes
from stages.evaluate.scores import predictions_from
from stages.evaluate.tables import write_curves, write_predictions
from stages.shared import artifacts, cli
from stages.shared.checkpoint import Facts, load_checkpoint
from stages.shared.dataset import Manifest, load_labels_before_fixes, load_manifest, load_test_files, load_test_split
from stages.shared.encoded import Crops
from stages.shared.files import write_json
from stages.shared.inference import agreement, fast_predictor, predict_logits
from stages.shared.memory import with_fitting_batch
from stages.shared.metrics import softmax
from stages.shared.params import load_params
from stages.shared.reproducibility import choose_device, choose_precision, describe_machine

BATCH = 256  # images
BFLOAT16_LIMIT = 0.03  # on max|Δlogit| / max|logit|: three digits are left; trained ResNets stay below it


def main(recipe: str = "") -> None:
    params = load_params()
    if recipe not in params.train:
        raise ValueError(
            f"params.yaml has no recipe {recipe!r} under train; run python -m stages.evaluate with one of {', '.join(params.train)}"
        )
    checkpoint = artifacts.train_dir(recipe) / "checkpoint.safetensors"
    model, facts = load_checkpoint(checkpoint)
    manifest = load_manifest(artifacts.MANIFEST)
    split = load_test_split(artifacts.TEST_SPLIT)
    check_same_task(checkpoint, facts, manifest)
    if not len(split):
        raise ValueError(f"{artifacts.TEST_SPLIT}: no images; give the data set a test split and run preprocess again")

    device = choose_device(params.runtime.device)
    logits, how = predict(model, split.pixels, facts, device, params.evaluate.execution)
    check_finite(checkpoint, logits)

    predictions = predictions_from(logits, np.asarray(split.labels))
    bins, samples = params.evaluate.calibration_bins, params.evaluate.bootstrap_samples
    metrics = measure(predictions, facts.class_names, bins=bins, samples=samples, seed=params.seed)
    before = load_labels_before_fixes(artifacts.TEST_SPLIT, len(split))
    metrics["before_fixes"] = measure_before_fixes(logits, predictions.labels, before)
    folder = artifacts.evaluate_dir(recipe)
    paths = [file.path for file in load_test_files(artifacts.TEST_SPLIT)]
    write_predictions(folder, predictions, softmax(logits), facts.class_names, paths)
    write_curves(folder, predictions, bins=bins)
    ran_on = {**how, "device": describe_machine(device)["device"]}
    write_json(folder / "metrics.json", {"recipe": recipe, **metrics, **ran_on})
    print(summary(recipe, metrics), flush=True)


def check_same_task(checkpoint: Path, facts: Facts, manifest: Manifest) -> None:
    if facts.class_names != manifest.class_names:
        trained, tested = ", ".join(facts.class_names), ", ".join(manifest.class_names)
        raise ValueError(
            f"{checkpoint}: trained on the classes {trained}, but the data set has {tested}; run train again"
        )
    if facts.data_digest != manifest.digest:
        raise ValueError(f"{checkpoint}: trained on other data than {artifacts.MANIFEST} describes; run train again")


def predict(
    model: nn.Module, pixels: Crops, facts: Facts, device: torch.device, execution: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """float32 logits (n, classes) of uint8 (n, crop, crop, 3) pixels, and metrics.json's record of how they were computed.

    Raises ValueError where the fast way's logits of a sample are not the exact way's within bfloat16's error.
    """
    exact = partial(predict_logits, model, transform=facts.transform, device=device)
    if execution == "exact":
        return exact(pixels), {"execution": execution, "precision": "float32"}
    precision = choose_precision("auto", device)

    def fast(batch_size: int) -> np.ndarray:
        return fast_predictor(model, facts.transform, device=device, batch_size=batch_size, precision=precision)(pixels)

    logits = with_fitting_batch(fast, min(BATCH, len(pixels)))
    # From all over the split, which may be ordered by class.
    checked = np.unique(np.linspace(0, len(pixels) - 1, BATCH).round().astype(int))
    same, difference = agreement(logits[checked], exact(pixels[checked]))
    print(
        f"fast: of {len(checked)} images {same:.1%} have the exact top-1, logits within {difference:.2g}",
        flush=True,
    )
    if not difference <= BFLOAT16_LIMIT:
        raise ValueError(
            f"evaluate.execution is fast, whose logits are off by {difference:.2g} of the largest (limit {BFLOAT16_LIMIT}) "
            "on this model: set it to exact"
        )
    return logits, {"execution": execution, "precision": str(precision).removeprefix("torch."), "same_top1": same}


def check_finite(checkpoint: Path, logits: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{checkpoint}: NaN or infinite logits for {len(broken)} of {len(logits)} test images (the first is number "
            f"{broken[0]}); training diverged: lower this recipe's lr in params.yaml and train again"
        )


def summary(recipe: str, metrics: Mapping[str, Any]) -> str:
    low, high = metrics["test_accuracy_low"], metrics["test_accuracy_high"]
    line = (
        f"{recipe}: test loss {metrics['test_loss']:.3f}, test accuracy {metrics['test_accuracy']:.3f} "
        f"(95 % {low:.3f} to {high:.3f}) on {metrics['num_images']} images"
    )
    if before := metrics["before_fixes"]:
        line += f"; {before['test_accuracy']:.3f} by the {before['num_images']} labels before the fix list"
    if metrics["positive_class"] is None or metrics["roc_auc"] is not None:
        return line
    (only,) = (name for name, scores in metrics["per_class"].items() if scores["num_images"])
    return f"{line}; ROC-AUC not defined: every test image is of class {only}"


if __name__ == "__main__":
    cli.run(main)
