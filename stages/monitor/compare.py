"""Compare a folder of recent pictures with the training split: the frozen network's features, the colours, the model's answers.

The features are the frozen network's, because a fine-tuned one has seen the training images: what it makes of them differs from
what it makes of any other picture, also where nothing drifted. For the same reason recent answers are compared with those to
training images that were held out. Features hardly see a tint, and a night of a single class less well than its answers do.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors.numpy import load_file
from tqdm import tqdm

from stages.monitor.two_sample import LEVEL, compare_counts, compare_samples
from stages.shared import artifacts
from stages.shared.data_uri import data_uri
from stages.shared.dataset import Manifest, chunks_of_crops, load_manifest, load_train_split
from stages.shared.decode import UnusableError, decode
from stages.shared.files import read_json
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.reproducibility import choose_device
from stages.shared.shipped_files import FAMILIARITY, ON_CROPS, PROBABILITIES
from stages.shared.transforms import Transform, resize_center_crop

FEWEST = 20  # pictures, below which no shift that is worth an alarm can be told from chance
MOST_RECENT, MOST_TRAINING = 1000, 2000  # images; of more a sample is compared
SHOWN, NAMED_SKIPS = 12, 20  # pictures
BATCH = 32


def compare(source: Path, architecture: str, weights: Path, device: str) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The report, and the pictures of `most_unlike`. Raises ValueError where `source` is no folder."""
    manifest = load_manifest(artifacts.MANIFEST)
    files, crops, skipped = read_pictures(source, manifest.transform)
    report: dict[str, Any] = {
        "source": str(source),
        "num_pictures": len(files),
        "num_skipped": len(skipped),
        "skipped": skipped[:NAMED_SKIPS],
    }
    if len(files) < FEWEST:
        return {"verdict": f"not run: {len(files)} pictures in {source}, needs {FEWEST}", **report}, []

    model, head = load_network(architecture, weights, manifest.transform.crop)
    (recent,) = extract_features(
        model, head, [crops], len(crops), transform=manifest.transform, device=choose_device(device),
        mirrored=(False,), name="recent pictures",
    )  # fmt: skip
    features, training_colours = training_images(manifest.transform)
    answers, answered = answers_to(crops, manifest)
    by_features = compare_samples(unit_length(features), unit_length(recent), seed=0)
    p_values = {
        "features": by_features.p_value,
        "colours": compare_samples(training_colours, colours(crops), seed=0).p_value,
        **({"answers": compare_counts(*answered, seed=0)} if answered[0].any() else {}),
    }
    p_value = min(1.0, len(p_values) * min(p_values.values()))  # Bonferroni's correction
    drifted = p_value <= LEVEL
    unlike = np.argsort(-by_features.witness)[:SHOWN]
    return {
        "verdict": f"{'drift' if drifted else 'no drift'}: p = {p_value:.4f} (an alarm at {LEVEL} and below)",
        "drift": drifted,
        "p_value": round(p_value, 5),
        "p_values": {name: round(value, 5) for name, value in p_values.items()},
        "distance": round(by_features.distance, 5),
        "distance_by_chance": round(by_features.usual, 5),
        "num_training": len(features),
        **report,
        **answers,
        "most_unlike": [files[row] for row in unlike],
    }, [crops[row] for row in unlike]


def training_images(transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and colours (n, 6) of the training images, of many a sample."""
    features = load_file(artifacts.FEATURES / "train.safetensors")["crop"]
    rows = sample(np.arange(len(features)), MOST_TRAINING)
    chunks = chunks_of_crops(load_train_split(artifacts.TRAIN_SPLIT), rows, transform)
    return features[rows], np.concatenate([colours(crops) for crops in chunks])


def unit_length(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def colours(crops: np.ndarray) -> np.ndarray:
    """(n, 6) for crops uint8 (n, crop, crop, 3): each channel's mean and standard deviation."""
    return np.array([[*crop.mean(axis=(0, 1)), *crop.std(axis=(0, 1))] for crop in crops])


def read_pictures(source: Path, transform: Transform) -> tuple[list[str], np.ndarray, list[str]]:
    """Names and crops uint8 (n, crop, crop, 3) of the folder's pictures, and the files that could not be read, with the reason; of many files a sample."""
    if not source.is_dir():
        raise ValueError(f"monitor.source: {source}: no such folder; name one with recent pictures, or null")
    paths = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = sample(paths, MOST_RECENT)
    files, crops, skipped = [], [], []
    for path in tqdm(paths, desc="recent pictures", unit=" images", disable=None):
        name = path.relative_to(source).as_posix()
        try:
            crops.append(resize_center_crop(decode(path).pixels, transform.resize, transform.crop))
            files.append(name)
        except UnusableError as error:
            skipped.append(f"{name}: {error.kind}")
    return files, np.array(crops, dtype=np.uint8), skipped


def sample(values: Any, most: int) -> Any:
    """At most so many of a list's or an array's values, the same in every run."""
    if len(values) <= most:
        return values
    rows = np.sort(np.random.default_rng(0).choice(len(values), most, replace=False))
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def answers_to(crops: np.ndarray, manifest: Manifest) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """The exported model's answers: how familiar the pictures are, the share of each class; and how many answers of each class the
    held-out training images and these pictures got."""
    session = onnxruntime.InferenceSession(str(artifacts.ROOT / ON_CROPS.path), providers=["CPUExecutionProvider"])
    thresholds = json.loads(session.get_modelmeta().custom_metadata_map["thresholds"])
    name, outputs = session.get_inputs()[0].name, [PROBABILITIES, FAMILIARITY]
    blocks = [session.run(outputs, {name: crops[start : start + BATCH]}) for start in range(0, len(crops), BATCH)]
    probabilities, familiarity = (np.concatenate(part) for part in zip(*blocks, strict=True))
    held_out = read_json(artifacts.EXPORT / "export.json")["held_out_answers"]
    names = manifest.class_names
    recent = np.bincount(probabilities.argmax(axis=1), minlength=len(names))
    expected = np.array([held_out[name] for name in names])
    report = {
        "familiarity": {
            "median": round(float(np.median(familiarity)), 3),
            "unfamiliar": round(float((familiarity < thresholds["familiarity"]).mean()), 4),
            "threshold": thresholds["familiarity"],
        },
        "answers": shares(recent, names),
        "held_out": shares(expected, names) if expected.any() else {},
        "training": shares(np.bincount([entry.label for entry in manifest.train], minlength=len(names)), names),
    }
    return report, (expected, recent)


def shares(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    return {name: round(count / counts.sum(), 4) for name, count in zip(class_names, counts.tolist(), strict=True)}


def render(report: dict[str, Any], shown: Sequence[np.ndarray]) -> str:
    """HTML without a head."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = list(zip(report.get("most_unlike", []), map(data_uri, shown), strict=True))
    return environment.get_template("fragment.html.j2").render(report=report, pictures=pictures)
