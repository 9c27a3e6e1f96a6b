"""The source model's weights: from any origin to one safetensors file of finite tensors."""

import math
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file, save

from masking import masked
from stages.download import checksum as digests
from stages.download.addresses import is_url
from stages.download.fetch import fetch
from stages.shared.files import file_digest, replacing

KEY = "model.weights"
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's, torch.compile's


def bring_weights(
    path: Path, *, weights: str, architecture: str, checksum: str | None, cache: Path, mirror: str | None = None
) -> dict[str, Any]:
    """Write the state_dict that `weights` names to `path` and return the facts for source.json.

    weights: a name of torchvision's weights for `architecture`, an http(s) URL, a local .pth, .pt or .safetensors
    file, or `synthetic` (nothing is written). Whether they fit the architecture is for train to say.
    Raises ValueError (what to change) or TransientError (worth another try).
    """
    facts: dict[str, Any] = {"kind": "synthetic", "source": weights, "checksum": None, "sha256": None}
    if weights == "synthetic":
        return {**facts, "num_files": 0, "num_bytes": 0}
    if is_url(weights):
        facts |= {"kind": "url", "source": masked(weights), "checksum": checksum}
        file = fetch(weights, checksum=checksum, key=KEY, cache=cache, mirror=mirror)
    elif weights in (enum := torchvision.models.get_model_weights(architecture).__members__):
        url = enum[weights].url
        file, checksum = _fetch_named(url, checksum, cache, mirror)
        facts |= {"kind": "torchvision", "checksum": checksum, "url": url}
    else:
        file = _local_file(weights, checksum, architecture, tuple(enum))
        facts |= {"kind": "file", "checksum": checksum}
    state_dict = read_state_dict(file, shown=masked(weights))
    with replacing(path) as part:
        part.write_bytes(save(dict(sorted(state_dict.items())), metadata={"format": "pt"}))
    return {**facts, "sha256": file_digest(file), "num_files": 1, "num_bytes": file.stat().st_size}


def _fetch_named(url: str, checksum: str | None, cache: Path, mirror: str | None) -> tuple[Path, str | None]:
    """torchvision puts the first digits of the sha256 into the file name: `resnet18-f37072fd.pth`."""
    digits = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", url)
    if checksum or not digits:
        return fetch(url, checksum=checksum, key=KEY, cache=cache, mirror=mirror), checksum
    checksum = f"sha256:{digits[1]}"
    return fetch(url, checksum=checksum, key=KEY, cache=cache, mirror=mirror, prefix=True), checksum


def _local_file(weights: str, checksum: str | None, architecture: str, names: tuple[str, ...]) -> Path:
    path = Path(weights)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no file here"
        allowed = f"{', '.join(names)} (torchvision's for {architecture}), an http(s) URL, a local file, or synthetic"
        raise ValueError(f"{KEY}: {weights!r} {found} (seen from {Path.cwd()}); allowed: {allowed}")
    if checksum:
        digests.check(path, checksum, key=KEY, shown=weights)
    return path


def read_state_dict(path: Path, *, shown: str) -> dict[str, torch.Tensor]:
    """A file's state_dict, each tensor dense, finite, contiguous and on its own memory; no code in it is run.

    A state_dict inside {"state_dict": …} or {"model": …} is taken out, a common "module." removed.
    Raises ValueError naming `shown` and the offending key.
    """
    content = _unwrapped(_read(path, shown))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{shown}: holds {type(content).__name__}, expected a state_dict with tensors; {_advice()}")
    for prefix in PREFIXES:
        if all(isinstance(key, str) and key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    for key, tensor in content.items():
        _check_tensor(key, tensor, shown)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if num_bytes > 4 * path.stat().st_size + (1 << 20):  # tensors may share memory, a bomb shares one with thousands
        raise ValueError(f"{shown}: its tensors stand for {num_bytes} bytes, far more than the file has; {_advice()}")
    return {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in content.items()}


def _read(path: Path, shown: str) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser makes of a stranger's bytes, the file is at fault
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"{shown}: not readable as weights without running code from it ({reason}); {_advice()}"
        ) from None


def _unwrapped(content: Any) -> Any:
    for _ in range(2):
        if isinstance(content, dict):
            inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
            content = inner
    return content


def _check_tensor(key: Any, tensor: Any, shown: str) -> None:
    if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{shown}: {key!r} is {type(tensor).__name__}, expected a tensor under a name; {_advice()}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{shown}: {key!r} is sparse, quantized or without data; convert it to a plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = tuple(tensor.shape)
        raise ValueError(f"{shown}: {key!r} claims the shape {shape}, more than it has data for; {_advice()}")
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{shown}: {key!r} has {count} of {math.prod(tensor.shape)} values NaN or infinite; get other weights"
        )


def _advice() -> str:
    return "save it again with torch.save(model.state_dict(), path) or as .safetensors"
