"""The export stage: the chosen recipe's checkpoint in, ONNX files that anyone can use out.

artifacts/model.onnx            uint8 images of any size -> probabilities and familiarity, self-contained
artifacts/export/model.crops.onnx  the same for callers who resize and crop by themselves
artifacts/export/core.onnx      normalised images -> logits and what familiarity needs, the subject of parity
artifacts/export/*.fp16, *.int8 the same in less precision, where it is accurate and fast enough
artifacts/export/reference.safetensors   what the network makes of the test split in float64, bound to the weights
artifacts/export/triton/        a model repository for an inference server
artifacts/export/export.json    what all this was made from

Nothing here is chosen on the test split: of its pixels only the reference is computed, and its labels are not opened.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from stages.export.core import describe_core, export_core
from stages.export.decisions import NEVER, advice, familiarity_threshold, fewest_held_out, probability_thresholds
from stages.export.deploy import deployable, deployable_on_crops
from stages.export.familiarity import familiarity_graph, fit_familiarity
from stages.export.graph import check_and_save
from stages.export.heatmap import heatmap_graph
from stages.export.provenance import digests, git_revision, read_source, versions
from stages.export.triton import write_repository
from stages.export.variants import BATCH, Demands, Judged, run_core, ship_variants, split_evenly
from stages.shared import artifacts, cli
from stages.shared.checkpoint import Facts, digest, load_checkpoint
from stages.shared.dataset import (
    Manifest,
    TrainSplit,
    chunks_of_crops,
    fixed_crops,
    load_manifest,
    load_test_pixels,
    load_train_split,
)
from stages.shared.files import write_json
from stages.shared.held_out import Validation, load_folds, load_validation
from stages.shared.inference import predict_logits
from stages.shared.params import Decision, Params, class_shares, load_params
from stages.shared.reference import compute_reference, save_reference
from stages.shared.reproducibility import describe_machine
from stages.shared.shipped_files import CONTRASTS, CORE, FEATURES, FILES, MODEL, ON_CROPS, UNIT_FEATURES
from stages.shared.transforms import Transform, network_input

NUM_CALIBRATION, NUM_JUDGED = 128, 256  # training images
CPU = torch.device("cpu")


def main() -> None:
    params = load_params()
    recipe = artifacts.selected_recipe(params.export.recipe)
    checkpoint = artifacts.train_dir(recipe) / "checkpoint.safetensors"
    model, facts = load_checkpoint(checkpoint)
    manifest, train = load_manifest(artifacts.MANIFEST), load_train_split(artifacts.TRAIN_SPLIT)
    check_same_data(str(checkpoint), facts, manifest)

    core = export_core(model, facts.transform.crop, params.export.opset)
    folds = load_folds(artifacts.INSPECTION / "folds.npz", len(train))
    familiarity, num_held_out = learn_familiarity(core, train, folds, facts.transform)
    extras = [familiarity, *([heatmap_graph(core, params.export.opset)] if params.export.heatmap else [])]
    validation = load_validation(artifacts.train_dir(recipe) / "validation.npz")
    thresholds = decide(params.decision, validation, facts.class_names, num_held_out)
    metadata = describe(facts, digest(model)) | {"thresholds": json.dumps(thresholds, ensure_ascii=False)}

    of_core = describe_core(metadata, facts.transform.crop)
    check_and_save(artifacts.ROOT / CORE.path, core, of_core)
    check_and_save(artifacts.ROOT / MODEL.path, deployable(core, extras, facts.transform), metadata)
    on_crops = metadata | {"input": f"uint8 [batch, {facts.transform.crop}, {facts.transform.crop}, 3], sRGB, upright"}
    check_and_save(artifacts.ROOT / ON_CROPS.path, deployable_on_crops(core, extras, facts.transform), on_crops)
    print(f"{artifacts.MODEL}: {artifacts.MODEL.stat().st_size / 1e6:.1f} MB, opset {params.export.opset}", flush=True)

    test_pixels = load_test_pixels(artifacts.TEST_SPLIT)
    reference = compute_reference(model, test_pixels, facts.transform)
    save_reference(artifacts.EXPORT / "reference.safetensors", reference, test_pixels, metadata["weights_digest"])

    to_calibrate, to_judge = split_evenly(len(train), NUM_CALIBRATION, NUM_JUDGED)
    judged_crops = fixed_crops(train, to_judge, facts.transform)
    variants = ship_variants(
        artifacts.ROOT,
        core,
        lambda reduced: deployable(reduced, [familiarity], facts.transform),
        metadata,
        of_core,
        calibration=network_input(fixed_crops(train, to_calibrate, facts.transform), facts.transform),
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
    answers = np.bincount(validation.logits.argmax(axis=1), minlength=len(facts.class_names)).tolist()
    held_out = {"held_out_answers": dict(zip(facts.class_names, answers, strict=True))}  # what monitor compares with
    write_json(artifacts.EXPORT / "export.json", provenance(params, recipe, facts, metadata, variants) | held_out)


def learn_familiarity(
    core: ModelProto, train: TrainSplit, folds: np.ndarray, transform: Transform
) -> tuple[ModelProto, int]:
    """The graph that scores features, and the number of held-out training images that its scale is made of."""
    chunks = chunks_of_crops(train, range(len(train)), transform, BATCH)
    batches = (network_input(crops, transform) for crops in chunks)
    features, contrasts = run_core(core, batches, FEATURES, CONTRASTS)
    familiarity = fit_familiarity(features, contrasts, train.labels, folds)
    return familiarity_graph(familiarity, core.opset_import[0].version), len(familiarity.held_out)


def decide(
    decision: Decision, validation: Validation, class_names: tuple[str, ...], num_held_out: int
) -> dict[str, Any]:
    """The value that goes into the files as `thresholds`: {"familiarity": …, "probability": {class: …}}."""
    thresholds: dict[str, Any] = {"familiarity": familiarity_threshold(num_held_out, decision.max_refused)}
    if decision.max_refused and not thresholds["familiarity"]:
        needed = f"a max_refused of {decision.max_refused} needs {fewest_held_out(decision.max_refused)} images"
        print(f"decision: no picture will be called unfamiliar: {needed}, there are {num_held_out}", flush=True)
    demanded = class_shares(decision.min_precision)
    if demanded and not len(validation.rows):
        raise ValueError("decision.min_precision needs validated predictions: set the recipe's validation to folds")
    if demanded:
        held_out = validation.logits, validation.labels, class_names
        found = thresholds["probability"] = probability_thresholds(*held_out, demanded)
        for name in (name for name in demanded if found[name] == NEVER):
            print(advice(*held_out, name, demanded[name]), flush=True)
    return thresholds


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
        "output": "probabilities float32 [batch, classes] in the order of class_names; familiarity float32 [batch] in [0, 1]",
        "runtimes": (
            "in float32 alike in ONNX Runtime (1.15 and later, and on the web), OpenVINO with INFERENCE_PRECISION_HINT=f32 "
            "and tract 0.23.9; in others (TensorRT, CoreML, on phones) not tried: compare some answers first"
        ),
        "features": UNIT_FEATURES,
        "weights_digest": weights_digest,
        "data_digest": facts.data_digest,
        "recipe": facts.recipe,
    }


def provenance(
    params: Params, recipe: str, facts: Facts, metadata: dict[str, str], variants: list[dict[str, Any]]
) -> dict[str, Any]:
    init = params.train[recipe].init
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
        "machine": describe_machine(CPU)["device"],
        "params": {
            **params.model_dump(
                mode="json",
                include={"seed", "dataset", "model", "preprocess", "export", "decision"},
                exclude={"dataset": {"source"}, "model": {"weights"}},  # they may hold secrets; below they are masked
            ),
            "train": {recipe: params.train[recipe].model_dump(mode="json")},
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
