"""Build torchvision's classifiers with a head for our classes; initialise and freeze them.

The head is found, not looked up: it is every parameter whose shape depends on the number of classes. So the same code
serves ResNet's `fc`, MobileNet's `classifier.1`, SqueezeNet's 1x1 convolution and ViT's `heads.head`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

State = Mapping[str, torch.Tensor]


def build_model(architecture: str, num_classes: int, crop: int) -> nn.Module:
    """A randomly initialised torchvision classifier for (batch, 3, crop, crop) images; logits (batch, num_classes).

    Raises ValueError when the architecture cannot take images of that size.
    """
    try:
        trial = _skeleton(architecture, num_classes, crop).eval()
        device = next(trial.parameters()).device
        shape = tuple(trial(torch.empty(2, 3, crop, crop, device=device)).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"model.architecture {architecture} cannot take images of {crop} x {crop} px; change preprocess.crop ({error})"
        ) from error
    assert shape == (2, num_classes), f"{architecture} returned {shape}"
    return _construct(architecture, num_classes, crop)


class Mirrored(nn.Module):
    """A network's mean logits for an image and its mirror image: twice the work, and as sure of the one as of the other."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mirrored = self.network(images.flip(-1))  # first: what a hook keeps last is then the image's own
        logits: torch.Tensor = (self.network(images) + mirrored) / 2
        return logits  # (batch, classes)


def _construct(architecture: str, num_classes: int, crop: int) -> nn.Module:
    size: dict[str, Any] = {}
    if architecture.startswith("vit_"):
        size = {"image_size": crop}
    elif architecture == "maxvit_t":
        size = {"input_size": (crop, crop)}
    return torchvision.models.get_model(architecture, weights=None, num_classes=num_classes, **size)


def _skeleton(architecture: str, num_classes: int, crop: int) -> nn.Module:
    """The model without memory or work behind it, where the architecture can be built so (RegNet computes while it builds)."""
    try:
        with torch.device("meta"):
            return _construct(architecture, num_classes, crop)
    except NotImplementedError:
        return _construct(architecture, num_classes, crop)


def head_parameters(architecture: str, crop: int) -> tuple[str, ...]:
    """The names of the parameters whose shape depends on the number of classes. Raises ValueError if there are none."""
    two, three = (_skeleton(architecture, num_classes, crop).state_dict() for num_classes in (2, 3))
    names = tuple(name for name in two if two[name].shape != three[name].shape)
    if not names:
        raise ValueError(
            f"model.architecture {architecture}: no layer depends on the number of classes; its head cannot be replaced"
        )
    return names


def head_module(model: nn.Module, head: tuple[str, ...]) -> nn.Module:
    """The layer that turns features into logits: the one that holds the head's parameters."""
    return model.get_submodule(head[0].rpartition(".")[0])


def load_source(model: nn.Module, architecture: str, crop: int, source: State, head_rows: Mapping[int, int]) -> None:
    """Copy a source model's backbone into `model` and give it a fresh head.

    The head's matrices are drawn Xavier-uniform, as in the book (d2l, Fine-Tuning); `head_rows` maps a target class to the
    source class whose row it starts from instead. The source's own head may have any number of classes.
    Raises ValueError naming the key that is missing, left over, of another shape, or not finite.
    """
    head = head_parameters(architecture, crop)
    own = model.state_dict()
    source = _fit_position_embedding(architecture, crop, source, own)
    _check_keys(architecture, own, source, head)
    with torch.no_grad():
        for name, value in own.items():
            if name not in head:
                value.copy_(source[name])
                continue
            if value.dim() > 1:
                nn.init.xavier_uniform_(value)
            for target, row in head_rows.items():
                value[target] = _source_row(source, name, row)


