"""Paths of all artifacts, relative to the project's root; folders are named after their stages."""

import json
from pathlib import Path

ROOT = Path("artifacts")
# Partial downloads, resume files, compiled kernels: outside every out, because DVC clears outs before a run.
CACHE = Path(".cache")

# download
SOURCE_DATASET = ROOT / "download" / "dataset"  # images/, source.json
SOURCE_MODEL = ROOT / "download" / "model"  # source.json, and weights.safetensors unless `synthetic`

# pretrain
PRETRAIN = ROOT / "pretrain"  # summary.json, and weights.safetensors where a source model was trained

# preprocess
TRAIN_SPLIT = ROOT / "preprocess" / "train"  # its images, sizes.npy, labels.npy
TEST_SPLIT = ROOT / "preprocess" / "test"  # images/, labels.npy (opened by evaluations alone), files.json
MANIFEST = ROOT / "preprocess" / "manifest.json"
PREPROCESS_REPORT = ROOT / "preprocess" / "report.json"

# features
FEATURES = ROOT / "features"  # train.safetensors: crop, mirror, corners; test.safetensors: crop

# inspect
INSPECTION = ROOT / "inspect"  # report.json, folds.npz, and fragment.html, which the report shows

# monitor
MONITOR = ROOT / "monitor"  # report.json, and fragment.html, which the report shows

# zero_shot
ZERO_SHOT = ROOT / "zero_shot" / "metrics.json"

# select
SELECTION = ROOT / "selection.json"  # the recipe that is exported, and why

# compare, export, check_parity, report
COMPARISON = ROOT / "comparison.json"  # beside it comparison.md and comparison.png
MODEL = ROOT / "model.onnx"
EXPORT = ROOT / "export"
PARITY = ROOT / "parity.json"  # beside it parity.md
REPORT = ROOT / "report.html"
METRICS = ROOT / "metrics.json"  # the few numbers that DVC compares
MODEL_CARD = ROOT / "MODEL_CARD.md"


def selected_recipe(named: str) -> str:
    """The recipe that is exported: what select chose where `named` (export.recipe) is `auto`, else `named`."""
    return str(json.loads(SELECTION.read_text(encoding="utf-8"))["recipe"]) if named == "auto" else named


def source_weights(weights: str) -> Path:
    """The source model's weights: trained by the pretrain stage for `synthetic`, else downloaded."""
    return (PRETRAIN if weights == "synthetic" else SOURCE_MODEL) / "weights.safetensors"


def inspected_features(size: int | None, crop: int) -> Path:
    """The training images' features by which their labels are judged: at `size` (inspect.size) pixels, where that is more than `crop`."""
    return FEATURES / (f"train-{size}.safetensors" if size and size > crop else "train.safetensors")


def train_dir(recipe: str) -> Path:
    """checkpoint.safetensors, history.csv, metrics.json, validation.npz"""
    return ROOT / "train" / recipe


def evaluate_dir(recipe: str) -> Path:
    """metrics.json, predictions.csv, confusion.csv, and the points of the curves"""
    return ROOT / "evaluate" / recipe
