"""The export stage: the chosen recipe's checkpoint in, ONNX files that anyone can use out.

artifacts/model.onnx            uint8 images of any size -> probabilities, self-contained
artifacts/export/model.crops.onnx  the same for callers who resize and crop by themselves
artifacts/export/core.onnx      normalised images -> logits, the subject of parity
artifacts/export/*.fp16, *.int8 the same in less precision, where it is accurate and fast enough
artifacts/export/reference.safetensors   float64 logits of the test split, bound to the weights
artifacts/export/triton/        a model repository for an inference server
artifacts/export/export.json    what all this was made from

Nothing here is chosen on the test split: of its pixels only the reference is computed, and its labels are not opened.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from stages.export.core import export_core
from stages.export.deploy import deployable, deployable_on_crops
from stages.export.graph import check_and_save
from stages.export.provenance import digests, git_revision, read_source, versions
from stages.export.triton import write_repository
from stages.export.variants import Demands, Judged, ship_variants, split_evenly
from stages.shared import artifacts, cli
from stages.shared.checkpoint import Facts, digest, load_checkpoint
from stages.shared.dataset import Manifest, TrainSplit, load_manifest, load_test_pixels, load_train_split
from stages.shared.files import write_json
from stages.shared.inference import predict_logits
from stages.shared.params import Params, load_params
from stages.shared.reference import Reference, save_reference
from stages.shared.shipped_files import CORE, FILES, MODEL, ON_CROPS
from stages.shared.transforms import Transform, network_input, resize_center_crop

NUM_CALIBRATION, NUM_JUDGED = 128, 256  # training images
CPU = torch.device("cpu")


def main() -> None:
    params = load_params()
    checkpoint = artifacts.train_dir(params.export.recipe) / "checkpoint.safetensors"
    model, facts = load_checkpoint(checkpoint)
    manifest, train = load_manifest(artifacts.MANIFEST), load_train_split(artifacts.TRAIN_SPLIT)
    check_same_data(str(checkpoint), facts, manifest)
    metadata = describe(facts, digest(model))

    core = export_core(model, facts.transform.crop, params.export.opset)
    check_and_save(artifacts.ROOT / CORE.path, core, metadata)
    check_and_save(artifacts.ROOT / MODEL.path, deployable(core, facts.transform), metadata)
    on_crops = metadata | {"input": f"uint8 [batch, {facts.transform.crop}, {facts.transform.crop}, 3], sRGB, upright"}
    check_and_save(artifacts.ROOT / ON_CROPS.path, deployable_on_crops(core, facts.transform), on_crops)
    print(f"{artifacts.MODEL}: {artifacts.MODEL.stat().st_size / 1e6:.1f} MB, opset {params.export.opset}", flush=True)

    test_pixels = load_test_pixels(artifacts.TEST_SPLIT)
    reference = Reference(
        float64=predict_logits(model, test_pixels, facts.transform, device=CPU, precision=torch.float64, batch_size=32),
        float32=predict_logits(model, test_pixels, facts.transform, device=CPU, batch_size=32),
    )
    save_reference(artifacts.EXPORT / "reference.safetensors", reference, test_pixels, metadata["weights_digest"])

    to_calibrate, to_judge = split_evenly(len(train), NUM_CALIBRATION, NUM_JUDGED)
    judged_crops = as_tested(train, to_judge, facts.transform)
    variants = ship_variants(
        artifacts.ROOT,
        core,
        lambda reduced: deployable(reduced, facts.transform),
        metadata,
        calibration=network_input(as_tested(train, to_calibrate, facts.transform), facts.transform),
        judged=Judged(
            images=network_input(judged_crops, facts.transform),
            labels=train.labels[to_judge],
            reference=predict_logits(model, judged_crops, facts.transform, device=CPU, precision=torch.float64),
        ),
        demands=Demands(params.export.max_accuracy_drop, params.parity.model_dump(), params.export.min_speedup),
    )
    for variant in variants:
        print(f"{variant['file']}: {variant['reason'] or 'shipped'}", flush=True)

    write_repository(artifacts.EXPORT / "triton", artifacts.MODEL, facts.class_names)
    write_json(artifacts.EXPORT / "export.json", provenance(params, facts, metadata, variants))


def check_same_data(checkpoint: str, facts: Facts, manifest: Manifest) -> None:
    if facts.data_digest != manifest.digest or facts.class_names != manifest.class_names:
        raise ValueError(
            f"{checkpoint}: trained on data {facts.data_digest:.12}… with classes {list(facts.class_names)}, but "
            f"{artifacts.MANIFEST} is of {manifest.digest:.12}… with {list(manifest.class_names)}; run train again"
        )


def describe(facts: Facts, weights_digest: str) -> dict[str, str]:
    """The files' metadata. No revision and no date: the same model must give the same bytes after every commit."""
    longest = 2**30 // facts.transform.resize
    return {
        "architecture": facts.architecture,
        "class_names": json.dumps(facts.class_names, ensure_ascii=False),
        "input": (
            "uint8 [batch, height, width, 3 or 4], sRGB, upright, any size (a side may have "
            f"{longest} pixels); a fourth channel is alpha, laid on white"
        ),
        "test_transform": json.dumps(asdict(facts.transform), sort_keys=True),
        "output": "float32 [batch, classes], probabilities in the order of class_names",
        "weights_digest": weights_digest,
        "data_digest": facts.data_digest,
        "recipe": facts.recipe,
    }


def as_tested(train: TrainSplit, rows: np.ndarray, transform: Transform) -> np.ndarray:
    """uint8 (n, crop, crop, 3): TRAINING images under the test transform, without the canvas around them."""
    images = (train.pixels[row][: train.sizes[row][0], : train.sizes[row][1]] for row in rows)
    return np.stack([resize_center_crop(image, transform.resize, transform.crop) for image in images])


def provenance(
    params: Params, facts: Facts, metadata: dict[str, str], variants: list[dict[str, Any]]
) -> dict[str, Any]:
    init = params.train[params.export.recipe].init
    left_out = {row["file"] for row in variants if not row["shipped"]}
    files = [artifacts.ROOT / file.path for file in FILES if file.name not in left_out]
    source = None if init == "random" else read_source(artifacts.SOURCE_MODEL / "source.json")
    return {
        "facts": asdict(facts),
        "files": digests(artifacts.ROOT, [*files, artifacts.EXPORT / "reference.safetensors"]),
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
