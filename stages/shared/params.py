"""params.yaml as one frozen, typed, validated object. It stops at a stage's `main`."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from masking import masked

# torchvision's classification architectures; a test holds the list against torchvision itself. GoogLeNet and Inception v3
# are left out: they train auxiliary heads and normalise their own input.
ARCHITECTURES = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s maxvit_t mnasnet0_5
    mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
    regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf
    regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101
    resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5
    shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t
    swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32
    vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
""".split()  # noqa: SIM905 (eighty lines of a list would hide the params)


def known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; allowed are {', '.join(ARCHITECTURES)}")
    return name


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def known_row(text: str) -> str:
    name, _, row = text.rpartition("@")
    if not name or not row.isascii() or not row.isdigit():
        raise ValueError("write class@row, as hotdog@934")
    return text


def inside(text: str) -> str:
    if Path(text).is_absolute() or ".." in Path(text).parts:
        raise ValueError("must be a path inside the dataset, as labels.csv: what lies elsewhere is not tracked")
    return text


def known_share(text: str) -> str:
    name, _, share = text.rpartition("@")
    if not name or not re.fullmatch(r"0?\.\d*[1-9]\d*", share):
        raise ValueError("write class@share, as hotdog@0.95")
    return text


Architecture = Annotated[str, AfterValidator(known_architecture)]
RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Count = Annotated[int, Field(ge=1, le=10**9)]
Side = Annotated[int, Field(ge=8, le=8192)]  # pixels
Rate = Annotated[float, Field(gt=0, lt=1e6)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
ClassRow = Annotated[str, AfterValidator(known_row)]  # a target class and the source model's row for it, as hotdog@934
ClassShare = Annotated[str, AfterValidator(known_share)]  # a class and a share of its answers, as hotdog@0.95
Fraction = Annotated[float, Field(gt=0, le=1)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(as_tuple)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Synthetic(Section):
    num_train: Count
    num_test: Count
    side: Side


class Dataset(Section):
    source: Annotated[str, Field(min_length=1)]
    labels: Annotated[str, Field(min_length=1), AfterValidator(inside)] | None
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    fixes: Annotated[str, Field(min_length=1)]
    synthetic: Synthetic


class Model(Section):
    architecture: Architecture
    weights: Annotated[str, Field(min_length=1)]


class Pretrain(Section):
    num_images: Count
    lr: Rate
    batch_size: Count
    epochs: Count


class Preprocess(Section):
    resize: Side
    crop: Side
    max_side: Side
    store: Literal["auto", "pixels", "encoded"]
    pixels_limit_gb: Annotated[float, Field(ge=0, lt=1e6)]
    mean: Triple
    std: Triple

    @model_validator(mode="after")
    def crop_fits(self) -> "Preprocess":
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}; make it at most {self.resize}")
        if min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)} must be greater than 0 in every channel")
        return self


