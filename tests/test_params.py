"""params.yaml is read into one typed object; whatever is wrong is said by key before any work starts."""

import copy
import io
import math
import re
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml as load_as_dvc
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.shared.params import ARCHITECTURES, Params, class_rows, load_params

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
        ("train.scratch.head", ["hotdog@3"], "train.scratch: head is of the source model: set init: pretrained"),
        ("train.finetune.head", ["hotdog"], "train.finetune.head.list.*: write class@row, as hotdog@934"),
        ("train", {}, "train: .*at least 1"),
        ("train.fine-tune", VALUES["train"]["scratch"], "train.fine-tune: String should match pattern"),
        ("preprocess.crop", 300, "preprocess: crop 300 is larger than resize 256"),
        ("preprocess.std", [0.2, 0.0, 0.2], "preprocess: std .* must be greater than 0"),
        ("preprocess.mean", [0.5, 0.5], "preprocess.mean: Input should be a valid|preprocess.mean.2: missing"),
        ("dataset.source", "", "dataset.source: String should have at least 1 character"),
        (
            "export.recipe",
            "other",
            "export.recipe is 'other', which is neither auto nor among train's recipes: finetune, scratch, tuned",
        ),
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


def said(tmp_path: Path, text: str) -> str:
    """What is wrong with params.yaml holding `text`, without the path."""
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_params(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("seed", -1, "seed: Input should be greater than or equal to 0 (found -1)"),
        ("export.opset", "18", "export.opset: Input should be a valid integer (found '18')"),
        ("seed", "x" * 200, f"seed: Input should be a valid integer (found {repr('x' * 200)[:100]})"),
        ("train", 5, "train: Input should be a valid dictionary (found 5)"),
        ("model.colour", 1, "model.colour: unknown key; remove it or correct its spelling"),
        ("preprocess.crop", 257, "preprocess: crop 257 is larger than resize 256; make it at most 256"),
        (
            "preprocess.std",
            [0.2, -0.1, 0.2],
            "preprocess: std [0.2, -0.1, 0.2] must be greater than 0 in every channel",
        ),
        (
            "train.scratch.head",
            ["hotdog@3"],
            "train.scratch: head is of the source model: set init: pretrained, or head: random",
        ),
        ("train.1st", VALUES["train"]["scratch"], "train.1st: String should match pattern '^[A-Za-z][A-Za-z0-9_]*$' (found '1st')"),
        ("export.recipe", "other", "params: export.recipe is 'other', which is neither auto nor among train's recipes: finetune, scratch, tuned"),
        ("model.architecture", "resnet19", f"model.architecture: unknown architecture 'resnet19'; allowed are {', '.join(ARCHITECTURES)}"),
    ],
)  # fmt: skip
def test_a_problem_is_said_in_one_line(tmp_path, key, value, problem):
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(changed(key, value), text)
    assert said(tmp_path, text.getvalue()) == f"1 problem(s)\n  {problem}"


def test_what_has_no_key_is_said_of_the_params(tmp_path):
    assert said(tmp_path, "just text") == (
        "1 problem(s)\n  params: Input should be a valid dictionary or instance of Params (found 'just text')"
    )


def test_a_missing_section_says_where_an_example_is(tmp_path):
    values = copy.deepcopy(VALUES)
    del values["runtime"], values["parity"]["int8"]
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, text)
    assert said(tmp_path, text.getvalue()) == (
        "2 problem(s)\n"
        "  runtime: missing; add it (see params.yaml in the repository)\n"
        "  parity.int8: missing; add it (see params.yaml in the repository)"
    )


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("seed: 010", 10),  # eight in YAML 1.1
        ("seed: 0o10", 8),
        ("seed: 1_000", 1000),
        ("seed:\t7", 7),
        ("%YAML 1.1\n---\nseed: 010", 10),  # the parser in C, which DVC takes, does not look at the version
    ],
)
def test_unusual_numbers_are_read_as_dvc_reads_them(tmp_path, text, seed):
    path = tmp_path / "params.yaml"
    directive, _, line = text.rpartition("\n")
    default = DEFAULT.read_text(encoding="utf-8").replace("\nseed: 0\n", f"\n{line}\n", 1)
    path.write_text(f"{directive}\n{default}" if directive else default, encoding="utf-8")
    assert load_params(path).seed == load_as_dvc(str(path))["seed"] == seed


