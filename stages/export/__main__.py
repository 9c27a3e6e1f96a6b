"""The export stage: the chosen recipe's checkpoint in, ONNX files that anyone can use out.

artifacts/model.onnx            uint8 images of any size -> probabilities, self-contained
artifacts/export/core.onnx      normalised images -> logits, the subject of parity
artifacts/export/*.fp16, *.int8 the same in less precision, where the accuracy holds
artifacts/export/reference.safetensors   float64 logits of the test split, bound to the weights
artifacts/export/triton/        a model repository for an inference server
artifacts/export/export.json, MODEL_CARD.md
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stages.export.card import model_card
from stages.export.core import export_core
from stages.export.deploy import deployable
from stages.export.graph import check_and_save
from stages.export.provenance import digests, git_revision, read_source, versions
from stages.export.reference import compute_reference, save_reference
from stages.export.triton import write_repository
from stages.export.variants import choose_evenly, ship_variants
from stages.shared import artifacts, cli
from stages.shared.checkpoint import Facts, digest, load_checkpoint
from stages.shared.dataset import Manifest, TrainSplit, load_manifest, load_test_pixels, load_train_split
from stages.shared.files import write_json, write_text
from stages.shared.metrics import accuracy
from stages.shared.params import Params, load_params
from stages.shared.transforms import resize_center_crop

NUM_CALIBRATION = 128  # training images; as many others judge the variants


def main() -> None:
    params = load_params()
    checkpoint = artifacts.train_dir(params.export.recipe) / "checkpoint.safetensors"
    model, facts = load_checkpoint(checkpoint)
    manifest = load_manifest(artifacts.MANIFEST)
    crops, train = load_test_pixels(artifacts.TEST_SPLIT), load_train_split(artifacts.TRAIN_SPLIT)
    check_same_data(str(checkpoint), facts, manifest)
    metadata = describe(facts, digest(model))

    core = export_core(model, facts.transform.crop, params.export.opset)
    check_and_save(artifacts.EXPORT / "core.onnx", core, metadata)
    check_and_save(
        artifacts.MODEL,
        deployable(core, facts.transform.resize, facts.transform.crop, facts.transform.mean, facts.transform.std),
        metadata,
    )
    print(f"{artifacts.MODEL}: {artifacts.MODEL.stat().st_size / 1e6:.1f} MB, opset {params.export.opset}", flush=True)

    logits = compute_reference(model, crops, facts)
    save_reference(artifacts.EXPORT / "reference.safetensors", logits, crops, metadata)
    calibration, judging = choose_training_images(len(train))
    judged = train_crops(train, judging, facts.transform.resize, facts.transform.crop)
    expected = compute_reference(model, judged, facts)["float64"]
    variants = ship_variants(
        artifacts.EXPORT,
        core,
        facts,
        metadata,
        calibration=train_crops(train, calibration, facts.transform.resize, facts.transform.crop),
        crops=judged,
        labels=train.labels[judging],
        reference=expected,
        max_drop=params.export.max_accuracy_drop,
        max_errors={"core.fp16.onnx": params.parity.fp16, "model.int8.onnx": params.parity.int8},
    )
    for variant in variants:
        print(
            f"{variant['file']}: " + (f"not shipped, {variant['reason']}" if variant["reason"] else "shipped"),
            flush=True,
        )

    write_repository(artifacts.EXPORT / "triton", artifacts.MODEL, facts.class_names)
    top_1 = accuracy(expected, train.labels[judging])
    full = {"file": "model.onnx", "accuracy": top_1, "accuracy_drop": 0.0, "error": 0.0, "shipped": True, "reason": ""}
    sidecar = provenance(params, facts, metadata, [full, *variants])
    write_json(artifacts.EXPORT / "export.json", sidecar)
    card = model_card(
        facts,
        sidecar,
        [full, *variants],
        num_train=len(train),
        num_test=len(crops),
        evaluation=artifacts.evaluate_dir(params.export.recipe),
    )
    write_text(artifacts.EXPORT / "MODEL_CARD.md", card)


def check_same_data(checkpoint: str, facts: Facts, manifest: Manifest) -> None:
    if facts.data_digest != manifest.digest or facts.class_names != manifest.class_names:
        raise ValueError(
            f"{checkpoint}: trained on data {facts.data_digest:.12}… with classes {list(facts.class_names)}, but "
            f"{artifacts.MANIFEST} is of {manifest.digest:.12}… with {list(manifest.class_names)}; run train again"
        )


def describe(facts: Facts, weights_digest: str) -> dict[str, str]:
    """The files' metadata. No revision and no date: the same model must give the same bytes after every commit."""
    return {
        "architecture": facts.architecture,
        "class_names": json.dumps(facts.class_names, ensure_ascii=False),
        "input": "uint8 [batch, height, width, 3 or 4], sRGB, upright, any size; a fourth channel is alpha, laid on white",
        "test_transform": json.dumps(asdict(facts.transform), sort_keys=True),
        "output": "float32 [batch, classes], probabilities in the order of class_names",
        "weights_digest": weights_digest,
        "data_digest": facts.data_digest,
        "recipe": facts.recipe,
    }


def choose_training_images(num_images: int) -> tuple[Sequence[int], Sequence[int]]:
    """Rows that calibrate the variants, and other rows that judge them: the test split must not shape what is shipped."""
    chosen = choose_evenly(num_images, 2 * NUM_CALIBRATION)
    return chosen[::2], chosen[1::2] or chosen


def train_crops(train: TrainSplit, rows: Sequence[int], resize: int, crop: int) -> np.ndarray:
    """uint8 (n, crop, crop, 3): these training images under the test transform."""
    images = (train.pixels[row][: train.sizes[row][0], : train.sizes[row][1]] for row in rows)
    return np.stack([resize_center_crop(image, resize, crop) for image in images])


def provenance(
    params: Params, facts: Facts, metadata: dict[str, str], variants: list[dict[str, Any]]
) -> dict[str, Any]:
    init = params.train[params.export.recipe].init
    shipped = [artifacts.EXPORT / row["file"] for row in variants[1:] if row["shipped"]]
    files = [artifacts.MODEL, artifacts.EXPORT / "core.onnx", artifacts.EXPORT / "reference.safetensors", *shipped]
    source = None if init == "random" else read_source(artifacts.SOURCE_MODEL / "source.json")
    return {
        "files": digests(artifacts.ROOT, files),
        "variants": variants,
        "metadata": metadata,
        "git": git_revision(),
        "versions": versions(),
        "params": {
            **params.model_dump(
                mode="json",
                include={"seed", "dataset", "model", "preprocess", "export"},
                exclude={"dataset": {"source"}, "model": {"weights"}},  # they may hold secrets; below they are masked
            ),
            "train": {params.export.recipe: params.train[params.export.recipe].model_dump(mode="json")},
        },
        "data": {"digest": facts.data_digest, "source": read_source(artifacts.SOURCE_DATASET / "source.json")},
        "weights": {
            "digest": metadata["weights_digest"],
            "init": init,
            "source_digest": facts.source_digest,
            "source": source,
        },
    }


if __name__ == "__main__":
    cli.run(main)