def _check_keys(architecture: str, own: State, source: State, head: tuple[str, ...]) -> None:
    wrong = [f"missing {name}" for name in own if name not in source]
    wrong += [f"unexpected {name}" for name in source if name not in own]
    wrong += [
        f"{name} has shape {tuple(source[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in source and name not in head and source[name].shape != own[name].shape
    ]
    wrong += [
        f"{name} has values that are not finite" for name, value in source.items() if not torch.isfinite(value).all()
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ValueError(
            f"model.weights do not fit model.architecture {architecture}: {shown}. Name weights of that architecture, or the architecture of these weights"
        )


def _source_row(source: State, name: str, row: int) -> torch.Tensor:
    if row >= len(source[name]):
        raise ValueError(
            f"head names source class {row}, but {name} of the source model has only {len(source[name])} classes"
        )
    return source[name][row]


def _fit_position_embedding(architecture: str, crop: int, source: State, own: State) -> State:
    """A vision transformer's position embedding, resampled when the source was trained at another image size."""
    name = "encoder.pos_embedding"
    if name not in own or name not in source or source[name].shape == own[name].shape:
        return source
    patch = own["conv_proj.weight"].shape[-1]
    return interpolate_embeddings(crop, patch, dict(source))


def freeze_through(model: nn.Module, last: str | float, head: tuple[str, ...]) -> None:
    """Freeze every parameter up to the end of module `last`, in the order of the forward pass.

    `none` freezes nothing, `backbone` all but the head, a number that fraction of the backbone's layers, from the input on.
    torchvision registers modules in the order of the forward pass.
    """
    if last == "none":
        return
    names = [name for name, _ in model.named_parameters()]
    if isinstance(last, float):
        layers = [layer for layer in layers_of(model) if not set(layer) & set(head)]
        frozen = [name for layer in layers[: round(last * len(layers))] for name in layer]
    elif last == "backbone":
        frozen = [name for name in names if name not in head]
    else:
        inside = [i for i, name in enumerate(names) if name.startswith(f"{last}.")]
        if not inside or any(names[i] in head for i in range(inside[-1] + 1)):
            allowed = ", ".join(dict.fromkeys(name.split(".")[0] for name in names if name not in head))
            raise ValueError(
                f"freeze: {last!r} names no module before the head; take none, backbone, or one of {allowed} (or a module inside)"
            )
        frozen = names[: inside[-1] + 1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def layers_of(model: nn.Module) -> list[list[str]]:
    """The names of the parameters, layer by layer from the input on: stacked blocks are a layer each, a lone norm joins the one before.

    A container is taken apart when it is a plain sequence or holds more than half of the parameters.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    layers: list[list[str]] = []

    def walk(module: nn.Module, prefix: str) -> None:
        size = sum(parameter.numel() for parameter in module.parameters())
        plain = type(module) in (nn.Sequential, nn.ModuleList)
        if any(module.children()) and (plain or size > total / 2):
            own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
            if own:
                layers.append(own)
            for name, child in module.named_children():
                walk(child, f"{prefix}{name}.")
        elif size:
            names = [prefix + name for name, _ in module.named_parameters()]
            if layers and all(parameter.dim() < 2 for parameter in module.parameters()):
                layers[-1] += names
            else:
                layers.append(names)

    walk(model, "")
    return layers


def train_mode(model: nn.Module, batch_norm: str = "train") -> None:
    """Set training mode, except for modules that are frozen whole: their batch-norm statistics and dropout stay as in inference.

    With `batch_norm` frozen every batch norm uses and keeps the statistics that it has; its weights are trained all the same.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (batch_norm == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()


def trainable_tail(model: nn.Module, head: tuple[str, ...]) -> nn.Module | None:
    """The part of `model` that follows its frozen part: features in, logits out; None where more than that part trains.

    It is the child that holds the head, of which torchvision's classifiers take the (flattened) output as logits. Whatever
    comes before it is frozen whole, so in training too it computes as in inference: the same features in every epoch.
    """
    tail = model.get_submodule(head[0].split(".")[0])
    inside = {id(parameter) for parameter in tail.parameters()}
    if any(parameter.requires_grad and id(parameter) not in inside for parameter in model.parameters()):
        return None
    return tail


@torch.no_grad()
def set_head(model: nn.Module, head: tuple[str, ...], weight: np.ndarray, bias: np.ndarray) -> None:
    """Put a linear head into `model`: `weight` (classes, d) for its features, `bias` (classes,).

    Raises ValueError where the model's own head is no linear layer: SqueezeNet's is a convolution under a ReLU, which cuts logits off.
    """
    if not isinstance(head_module(model, head), nn.Linear):
        raise ValueError(
            f"head: probe needs a linear layer, and {head[0].rpartition('.')[0]} is a {type(head_module(model, head)).__name__}: "
            "set head: random for this recipe, remove it, or take another model.architecture"
        )
    state = model.state_dict()
    for name in head:
        value = torch.from_numpy(weight if state[name].dim() > 1 else bias)
        if value.numel() != state[name].numel():
            raise ValueError(
                f"head: probe does not fit {name} of shape {tuple(state[name].shape)}: it is {tuple(value.shape)}; set head: random"
            )
        state[name].copy_(value.view_as(state[name]))


@torch.no_grad()
def scale_logits(model: nn.Module, head: tuple[str, ...], factor: float) -> None:
    """Have `model` return its logits times `factor`, which is greater than 0, by its head's weights and biases."""
    if factor != 1:
        for name in head:
            model.state_dict()[name].mul_(factor)