class Recipe(Section):
    init: Literal["pretrained", "random"]
    head: Literal["random", "probe"] | Annotated[list[ClassRow], Field(min_length=1)]
    freeze: Annotated[str, Field(min_length=1)] | Annotated[float, Field(gt=0, lt=1)]
    batch_norm: Literal["train", "frozen"]
    optimizer: Literal["sgd", "adamw"]
    lr: Rate
    head_lr_multiplier: Rate
    layer_decay: Fraction
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, lt=1e6)]
    schedule: Literal["constant", "cosine"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    loss: Literal["sum", "mean"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["none", "balanced"]
    batch_size: Count
    epochs: Annotated[int, Field(ge=0, le=10**9)]
    train_fraction: Fraction
    augmentation: Literal["random_crop", "none"]
    crop_scale: Annotated[tuple[Fraction, Fraction], BeforeValidator(as_tuple)]
    color: Annotated[float, Field(ge=0, le=1)]
    mixup: Annotated[float, Field(ge=0, le=100)]
    validation: Literal["none", "holdout", "folds"]
    num_folds: Annotated[int, Field(ge=2, le=100)]
    calibration: Literal["none", "temperature"]
    mirror: bool
    precision: Literal["auto", "float32", "bfloat16"]
    seed: Seed | None

    @model_validator(mode="after")
    def keys_go_together(self) -> "Recipe":
        wrong = [
            (self.init == "random" and self.head != "random", "head", "is of the source model: set init: pretrained, or head: random"),
            (self.init == "random" and self.batch_norm == "frozen", "batch_norm", "would freeze statistics of no image: set init: pretrained, or batch_norm: train"),
            (self.epochs == 0 and self.head != "probe", "epochs: 0", "trains nothing: set head: probe, or more epochs"),
            (self.optimizer != "sgd" and self.momentum > 0, "momentum", "is sgd's: set optimizer: sgd, or momentum: 0.0"),
            (self.augmentation == "none" and self.color > 0, "color", "changes random crops: set augmentation: random_crop, or color: 0.0"),
            (self.augmentation == "none" and self.mixup > 0, "mixup", "mixes random crops: set augmentation: random_crop, or mixup: 0.0"),
            (self.crop_scale[0] > self.crop_scale[1], "crop_scale", "is the least and the most of an image's area, in this order"),
            (self.validation == "none" and self.calibration != "none", "calibration", "is fitted on validation logits: set validation: holdout or folds, or calibration: none"),
        ]  # fmt: skip
        for is_wrong, key, why in wrong:
            if is_wrong:
                raise ValueError(f"{key} {why}")
        return self


class Runtime(Section):
    device: Literal["auto", "cpu", "cuda"]
    num_devices: Annotated[int, Field(ge=1, le=1024)]
    num_nodes: Annotated[int, Field(ge=1, le=1024)]
    step: Literal["auto", "eager", "graph", "compile"]
    batch_norm: Literal["local", "exact"]
    save_every: Annotated[float, Field(ge=0, lt=1e6)]
    memory_gb: Annotated[float, Field(ge=0, lt=1e6)]


class Inspect(Section):
    leaks: Literal["drop", "keep"]
    size: Annotated[int, Field(ge=1, le=4096)] | None


class Monitor(Section):
    source: Annotated[str, Field(min_length=1)] | None


class Evaluate(Section):
    calibration_bins: Annotated[int, Field(ge=1, le=1000)]
    bootstrap_samples: Annotated[int, Field(ge=10, le=10**6)]
    execution: Literal["exact", "fast"]


class Export(Section):
    recipe: RecipeName
    opset: Annotated[int, Field(ge=18, le=21)]  # at 22 and above MaxPool falls back to the CPU under CUDA
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)]
    min_speedup: Annotated[float, Field(ge=0, lt=100)]
    heatmap: bool


class Decision(Section):
    max_refused: Annotated[float, Field(ge=0, le=0.5)]
    min_precision: list[ClassShare]


class Parity(Section):
    fp32: Rate
    tf32: Rate
    fp16: Rate
    int8: Rate
    probability: Rate


class Params(Section):
    seed: Seed
    dataset: Dataset
    model: Model
    pretrain: Pretrain
    preprocess: Preprocess
    zero_shot: list[ClassRow]
    base_recipe: Recipe  # no stage reads it: the YAML anchor that the recipes start from
    train: Annotated[dict[RecipeName, Recipe], Field(min_length=1)]
    runtime: Runtime
    inspect: Inspect
    evaluate: Evaluate
    export: Export
    decision: Decision
    parity: Parity
    monitor: Monitor

    @model_validator(mode="after")
    def exported_recipe_exists(self) -> "Params":
        if self.export.recipe not in (*self.train, "auto"):
            raise ValueError(
                f"export.recipe is {self.export.recipe!r}, which is neither auto nor among train's recipes: {', '.join(self.train)}"
            )
        return self


def class_rows(texts: Sequence[str]) -> dict[str, int]:
    """Target class -> class index of the source model, of a list of `class@row`."""
    return {name: int(row) for name, _, row in (text.rpartition("@") for text in texts)}


def class_shares(texts: Sequence[str]) -> dict[str, float]:
    """Class -> share, of a list of `class@share`."""
    return {name: float(share) for name, _, share in (text.rpartition("@") for text in texts)}


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate `path` (YAML 1.2, as DVC reads it).

    Raises ValueError naming the file, each offending key, what was found and what is allowed.
    """
    try:
        values = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run from the project's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ValueError(masked(f"{path}: {error.error_count()} problem(s)\n{problems}")) from None


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "params"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{key}: missing; add it (see params.yaml in the repository)"
    found = "" if problem["type"] == "value_error" else f" (found {problem['input']!r:.100})"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{found}"


def validate_lines() -> None:
    """`python -m stages.shared.params`: judge params for who may not import this.

    Reads a JSON pair `[name, params]` a line and writes `[name, problem]` for each problem; nothing where all are valid.
    """
    for line in sys.stdin:
        name, values = json.loads(line)
        try:
            Params.model_validate(values)
        except ValidationError as error:
            for problem in error.errors():
                print(json.dumps([name, masked(_describe(problem))]))


if __name__ == "__main__":
    validate_lines()