def test_a_tag_is_refused(tmp_path):
    """Plain values alone: a tag asks the reader to build something."""
    text = DEFAULT.read_text(encoding="utf-8")
    assert said(tmp_path, text.replace("seed: 0", "seed: !!python/name:os.system 0", 1)).startswith("not valid YAML: ")
    assert said(tmp_path, text.replace("source: http", "source: !url http", 1)).startswith("not valid YAML: ")


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        ("train.finetune.epochs", [1, 10**9], [-1, 0, 10**9 + 1]),
        ("train.finetune.batch_size", [1, 10**9], [0, 10**9 + 1]),
        ("train.finetune.lr", [1e-30, 999999.0], [0, 1e6]),
        ("train.finetune.head_lr_multiplier", [1e-30, 999999.0], [0, 1e6]),
        ("train.finetune.weight_decay", [0, 999999.0], [-1e-9, 1e6]),
        ("train.finetune.momentum", [0, 0.999], [-1e-9, 1]),
        ("train.finetune.train_fraction", [1e-9, 1], [0, 1.000001]),
        (
            "train.finetune.head",
            ["random", "probe", ["a@0"], ["hot dog@934", "c@d@1"]],
            ["zero", [], ["a@-1"], ["a"], ["@1"]],
        ),
        ("train.finetune.batch_norm", ["train", "frozen"], ["eval"]),
        ("train.finetune.optimizer", ["sgd", "adamw"], ["adam"]),
        ("train.finetune.layer_decay", [1e-9, 1], [0, 1.000001]),
        ("train.finetune.schedule", ["constant", "cosine"], ["step"]),
        ("train.finetune.warmup", [0, 0.999999], [-1e-9, 1]),
        ("train.finetune.ema", [0, 0.999999], [-1e-9, 1]),
        ("train.finetune.loss", ["sum", "mean"], ["median"]),
        ("train.finetune.label_smoothing", [0, 0.999999], [-1e-9, 1]),
        ("train.finetune.class_weights", ["none", "balanced"], ["rare"]),
        ("train.finetune.crop_scale", [[1e-9, 1], [1, 1]], [[0, 1], [0.5, 1.01], [0.6, 0.5], [0.5], 0.5]),
        ("train.finetune.color", [0, 1], [-1e-9, 1.000001]),
        ("train.finetune.mixup", [0, 100], [-1e-9, 101]),
        ("train.finetune.validation", ["none", "holdout", "folds"], ["test"]),
        ("train.finetune.calibration", ["none"], ["platt"]),
        ("train.finetune.mirror", [True, False], [1, "yes"]),
        ("runtime.save_every", [0, 999999], [-1e-9, 1e6]),
        ("train.finetune.freeze", ["x", 0.4], ["", 0.0, 1.0, 2]),
        ("train.finetune.seed", [None, 0, 2**31 - 1], [-1, 2**31]),
        ("train.finetune.precision", ["auto", "float32", "bfloat16"], ["float16"]),
        ("train.finetune.augmentation", ["random_crop", "none"], ["flip"]),
        ("seed", [0, 2**31 - 1], [-1, 2**31]),
        ("dataset.test_fraction", [1e-9, 0.999999], [0, 1]),
        ("dataset.synthetic.num_train", [1, 10**9], [0, 10**9 + 1]),
        ("dataset.synthetic.side", [8, 8192], [7, 8193]),
        ("model.weights", ["x"], [""]),
        ("pretrain.num_images", [1], [0]),
        ("preprocess.crop", [8, 256], [7, 257]),
        ("preprocess.resize", [224, 8192], [223, 8193]),
        ("preprocess.max_side", [8, 8192], [7, 8193]),
        ("preprocess.std", [[1e-9, 1, 1]], [[0, 1, 1], [1, 1], [1, math.nan, 1], [1, 1, math.inf]]),
        ("preprocess.mean", [[0, 0, 0], [-1, 2, 3]], [[0, 0], [0, 0, 0, 0], 0, [math.nan, 0, 0], [0, 0, -math.inf]]),
        ("zero_shot", [[], ["a@0"]], [["a@-1"], ["a"], "a@0"]),
        ("runtime.device", ["auto", "cpu", "cuda"], ["gpu"]),
        ("runtime.num_devices", [1, 1024], [0, 1025]),
        ("runtime.step", ["auto", "eager", "graph", "compile"], ["jit"]),
        ("runtime.batch_norm", ["local", "exact"], ["sync"]),
        ("evaluate.calibration_bins", [1, 1000], [0, 1001]),
        ("evaluate.bootstrap_samples", [10, 10**6], [9, 10**6 + 1]),
        ("evaluate.execution", ["exact", "fast"], ["slow"]),
        ("export.opset", [18, 21], [17, 22]),
        ("export.max_accuracy_drop", [0, 1], [-1e-9, 1.000001]),
        ("parity.fp32", [1e-30, 999999.0], [0, 1e6]),
    ],
)
def test_a_range_ends_where_it_is_said_to(key, taken, refused):
    for value in taken:
        Params.model_validate(changed(key, value))
    for value in refused:
        with pytest.raises(ValueError):
            Params.model_validate(changed(key, value))


