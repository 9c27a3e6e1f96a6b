"""The outputs beside the probabilities: how familiar a picture is, and where the network looked."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from stages.check_parity.familiarity import familiarity
from stages.check_parity.placement import misplaced
from stages.export.deploy import chain
from stages.export.familiarity import familiarity_graph, fit_gaussians, held_out_scores, rank
from stages.export.heatmap import heatmap_graph
from stages.shared.shipped_files import FEATURES, HEATMAP, LOGITS, NORMALIZED

NUM, SIZE = 90, 12


def drawn_features(seed: int = 0, num: int = NUM, apart: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Features (num, SIZE) of two classes, of any length, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    directions = generator.normal(size=(num, SIZE)) + apart * np.eye(SIZE)[labels]
    return (directions * generator.uniform(0.1, 9, (num, 1))).astype(np.float32), labels


def learnt(num_folds: int = 5) -> tuple[ModelProto, np.ndarray]:
    features, labels = drawn_features()
    held_out = held_out_scores(features, labels, np.arange(NUM) // 2 % num_folds)
    return familiarity_graph(fit_gaussians(features, labels), held_out, 18), held_out


def run(model: ModelProto, name: str, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: values})[0]


def test_the_graph_computes_what_numpy_does_and_parity_recomputes() -> None:
    graph, held_out = learnt()
    new, _ = drawn_features(seed=1)
    features, labels = drawn_features()
    found = run(graph, FEATURES, new)
    assert found.shape == (NUM,)
    np.testing.assert_allclose(found, rank(fit_gaussians(features, labels).scores(new), held_out), atol=1e-4)
    np.testing.assert_allclose(found, familiarity(graph, new.astype(np.float64)), atol=1e-4)
    assert misplaced(graph) == []
    onnx.checker.check_model(graph, full_check=True)


def test_new_pictures_of_the_same_kind_are_spread_over_all_ranks_and_others_rank_low() -> None:
    graph, _ = learnt()
    same, _ = drawn_features(seed=2, num=2000)
    other = np.random.default_rng(3).normal(size=(500, SIZE)).astype(np.float32) + 3 * np.eye(SIZE, dtype=np.float32)[5]
    ranks = run(graph, FEATURES, same)
    assert 0.35 < ranks.mean() < 0.65
    assert (ranks < 0.1).mean() < 0.25
    assert run(graph, FEATURES, other).mean() < 0.1


def test_scores_are_held_out_and_rows_that_were_taken_out_have_none() -> None:
    features, labels = drawn_features()
    folds = np.arange(NUM) // 2 % 5
    folds[:10] = -1
    assert len(held_out_scores(features, labels, folds)) == NUM - 10
    inside = np.sort(fit_gaussians(features, labels).scores(features))
    assert held_out_scores(features, labels, np.arange(NUM) // 2 % 5).mean() < inside.mean()


def test_a_picture_without_features_and_one_training_image_are_no_division_by_zero() -> None:
    graph, _ = learnt()
    assert np.isfinite(run(graph, FEATURES, np.zeros((1, SIZE), np.float32))).all()
    few = np.ones((4, SIZE), np.float32)
    held_out = held_out_scores(few, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    graph = familiarity_graph(fit_gaussians(few, np.array([0, 1, 0, 1])), held_out, 18)
    assert np.isfinite(run(graph, FEATURES, few)).all()


def pooled_network(pooling: str = "GlobalAveragePool") -> ModelProto:
    """A convolution, global pooling and a linear layer: 3 x 6 x 6 images, 4 maps of 4 x 4, 2 classes."""
    generator = np.random.default_rng(0)
    shapes = {"kernel": (4, 3, 3, 3), "head": (2, 4), "bias": (2,)}
    tensors = [numpy_helper.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", [NORMALIZED, "kernel"], ["maps"]),
        helper.make_node(pooling, ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [FEATURES]),
        helper.make_node("Gemm", [FEATURES, "head", "bias"], [LOGITS], transB=1),
    ]
    image = helper.make_tensor_value_info(NORMALIZED, TensorProto.FLOAT, ["batch", 3, 6, 6])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in ((LOGITS, 2), (FEATURES, 4))
    ]
    graph = helper.make_graph(nodes, "core", [image], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_heatmap_is_the_share_that_each_position_has_in_the_logit() -> None:
    core = pooled_network()
    whole = chain([core, heatmap_graph(core, 18)], [HEATMAP, LOGITS])
    images = np.random.default_rng(1).normal(size=(5, 3, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    found, logits = session.run(None, {NORMALIZED: images})
    (maps,) = onnxruntime.InferenceSession(
        chain([core, maps_of(core)], ["maps"]).SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {NORMALIZED: images})
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in core.graph.initializer}
    for image in range(5):
        winner = logits[image].argmax()
        evidence = np.tensordot(constants["head"][winner], maps[image], 1)
        np.testing.assert_allclose(evidence.mean() + constants["bias"][winner], logits[image, winner], rtol=1e-4)
        np.testing.assert_allclose(found[image], np.maximum(evidence, 0), rtol=1e-4, atol=1e-6)
    assert misplaced(whole) == []


def maps_of(core: ModelProto) -> ModelProto:
    """No nodes, but the name and shape of the maps as an output."""
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 4, 4, 4])
    return helper.make_model(helper.make_graph([], "maps", [], [maps]), opset_imports=core.opset_import, ir_version=8)


def test_network_without_average_pooling_has_no_heatmap() -> None:
    core = pooled_network("GlobalMaxPool")
    with pytest.raises(ValueError, match=r"export\.heatmap: this network does not end in global average pooling"):
        heatmap_graph(core, 18)
