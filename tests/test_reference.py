"""What the network makes of the test split in float64: logits, and what its second output is computed from."""

import numpy as np
import pytest
import torch

from stages.shared.model import Mirrored, build_model
from stages.shared.reference import compute_reference
from stages.shared.transforms import Transform

TRANSFORM = Transform(36, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CROPS = np.random.default_rng(0).integers(0, 256, (35, 32, 32, 3), dtype=np.uint8)  # more than a batch


def test_the_features_are_what_the_last_layer_takes_image_by_image() -> None:
    model = build_model("shufflenet_v2_x0_5", 3, 32).eval()
    reference = compute_reference(model, CROPS, TRANSFORM)
    assert {values.dtype for values in (reference.float64, reference.features, reference.contrasts)} == {
        np.dtype(float)
    }
    weight, bias = (parameter.detach().double().numpy() for parameter in model.fc.parameters())
    np.testing.assert_allclose(reference.float64, reference.features @ weight.T + bias, atol=1e-12)
    np.testing.assert_allclose(reference.float32, reference.float64, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(reference.contrasts, axis=1), np.sqrt(2))  # two maps, each of length 1
    assert next(model.parameters()).dtype == torch.float32  # the model itself stays


@pytest.mark.parametrize("architecture", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_a_mirrored_network_is_described_by_the_image_itself(architecture: str) -> None:
    network = build_model(architecture, 3, 32).eval()
    plain, mirrored = (compute_reference(model, CROPS[:3], TRANSFORM) for model in (network, Mirrored(network)))
    assert plain.features.shape[0] == plain.contrasts.shape[0] == 3
    np.testing.assert_array_equal(mirrored.features, plain.features)
    np.testing.assert_array_equal(mirrored.contrasts, plain.contrasts)
    assert not np.allclose(mirrored.float64, plain.float64)
