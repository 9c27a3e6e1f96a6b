"""Score how familiar a picture is: its rank among held-out training images.

A Gaussian around each class, with one covariance for all, over two descriptions: the network's last features scaled to unit length
(Müller and Hein, Mahalanobis++, 2025), which tell other things from ours, and the contrasts of its early maps, which tell noise,
drawings and text from photos. A picture's score is its distance from the nearest class, the sum over both. Training images are
scored by Gaussians fitted without their fold, and their scores are the scale that a new picture's is ranked on.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper
from scipy import linalg
from scipy.spatial import distance

from stages.shared.shipped_files import CONTRASTS, FAMILIARITY, FEATURES, UNIT_FEATURES

SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
MAX_SCORES = 1000  # held-out scores kept in the file

GRAPH = """
<ir_version: 8, opset_import: ["": {opset}]>
familiarity (float[batch, {num_features}] {features}, float[batch, {num_contrasts}] {contrasts}) => (float[batch] {familiarity})
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
  whitened_features = MatMul ({unit_features}, whitening_of_features)
  whitened_contrasts = MatMul ({contrasts}, whitening_of_contrasts)
  whitened = Concat <axis = 1> (whitened_features, whitened_contrasts)
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
    """Class-wise Gaussians of one covariance, in coordinates where it is a multiple of the identity."""

    whitening: np.ndarray  # (d, d) float64
    means: np.ndarray  # (classes, d): whitened

    def distances(self, points: np.ndarray) -> np.ndarray:
        """(n, classes): squared, of points (n, d)."""
        return np.asarray(distance.cdist(points @ self.whitening, self.means, "sqeuclidean"))

    def scaled(self, factor: float) -> "Gaussians":
        """The same with distances `factor` times as large."""
        return Gaussians(self.whitening * factor**0.5, self.means * factor**0.5)


@dataclass(frozen=True)
class Familiarity:
    features: Gaussians  # of the last features, scaled to unit length
    contrasts: Gaussians
    held_out: np.ndarray  # the training images' scores, in order

    def scores(self, features: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
        """(n,): minus the squared distance from the nearest class; larger is more familiar."""
        distances = self.features.distances(unit_length(features)) + self.contrasts.distances(contrasts)
        return np.asarray(-distances.min(axis=1))


def fit_familiarity(features: np.ndarray, contrasts: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Familiarity:
    """Of training images' features (n, d) and contrasts (n, e); rows of fold -1 are left out. Both descriptions count alike."""
    kept, parts, total = folds >= 0, [], np.zeros(1)
    for points in (unit_length(features), contrasts.astype(np.float64)):
        distances = held_out_distances(points, labels, folds)
        factor = 1 / max(float(np.median(distances.min(axis=1))), 1e-12)
        parts.append(fit_gaussians(points[kept], labels[kept]).scaled(factor))
        total = total + factor * distances
    by_features, by_contrasts = parts
    return Familiarity(by_features, by_contrasts, np.sort(-total.min(axis=1)))


def fit_gaussians(points: np.ndarray, labels: np.ndarray) -> Gaussians:
    """Of points (n, d), every class that `labels` (n,) has."""
    means = np.stack([points[labels == label].mean(axis=0) for label in np.unique(labels)])
    rest = points - means[np.unique(labels, return_inverse=True)[1]]
    covariance = rest.T @ rest / len(rest)
    spread = np.trace(covariance) / len(covariance) or 1.0
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * np.eye(len(covariance))
    factor = linalg.cholesky(covariance, lower=True)
    whitening = linalg.solve_triangular(factor, np.eye(len(factor)), lower=True).T
    return Gaussians(whitening, means @ whitening)


def held_out_distances(points: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(m, classes): of the rows that have a fold, by Gaussians fitted without it; infinite to a class that is only in it."""
    found = np.full((len(points), int(labels.max()) + 1), np.inf)
    for fold in np.unique(folds[folds >= 0]):
        inside = folds == fold
        others = (folds >= 0) & ~inside
        gaussians = fit_gaussians(points[others], labels[others])
        found[np.ix_(inside, np.unique(labels[others]))] = gaussians.distances(points[inside])
    return found[folds >= 0]


def unit_length(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def familiarity_graph(familiarity: Familiarity, opset: int) -> ModelProto:
    """float32 features (batch, d) and contrasts (batch, e) -> familiarity (batch,), its parameters tensors of the graph."""
    by_features, by_contrasts, scores = familiarity.features, familiarity.contrasts, familiarity.held_out
    knots = np.quantile(scores, np.linspace(0, 1, min(len(scores), MAX_SCORES)))
    gaps = np.maximum(np.diff(knots), 1e-6 * max(1.0, np.abs(knots).max()))
    model = onnx.parser.parse_model(
        GRAPH.format(
            opset=opset,
            num_features=len(by_features.whitening),
            num_contrasts=len(by_contrasts.whitening),
            features=FEATURES,
            contrasts=CONTRASTS,
            unit_features=UNIT_FEATURES,
            familiarity=FAMILIARITY,
        )
    )
    for name, value in (
        ("whitening_of_features", by_features.whitening),
        ("whitening_of_contrasts", by_contrasts.whitening),
        ("class_means", np.concatenate([by_features.means, by_contrasts.means], axis=1)[None]),
        ("held_out_scores", knots[None, None, :-1]),
        ("one_by_gaps", 1 / gaps[None, None]),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def rank(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Familiarity (n,) of scores (n,), as the graph has it: the share of held-out scores below, linear between two of them."""
    return np.interp(scores, held_out, np.linspace(0, 1, len(held_out)))
