"""Score how familiar a picture is: its rank among held-out training images.

A Gaussian around each class, with one covariance, over the network's last features scaled to unit length (Müller and Hein,
Mahalanobis++, 2025): a picture's score is its distance from the nearest class. Training images are scored by Gaussians
fitted without their fold, and their scores are the scale that a new picture's is ranked on.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper
from scipy import linalg

from stages.shared.shipped_files import FAMILIARITY, FEATURES, UNIT_FEATURES

SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
MAX_SCORES = 1000  # held-out scores kept in the file

GRAPH = """
<ir_version: 8, opset_import: ["": {opset}]>
familiarity (float[batch, {num_features}] {features}) => (float[batch] {familiarity})
<
  float tiny = {{1e-12}}, float none = {{0}}, float all = {{1}}, int64[1] flat = {{-1}},
  int64[1] axis_1 = {{1}}, int64[1] axis_2 = {{2}}
>
{{
  {features}_squared = Mul ({features}, {features})
  squared_length = ReduceSum <keepdims = 1> ({features}_squared, axis_1)
  length = Sqrt (squared_length)
  length_above_zero = Max (length, tiny)
  {unit_features} = Div ({features}, length_above_zero)
  whitened = MatMul ({unit_features}, whitening)
  whitened_row = Unsqueeze (whitened, axis_1)
  from_classes = Sub (whitened_row, class_means)
  from_classes_squared = Mul (from_classes, from_classes)
  distances = ReduceSum <keepdims = 0> (from_classes_squared, axis_2)
  class_scores = Neg (distances)
  class_scores_row = Unsqueeze (class_scores, axis_1)
  score = GlobalMaxPool (class_scores_row)
  above = Sub (score, held_out_scores)
  shares = Mul (above, one_by_gaps)
  shares_of_gaps = Clip (shares, none, all)
  rank = GlobalAveragePool (shares_of_gaps)
  {familiarity} = Reshape (rank, flat)
}}
"""


@dataclass(frozen=True)
class Gaussians:
    """Class-wise Gaussians of one covariance, in coordinates where it is the identity."""

    whitening: np.ndarray  # (features, features) float64
    means: np.ndarray  # (classes, features): whitened

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(n,): minus the squared distance from the nearest class; larger is more familiar."""
        whitened = unit_length(features) @ self.whitening
        distances = ((whitened[:, None] - self.means[None]) ** 2).sum(axis=2)
        return np.asarray(-distances.min(axis=1))


def fit_gaussians(features: np.ndarray, labels: np.ndarray) -> Gaussians:
    """Of features (n, d), every class that `labels` (n,) has."""
    unit = unit_length(features)
    means = np.stack([unit[labels == label].mean(axis=0) for label in np.unique(labels)])
    rest = unit - means[np.unique(labels, return_inverse=True)[1]]
    covariance = rest.T @ rest / len(rest)
    spread = np.trace(covariance) / len(covariance) or 1.0
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * np.eye(len(covariance))
    factor = linalg.cholesky(covariance, lower=True)
    whitening = linalg.solve_triangular(factor, np.eye(len(factor)), lower=True).T
    return Gaussians(whitening, means @ whitening)


def held_out_scores(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Scores of the training images, each by Gaussians fitted without its fold; rows of fold -1 are left out."""
    scores = []
    for fold in np.unique(folds[folds >= 0]):
        inside = folds == fold
        others = (folds >= 0) & ~inside
        scores.append(fit_gaussians(features[others], labels[others]).scores(features[inside]))
    return np.sort(np.concatenate(scores))


def unit_length(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def familiarity_graph(gaussians: Gaussians, scores: np.ndarray, opset: int) -> ModelProto:
    """float32 features (batch, d) -> familiarity (batch,), its parameters tensors of the graph."""
    knots = np.quantile(scores, np.linspace(0, 1, min(len(scores), MAX_SCORES)))
    gaps = np.maximum(np.diff(knots), 1e-6 * max(1.0, np.abs(knots).max()))
    model = onnx.parser.parse_model(
        GRAPH.format(
            opset=opset,
            num_features=len(gaussians.whitening),
            features=FEATURES,
            unit_features=UNIT_FEATURES,
            familiarity=FAMILIARITY,
        )
    )
    for name, value in (
        ("whitening", gaussians.whitening),
        ("class_means", gaussians.means[None]),
        ("held_out_scores", knots[None, None, :-1]),
        ("one_by_gaps", 1 / gaps[None, None]),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def rank(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Familiarity (n,) of scores (n,), as the graph has it: the share of held-out scores below, linear between two of them."""
    return np.interp(scores, held_out, np.linspace(0, 1, len(held_out)))
