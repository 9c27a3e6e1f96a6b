"""The outputs beside the probabilities: how familiar a picture is, and where the network looked."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from stages.check_parity.familiarity import familiarity
from stages.check_parity.placement import misplaced
from stages.export.deploy import chain
from stages.export.familiarity import Familiarity, familiarity_graph, fit_familiarity, rank
from stages.export.heatmap import heatmap_graph
from stages.shared.contrasts import WithContrasts
from stages.shared.contrasts import contrasts as contrasts_of
from stages.shared.model import build_model
from stages.shared.shipped_files import CONTRASTS, FEATURES, HEATMAP, LOGITS, NORMALIZED

NUM, SIZE, NUM_CONTRASTS = 90, 12, 5
FOLDS = np.arange(NUM) // 2 % 5


def drawn(
    seed: int = 0, num: int = NUM, apart: float = 4.0, rough: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (num, SIZE) of two classes, of any length; contrasts (num, NUM_CONTRASTS), the first `rough`; and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    directions = generator.normal(size=(num, SIZE)) + apart * np.eye(SIZE)[labels]
    contrasts = generator.normal(1, 0.1, (num, NUM_CONTRASTS)) * np.r_[rough, np.ones(NUM_CONTRASTS - 1)]
    features = directions * generator.uniform(0.1, 9, (num, 1))
    return features.astype(np.float32), contrasts.astype(np.float32), labels


def learnt() -> tuple[ModelProto, Familiarity]:
    features, contrasts, labels = drawn()
    familiarity = fit_familiarity(features, contrasts, labels, FOLDS)
    return familiarity_graph(familiarity, 18), familiarity


def run(model: ModelProto, features: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {FEATURES: features, CONTRASTS: contrasts})[0]


def test_the_graph_computes_what_numpy_does_and_parity_recomputes() -> None:
    graph, learnt_familiarity = learnt()
    features, contrasts, _ = drawn(seed=1)
    found = run(graph, features, contrasts)
    assert found.shape == (NUM,)
    expected = rank(learnt_familiarity.scores(features, contrasts), learnt_familiarity.held_out)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found, familiarity(graph, features.astype(np.float64), contrasts), atol=1e-4)
    assert misplaced(graph) == []
    onnx.checker.check_model(graph, full_check=True)


def test_new_pictures_of_the_same_kind_are_spread_over_all_ranks_and_others_rank_low() -> None:
    graph, _ = learnt()
    features, contrasts, _ = drawn(seed=2, num=2000)
    ranks = run(graph, features, contrasts)
    assert 0.35 < ranks.mean() < 0.65
    assert (ranks < 0.1).mean() < 0.25
    other = (
        np.random.default_rng(3).normal(size=(2000, SIZE)).astype(np.float32) + 3 * np.eye(SIZE, dtype=np.float32)[5]
    )
    assert run(graph, other, contrasts).mean() < 0.1, "another thing"
    assert run(graph, features, drawn(num=2000, rough=3)[1]).mean() < 0.1, "another texture"


def test_scores_are_held_out_and_rows_that_were_taken_out_have_none() -> None:
    features, contrasts, labels = drawn()
    some = np.where(np.arange(NUM) < 10, -1, FOLDS)
    assert len(fit_familiarity(features, contrasts, labels, some).held_out) == NUM - 10
    familiarity = fit_familiarity(features, contrasts, labels, FOLDS)
    assert familiarity.held_out.mean() < familiarity.scores(features, contrasts).mean()


def test_a_picture_without_features_and_one_training_image_are_no_division_by_zero() -> None:
    graph, _ = learnt()
    assert np.isfinite(run(graph, np.zeros((1, SIZE), np.float32), np.zeros((1, NUM_CONTRASTS), np.float32))).all()
    few, labels = np.ones((4, SIZE), np.float32), np.array([0, 1, 0, 1])
    graph = familiarity_graph(fit_familiarity(few, few, labels, np.array([0, 0, 1, 1])), 18)
    assert np.isfinite(run(graph, few, few)).all()


def test_a_class_that_is_in_one_fold_alone_leaves_scores_finite() -> None:
    features, contrasts, labels = drawn()
    labels[FOLDS == 0] = 2
    assert np.isfinite(fit_familiarity(features, contrasts, labels, FOLDS).held_out).all()


def test_contrasts_tell_smooth_pictures_from_rough_ones_and_are_of_the_early_maps() -> None:
    torch.manual_seed(0)
    model = WithContrasts(build_model("resnet18", 2, 64)).eval()
    rough = torch.randn(2, 3, 64, 64)
    smooth = torch.nn.functional.avg_pool2d(rough, 9, stride=1, padding=4)
    with torch.inference_mode():
        logits, by_roughness = model(torch.cat([rough, smooth]))
        np.testing.assert_array_equal(logits[:2], model.model(rough))
    assert by_roughness.shape == (4, 64 + 64 + 128)  # of maps of 32, 16 and 8 px; those of 4 and 2 px are left out
    alike, unlike = (by_roughness[0] - by_roughness[1]).norm(), (by_roughness[0] - by_roughness[2]).norm()
    assert unlike > 2 * alike
    assert not any(module._forward_hooks for module in model.modules())


def test_maps_of_more_than_a_quarter_of_the_image_are_described_by_means_of_four_pixels() -> None:
    torch.manual_seed(0)
    network = build_model("resnet18", 2, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        largest = network.relu(network.bn1(network.conv1(images)))  # of 32 px
        second = network.layer1(network.maxpool(largest))  # of 16
        _, found = WithContrasts(network)(images)
    torch.testing.assert_close(found[:, -64:], contrasts_of(torch.nn.functional.avg_pool2d(largest, 2)))
    torch.testing.assert_close(found[:, -128:-64], contrasts_of(second))


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
