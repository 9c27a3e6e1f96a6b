"""A checkpoint rebuilds its model, byte for byte, and says by name what is wrong with it."""

import hashlib
import json
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stages.shared.checkpoint import Facts, digest, load_checkpoint, save_checkpoint
from stages.shared.model import build_model
from stages.shared.transforms import Transform

FACTS = Facts(
    "squeezenet1_1", ("a", "b", "c"), Transform(72, 64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)), "finetune", 0, None, "d" * 64
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build_model("squeezenet1_1", 3, 64)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, FACTS)
    return path, model


def test_a_checkpoint_rebuilds_the_model_and_its_facts(saved):
    path, model = saved
    loaded, facts = load_checkpoint(path)
    assert facts == FACTS
    assert digest(loaded) == digest(model)
    assert not loaded.training


def test_a_mirrored_model_answers_an_image_and_its_mirror_image_alike(saved, tmp_path):
    _, model = saved
    save_checkpoint(tmp_path / "mirrored", model, replace(FACTS, mirror=True))
    loaded, facts = load_checkpoint(tmp_path / "mirrored")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain, mirrored = model.eval()(images), model(images.flip(3))
        assert facts.mirror
        assert not torch.allclose(plain, mirrored, rtol=1e-3)
        assert torch.allclose(loaded(images), (plain + mirrored) / 2, rtol=1e-5, atol=1e-6)
        assert torch.allclose(loaded(images), loaded(images.flip(3)), rtol=1e-5, atol=1e-6)


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    path, model = saved
    save_checkpoint(tmp_path / "again", model, FACTS)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_digest_changes_with_any_weight(saved):
    _, model = saved
    before = digest(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert digest(model) != before


def test_digest_is_sha256_over_sorted_names_types_shapes_and_bytes():
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
        layer.bias.fill_(0.5)
    content = b"bias torch.float32 (1,)\n" + struct.pack("<f", 0.5)
    content += b"weight torch.float32 (1, 2)\n" + struct.pack("<2f", 1.0, -2.0)
    assert digest(layer) == hashlib.sha256(content).hexdigest()


def test_digest_does_not_see_the_order_in_which_modules_were_made():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    one, other = nn.Module(), nn.Module()
    one.a, one.b = first, second
    other.b, other.a = second, first
    assert digest(one) == digest(other)


def test_digest_tells_swapped_layers_apart():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    one, other = nn.Module(), nn.Module()
    one.a, one.b = first, second
    other.a, other.b = second, first
    assert digest(one) != digest(other)


def test_facts_are_written_by_name_in_alphabetical_order(saved):
    """The bytes of a checkpoint do not depend on the order in which the code lists the facts."""
    written = _facts_metadata(saved[0])
    assert list(written) == ["facts"]
    facts = json.loads(written["facts"])
    assert list(facts) == sorted(asdict(FACTS))
    assert (facts["transform"]["mean"], facts["source_digest"]) == ([0.5, 0.4, 0.3], None)


def test_every_tensor_is_kept_as_it_is(saved):
    path, model = saved
    kept = load_file(path)
    assert kept.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert kept[name].dtype == value.dtype
        assert torch.equal(kept[name], value)


def test_a_model_in_another_memory_layout_is_saved_alike(saved, tmp_path):
    """Convolutions trained channels last."""
    path, model = saved
    save_checkpoint(tmp_path / "again", model.to(memory_format=torch.channels_last), FACTS)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_loaded_facts_hold_tuples_and_the_model_the_size_they_say(saved):
    model, facts = load_checkpoint(saved[0])
    assert (type(facts.class_names), type(facts.transform.mean), type(facts.transform.std)) == (tuple, tuple, tuple)
    assert model(torch.zeros(1, 3, facts.transform.crop, facts.transform.crop)).shape == (1, 3)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_models_own_input_size_is_the_crop(tmp_path):
    """A vision transformer's position embeddings depend on it: 48 pixels are 9 patches and the class token."""
    facts = replace(FACTS, architecture="vit_b_16", transform=replace(FACTS.transform, resize=56, crop=48))
    with torch.device("meta"):
        names = build_model("vit_b_16", 3, 48).state_dict()
    path = tmp_path / "checkpoint.safetensors"
    shape = names["encoder.pos_embedding"].shape
    assert shape == (1, 10, 768)
    save_file({"encoder.pos_embedding": torch.zeros(shape)}, path, metadata={"facts": json.dumps(asdict(facts))})
    with pytest.raises(ValueError, match="Missing key") as error:
        load_checkpoint(path)
    assert "size mismatch" not in str(error.value)


def test_a_missing_checkpoint_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="no such checkpoint; run the train stage"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a checkpoint of this pipeline"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(saved):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a checkpoint of this pipeline"):
        load_checkpoint(path)


def test_weights_without_facts_are_refused(saved, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(saved[0]), bare)
    with pytest.raises(ValueError, match=r"not a checkpoint of this pipeline \('facts'\)"):
        load_checkpoint(bare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.0.weight"), "features.0.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra"),
        (lambda state: state.update({"features.0.bias": torch.zeros(3)}), "features.0.bias"),
        (lambda state: state["features.0.bias"].fill_(float("inf")), "features.0.bias has values that are not finite"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(saved, change, message):
    path, model = saved
    state = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    save_file(state, path, metadata=_facts_metadata(path))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)


def test_a_checkpoint_of_another_class_count_is_refused(saved):
    path, model = saved
    save_checkpoint(path, model, replace(FACTS, class_names=("a", "b")))
    with pytest.raises(ValueError, match=r"classifier\.1"):
        load_checkpoint(path)


def _facts_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()