@pytest.mark.parametrize("key", leaves(VALUES["base_recipe"]))
def test_every_key_of_every_recipe_stands_in_params_yaml(tmp_path, key):
    """A default that stood in the code would be one that DVC does not track."""
    for name in VALUES["train"]:
        values = copy.deepcopy(VALUES)
        del values["train"][name][key]
        with pytest.raises(ValueError, match=f"train.{name}.{key}: missing"):
            load(tmp_path, values)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"init": "random", "head": "probe"}, "head is of the source model: set init: pretrained, or head: random"),
        ({"init": "random", "batch_norm": "frozen"}, "batch_norm would freeze statistics of no image"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum is sgd's: set optimizer: sgd, or momentum: 0.0"),
        ({"augmentation": "none", "color": 0.2}, "color changes random crops: set augmentation: random_crop, or color: 0.0"),
        ({"augmentation": "none", "mixup": 0.2}, "mixup mixes random crops: set augmentation: random_crop, or mixup: 0.0"),
        ({"crop_scale": [0.9, 0.3]}, "crop_scale is the least and the most of an image's area, in this order"),
        ({"validation": "none", "calibration": "temperature"}, "calibration is fitted on validation logits"),
        ({"epochs": 0}, "epochs: 0 trains nothing: set head: probe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_keys_that_do_not_go_together_are_refused_by_name(tmp_path, changes, problem):
    values = copy.deepcopy(VALUES)
    values["train"]["finetune"] |= changes
    with pytest.raises(ValueError, match=re.escape(f"train.finetune: {problem}")):
        load(tmp_path, values)


def test_a_recipe_of_the_probe_alone_has_no_epochs(tmp_path):
    values = copy.deepcopy(VALUES)
    values["train"]["finetune"] |= {"head": "probe", "epochs": 0}
    assert load(tmp_path, values).train["finetune"].epochs == 0


def test_rows_of_the_source_model_are_split_at_the_last_at_sign():
    assert class_rows(["hot dog@934", "c@d@1"]) == {"hot dog": 934, "c@d": 1}


def test_another_recipe_needs_params_alone(tmp_path):
    probe = VALUES["base_recipe"] | {"lr": 0.0001, "freeze": "backbone"}
    assert load(tmp_path, changed("train.linear_probe", probe)).train["linear_probe"].freeze == "backbone"


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
