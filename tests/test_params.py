"""params.yaml is read into one typed object; whatever is wrong is said by key before any work starts."""

import copy
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml as load_as_dvc
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.shared.params import Params, load_params

DEFAULT = Path(__file__).parents[1] / "params.yaml"
VALUES = YAML(typ="safe", pure=True).load(DEFAULT)


def changed(key: str, value: object) -> dict:
    """The default experiment with one value put at a dotted key."""
    values = copy.deepcopy(VALUES)
    *sections, last = key.split(".")
    target = values
    for section in sections:
        target = target[section]
    target[last] = value
    return values


def load(tmp_path: Path, values: object) -> Params:
    path = tmp_path / "params.yaml"
    YAML(typ="safe", pure=True).dump(values, path)
    return load_params(path)


def leaves(values: dict, prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in values.items()
        for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"])
    ]


def test_the_default_experiment_is_the_books():
    params = load_params(DEFAULT)
    finetune, scratch = params.train["finetune"], params.train["scratch"]
    assert (finetune.init, finetune.lr, finetune.head_lr_multiplier) == ("pretrained", 0.00005, 10)
    assert (scratch.init, scratch.lr, scratch.head_lr_multiplier) == ("random", 0.0005, 1)
    for recipe in (finetune, scratch):
        assert (recipe.batch_size, recipe.epochs, recipe.weight_decay, recipe.momentum) == (128, 5, 0.001, 0)
    assert (params.preprocess.resize, params.preprocess.crop) == (256, 224)
    assert params.dataset.source.endswith("/hotdog.zip#sha1=fba480ffa8aa7e0febbb511d181409f899b9baa5")


def test_dvc_reads_every_value_as_the_typed_params_do():
    dvc = load_as_dvc(str(DEFAULT))
    assert dvc == VALUES
    parsed = load_params(DEFAULT).model_dump(mode="json")
    for key in leaves(dvc):
        ours, theirs = parsed, dvc
        for part in key.split("."):
            ours, theirs = ours[part], theirs[part]
        assert ours == theirs, key


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.architecture",
            "resnet19",
            "model.architecture: unknown architecture 'resnet19'; allowed are alexnet, .*resnet18, ",
        ),
        ("train.finetune.lr", 0, "train.finetune.lr: Input should be greater than 0 .found 0"),
        ("train.finetune.lr", -0.1, "train.finetune.lr: Input should be greater than 0"),
        ("train.finetune.lr", float("inf"), "train.finetune.lr: Input should be .*finite|less than"),
        ("train.finetune.lr", float("nan"), "train.finetune.lr: Input should be"),
        ("train.finetune.lr", "1e-3", "train.finetune.lr: Input should be a valid number .found '1e-3'"),
        ("train.finetune.epochs", 2.5, "train.finetune.epochs: Input should be a valid integer"),
        ("train.finetune.epochs", True, "train.finetune.epochs: Input should be a valid integer"),
        ("train.finetune.epochs", 10**30, "train.finetune.epochs: Input should be less than or equal to"),
        ("train.finetune.learning_rate", 0.1, "train.finetune.learning_rate: unknown key"),
        ("train.finetune.init", "imagenet", "train.finetune.init: Input should be 'pretrained' or 'random'"),
        (
            "train.finetune.train_fraction",
            1.5,
            "train.finetune.train_fraction: Input should be less than or equal to 1",
        ),
        ("train.scratch.head_init", {"hotdog": 3}, "train.scratch: head_init takes rows of the source model's head"),
        ("train", {}, "train: .*at least 1"),
        ("train.fine-tune", VALUES["train"]["scratch"], "train.fine-tune: String should match pattern"),
        ("preprocess.crop", 300, "preprocess: crop 300 is larger than resize 256"),
        ("preprocess.std", [0.2, 0.0, 0.2], "preprocess: std .* must be greater than 0"),
        ("preprocess.mean", [0.5, 0.5], "preprocess.mean: Input should be a valid|preprocess.mean.2: missing"),
        ("dataset.source", "", "dataset.source: String should have at least 1 character"),
        ("export.recipe", "other", "export.recipe is 'other', which is not among train's recipes: finetune, scratch"),
        ("export.opset", 22, "export.opset: Input should be less than or equal to 21"),
        ("seed", None, "seed: Input should be a valid integer"),
        ("ñandú", 1, "ñandú: unknown key"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, changed(key, value))


def test_a_missing_key_is_named(tmp_path):
    values = copy.deepcopy(VALUES)
    del values["model"]["weights"]
    with pytest.raises(ValueError, match=r"model.weights: missing"):
        load(tmp_path, values)


def test_every_problem_is_listed_at_once(tmp_path):
    values = changed("seed", -1)
    values["train"]["scratch"]["lr"] = 0
    with pytest.raises(ValueError, match=r"2 problem\(s\)\n  seed: .*\n  train.scratch.lr: "):
        load(tmp_path, values)


@pytest.mark.parametrize("text", ["a: [", "\t", "- 1\n- 2\n", "just text", ""])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml: "):
        load_params(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \x80\x81")
    with pytest.raises(ValueError, match=r"params\.yaml: not valid YAML"):
        load_params(path)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ValueError, match="no such file; run from the project's root"):
        load_params(tmp_path / "params.yaml")


def test_a_third_recipe_needs_params_alone(tmp_path):
    third = {
        "init": "pretrained",
        "lr": 0.0001,
        "head_lr_multiplier": 1,
        "weight_decay": 0,
        "batch_size": 16,
        "epochs": 1,
    }
    params = load(tmp_path, changed("train.linear_probe", {**third, "freeze": "backbone"}))
    assert params.train["linear_probe"].freeze == "backbone"


def test_params_cannot_be_changed_once_read():
    with pytest.raises(ValueError, match="frozen"):
        load_params(DEFAULT).seed = 3


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)  # fmt: skip


@given(key=st.sampled_from(leaves(VALUES)), value=junk)
def test_any_value_anywhere_is_taken_or_refused_by_key(key, value):
    """Never another exception, and never a value of another type let through."""
    values = changed(key, value)
    try:
        parsed = Params.model_validate(values).model_dump()
    except ValueError as error:
        named = {".".join(map(str, problem["loc"])) for problem in error.errors()}
        assert any(key.startswith(name) or name.startswith(key) for name in named), (key, named)
        return
    for part in key.split("."):
        parsed = parsed[part]
    assert parsed == value or list(parsed) == value
