"""Features are what the source network's head is given, row by row, and the mirrored ones are the mirrored images'."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2.functional import resized_crop

from stages import features
from stages.shared import artifacts, frozen_features
from stages.shared.dataset import Entry, Manifest, load_train_split, save_manifest
from stages.shared.model import build_model
from stages.shared.transforms import Transform, normalize, resize_center_crop
from tests.experiment import write_params

TRANSFORM = Transform(72, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NUM_TRAIN, NUM_TEST, SIDE = 7, 4, 80


@pytest.fixture(params=["resnet18", "squeezenet1_1"])
def source(request, tmp_path, monkeypatch) -> nn.Module:
    """A source network in a working folder that holds everything the stage reads, test labels left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(frozen_features, "choose_precision", lambda *_: torch.float32)
    monkeypatch.setattr(features, "CHUNK", 3)
    write_params(Path(), {"model.architecture": request.param, "model.weights": "synthetic"})
    write_splits()
    torch.manual_seed(0)
    model = build_model(request.param, 10, TRANSFORM.crop).eval()
    artifacts.PRETRAIN.mkdir(parents=True)
    save_file(model.state_dict(), artifacts.PRETRAIN / "weights.safetensors")
    return model


def write_splits() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, SIDE + 1, (NUM_TRAIN, 2)).astype(np.int32)
    pixels = generator.integers(0, 256, (NUM_TRAIN, SIDE, SIDE, 3), dtype=np.uint8)
    artifacts.TRAIN_SPLIT.mkdir(parents=True)
    (artifacts.TEST_SPLIT / "images").mkdir(parents=True)
    np.save(artifacts.TRAIN_SPLIT / "pixels.npy", pixels)
    np.save(artifacts.TRAIN_SPLIT / "sizes.npy", sizes)
    np.save(artifacts.TRAIN_SPLIT / "labels.npy", np.arange(NUM_TRAIN) % 2)
    crops = generator.integers(0, 256, (NUM_TEST, TRANSFORM.crop, TRANSFORM.crop, 3), dtype=np.uint8)
    np.save(artifacts.TEST_SPLIT / "images/pixels.npy", crops)
    entries = tuple(Entry(f"{row}.png", row % 2, "0" * 64) for row in range(NUM_TRAIN))
    save_manifest(artifacts.MANIFEST, Manifest(("a", "b"), "d" * 64, TRANSFORM, SIDE, SIDE, entries))


def before_the_head(model: nn.Module, crops: np.ndarray) -> np.ndarray:
    """The features as torchvision's own parts make them."""
    images = normalize(torch.from_numpy(crops).permute(0, 3, 1, 2), TRANSFORM.mean, TRANSFORM.std, torch.float32)
    with torch.no_grad():
        if hasattr(model, "fc"):
            model.fc = nn.Identity()
            return model(images).numpy()
        return model.features(images).mean((2, 3)).numpy()


def test_features_are_what_the_head_is_given_of_each_image_and_of_its_mirror(source):
    features.main()
    split = load_train_split(artifacts.TRAIN_SPLIT)
    crops = np.stack(
        [resize_center_crop(image[:h, :w], 72, 64) for image, (h, w) in zip(split.pixels, split.sizes, strict=True)]
    )
    train, test = (load_file(artifacts.FEATURES / f"{name}.safetensors") for name in ("train", "test"))
    assert train.keys() == {"crop", "mirror", "corners"}
    assert test.keys() == {"crop"}
    mirrored = np.ascontiguousarray(crops[:, :, ::-1])
    tests = np.load(artifacts.TEST_SPLIT / "images/pixels.npy")
    for found, images in ((train["crop"], crops), (train["mirror"], mirrored), (test["crop"], tests)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, before_the_head(source, images), rtol=1e-3, atol=1e-4)


def test_corners_are_three_quarters_of_each_side_and_two_of_them_mirrored(source):
    features.main()
    split, corners = (
        load_train_split(artifacts.TRAIN_SPLIT),
        load_file(artifacts.FEATURES / "train.safetensors")["corners"],
    )
    for found, bottom, right, mirrored in zip(
        corners, (0, 0, 1, 1), (0, 1, 0, 1), (False, True, True, False), strict=True
    ):
        crops = []
        for image, (height, width) in zip(split.pixels, split.sizes.tolist(), strict=True):
            high, wide = -(-3 * height // 4), -(-3 * width // 4)
            top, left = bottom * (height - high), right * (width - wide)
            crop = resized_crop(torch.tensor(image).permute(2, 0, 1), top, left, high, wide, [64, 64], antialias=True)
            crops.append((crop.flip(2) if mirrored else crop).permute(1, 2, 0).numpy())
        np.testing.assert_allclose(found, before_the_head(source, np.stack(crops)), rtol=1e-3, atol=1e-4)


def test_of_many_images_no_corners_are_computed(source, monkeypatch):
    monkeypatch.setattr(features, "FEW", NUM_TRAIN - 1)
    features.main()
    assert load_file(artifacts.FEATURES / "train.safetensors").keys() == {"crop", "mirror"}


def test_labels_are_judged_at_a_size_of_their_own_by_the_same_part_of_each_image(source):
    params = YAML(typ="safe").load(Path("params.yaml"))
    params["inspect"]["size"] = 96
    YAML().dump(params, Path("params.yaml"))
    features.main()
    split = load_train_split(artifacts.TRAIN_SPLIT)
    crops = np.stack(
        [resize_center_crop(image[:h, :w], 108, 96) for image, (h, w) in zip(split.pixels, split.sizes, strict=True)]
    )
    judged = load_file(artifacts.inspected_features(96, TRANSFORM.crop))
    assert judged["crop"].shape == judged["mirror"].shape
    np.testing.assert_allclose(judged["crop"], before_the_head(source, crops), rtol=1e-3, atol=1e-4)


def test_a_network_that_makes_no_number_of_an_image_is_refused(source, monkeypatch):
    monkeypatch.setattr(frozen_features, "flatten", lambda values: torch.full((len(values), 4), torch.nan))
    with pytest.raises(ValueError, match=r"train\.safetensors: NaN or infinite features for 42 views"):
        features.main()
