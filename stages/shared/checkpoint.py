"""A checkpoint: a model's weights and the facts needed to rebuild it, in one safetensors file."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from stages.shared.files import replacing
from stages.shared.model import Mirrored, build_model
from stages.shared.transforms import Transform


@dataclass(frozen=True)
class Facts:
    architecture: str
    class_names: tuple[str, ...]
    transform: Transform
    recipe: str
    seed: int
    source_digest: str | None  # sha256 of the source weights' file; None from scratch
    data_digest: str
    mirror: bool = False  # an answer is the mean over the image and its mirror image


def save_checkpoint(path: Path, model: nn.Module, facts: Facts) -> None:
    """Write `model`'s state and `facts`; the same model and facts give the same bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as part:
        part.write_bytes(save(state, metadata={"facts": json.dumps(asdict(facts), sort_keys=True)}))


def load_checkpoint(path: Path) -> tuple[nn.Module, Facts]:
    """The model as it answers, float32 on the CPU in eval mode, and its facts. Raises ValueError naming what does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = _parse_facts((file.metadata() or {})["facts"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint; run the train stage first") from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, OSError) as error:
        raise ValueError(
            f"{path}: not a checkpoint of this pipeline ({error}); delete it and run the train stage again"
        ) from None
    model = build_model(facts.architecture, len(facts.class_names), facts.transform.crop)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; delete it and run the train stage again") from None
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} has values that are not finite; delete it and run the train stage again")
    return (Mirrored(model) if facts.mirror else model).eval(), facts


def digest(model: nn.Module) -> str:
    """sha256 over the names and bytes of the model's state, independent of the file that holds it."""
    sha256 = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def _parse_facts(text: str) -> Facts:
    values = json.loads(text)
    class_names, transform = tuple(values.pop("class_names")), Transform(**values.pop("transform"))
    return Facts(class_names=class_names, transform=transform, **values)
