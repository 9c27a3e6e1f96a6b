"""Compare ways to tell unfamiliar pictures from familiar ones, and time the shipped one.

    python -m benchmarks.familiarity PHOTOS WEIGHTS ARCHITECTURE --near OTHER [OTHER …]

PHOTOS and OTHER are folders with train/ and test/ folders of classes, WEIGHTS a state_dict of ARCHITECTURE (torchvision).
Features are the frozen network's, as a probe or an early layer's fine-tuning leaves them. Far pictures are drawn here:
noise, coloured blobs, text. Prints Markdown.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from PIL import Image, ImageDraw
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from stages.check_parity.familiarity import last_features
from stages.export.familiarity import familiarity_graph, fit_gaussians, held_out_scores, unit_length
from stages.shared.shipped_files import FEATURES
from stages.shared.transforms import Transform, network_input, resize_center_crop

IMAGENET = Transform(128, 112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NEIGHBOURS = 5
Score = Callable[[np.ndarray], np.ndarray]  # features (n, d) -> how familiar (n,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("architecture")
    parser.add_argument("--near", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    state = torch.load(options.weights, weights_only=True)
    num_classes = next(reversed(state.values())).shape[0]
    network = torchvision.models.get_model(options.architecture, num_classes=num_classes).eval()
    network.load_state_dict(state)

    def features(images: list[np.ndarray]) -> np.ndarray:
        crops = [resize_center_crop(image, IMAGENET.resize, IMAGENET.crop) for image in images]
        return last_features(network, network_input(np.stack(crops), IMAGENET))

    photos, labels = read_split(options.photos / "train")
    known, train = features(read_split(options.photos / "test")[0]), features(photos)
    others = {"noise": features(draw_noise()), "blobs": features(draw_blobs()), "text": features(draw_text())}
    others |= {near.name: features(read_split(near / "test")[0]) for near in options.near}
    print(f"| way | {' | '.join(others)} |\n| --- |{' --- |' * len(others)}")
    for way, score in ways(train, labels).items():
        areas = " | ".join(f"{area_under_roc(score, known, other):.3f}" for other in others.values())
        print(f"| {way} | {areas} |", flush=True)
    print(f"\nThe shipped graph takes {milliseconds(train, labels):.3f} ms an image on one thread.")


def ways(train: np.ndarray, labels: np.ndarray) -> Mapping[str, Score]:
    """Each way's score by the training images' features (n, d) and labels (n,)."""
    head = LogisticRegression(C=10, max_iter=1000).fit(unit_length(train), labels)

    def logits(features: np.ndarray) -> np.ndarray:
        found = head.decision_function(unit_length(features))
        return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found

    raw = fit_raw_gaussians(train, labels)
    gaussians, unit = fit_gaussians(train, labels), unit_length(train)
    return {
        "largest softmax": lambda features: softmax(logits(features), axis=1).max(axis=1),
        "energy (log-sum-exp of the logits)": lambda features: logsumexp(logits(features), axis=1),
        "Mahalanobis, raw features": raw,
        "Mahalanobis, unit length (shipped)": gaussians.scores,
        f"{NEIGHBOURS}th nearest neighbour, unit length": lambda features: np.sort(
            unit_length(features) @ unit.T, axis=1
        )[:, -NEIGHBOURS],
    }


def fit_raw_gaussians(train: np.ndarray, labels: np.ndarray) -> Score:
    means = np.stack([train[labels == label].mean(axis=0) for label in np.unique(labels)])
    rest = train - means[labels]
    covariance = rest.T @ rest / len(rest)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T

    def score(features: np.ndarray) -> np.ndarray:
        return -(((features @ whitening)[:, None] - means @ whitening) ** 2).sum(axis=2).min(axis=1)

    return score


def area_under_roc(score: Score, known: np.ndarray, other: np.ndarray) -> float:
    truth = np.r_[np.ones(len(known)), np.zeros(len(other))]
    return float(roc_auc_score(truth, np.r_[score(known), score(other)]))


def milliseconds(train: np.ndarray, labels: np.ndarray, runs: int = 200) -> float:
    """Median time of the familiarity graph alone, for one image, on one thread."""
    scores = held_out_scores(train, labels, np.arange(len(train)) % 5)
    graph = familiarity_graph(fit_gaussians(train, labels), scores, 18)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    one, seconds = train[:1].astype(np.float32), []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, {FEATURES: one})
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def read_split(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """The photos below class folders, uint8 (height, width, 3) each, and their labels (n,)."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    names = sorted({path.parent.name for path in paths})
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return images, np.array([names.index(path.parent.name) for path in paths])


def draw_noise(count: int = 50) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8))


def draw_blobs(count: int = 50) -> list[np.ndarray]:
    coarse = np.random.default_rng(1).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(blobs).resize((96, 96), Image.Resampling.BICUBIC)) for blobs in coarse]


def draw_text(count: int = 50) -> list[np.ndarray]:
    generator, pages = np.random.default_rng(2), []
    for _ in range(count):
        page = Image.new("RGB", (160, 160), "white")
        for top in range(5, 155, 14):
            letters = generator.choice(list("abcdefghijklmnopqrstuvwxyz    "), 26)
            ImageDraw.Draw(page).text((6, top), "".join(letters), fill="black")
        pages.append(np.asarray(page))
    return pages


if __name__ == "__main__":
    main()
