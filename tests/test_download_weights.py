"""Weights from strangers: no code in them runs, and what is wrong with them is named."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.download.weights import bring_weights, read_state_dict
from tests.misbehaving_server import misbehaving_server

GOOD = {"conv.weight": torch.arange(6.0).reshape(2, 3).t(), "bn.num_batches_tracked": torch.tensor(3)}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


class Code:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def bring(weights: str, architecture: str = "resnet18", **options: Any) -> dict[str, Any]:
    usual = {"checksum": None, "cache": Path(".cache")}
    return bring_weights(
        Path("out/weights.safetensors"), weights=weights, architecture=architecture, **(usual | options)
    )


def saved(content: Any, path: str = "w.pth", **options: Any) -> Path:
    torch.save(content, path, **options)
    return Path(path)


def refuse(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^w.pth: .*{message}"):
        read_state_dict(saved(content), shown="w.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 1.0}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {key: torch.nn.Parameter(value, requires_grad=False) for key, value in state.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_common_wrappings_give_the_same_bytes(wrap: Any, zipped: bool) -> None:
    save_file({key: value.contiguous() for key, value in GOOD.items()}, "plain.safetensors")
    bring("plain.safetensors")
    plain = Path("out/weights.safetensors").read_bytes()
    path = saved(wrap(GOOD), _use_new_zipfile_serialization=zipped)
    facts = bring(str(path))
    assert Path("out/weights.safetensors").read_bytes() == plain
    assert torch.equal(load_file("out/weights.safetensors")["conv.weight"], GOOD["conv.weight"])
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts["kind"], facts["source"], facts["num_bytes"]) == ("file", "w.pth", path.stat().st_size)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(legacy: bool) -> None:
    path = saved({"a": Code()}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"w.pth: not readable as weights without running code"):
        bring(str(path))
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match=r"w.pth: not readable as weights"):
        bring(str(path))
    assert not Path("executed").exists()
    assert not Path("out/weights.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_not_finite_names_its_key(value: float, dtype: torch.dtype) -> None:
    refuse(
        {**GOOD, "fc.weight": torch.tensor([[1.0, value]], dtype=dtype)},
        "'fc.weight' has 1 of 2 values NaN or infinite",
    )


def test_what_is_no_plain_tensor_names_its_key() -> None:
    refuse({**GOOD, "epoch": 3}, "'epoch' is int, expected a tensor")
    refuse({**GOOD, 3: torch.ones(1)}, "3 is Tensor, expected a tensor under a name")
    refuse({"a": torch.eye(3).to_sparse()}, "'a' is sparse")
    refuse({"a": torch.ones(2, device="meta")}, "'a' is sparse, quantized or without data")
    refuse([torch.ones(1)], "holds list, expected a state_dict")
    refuse({}, "holds dict, expected a state_dict")


def test_tensors_that_stand_for_more_than_the_file_holds_are_refused() -> None:
    refuse({"a": torch.ones(1).expand(10**6, 10**6)}, "'a' claims the shape")
    shared = torch.ones(100_000)
    refuse({f"key{number}": shared for number in range(50)}, "stand for 20000000 bytes")


def test_tied_weights_are_written_out() -> None:
    tied = torch.ones(4)
    bring(str(saved({"a": tied, "b": tied})))
    assert sorted(load_file("out/weights.safetensors")) == ["a", "b"]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_refused(name: str) -> None:
    if name == "w.pth":
        saved(GOOD)
    else:
        save_file({"a": torch.arange(100.0)}, name)
    whole = Path(name).read_bytes()
    for size in (0, 1, 8, 9, 60, len(whole) // 2, len(whole) - 5):
        Path(name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{name}: not readable as weights"):
            bring(name)


def test_synthetic_brings_only_its_facts() -> None:
    assert bring("synthetic")["kind"] == "synthetic"
    assert not Path("out").exists()


def test_an_unknown_name_lists_what_is_allowed() -> None:
    with pytest.raises(
        ValueError,
        match=r"model.weights: 'IMAGENET' is no file here .*IMAGENET1K_V1, DEFAULT .torchvision's for resnet18",
    ):
        bring("IMAGENET")


def test_a_local_file_with_another_checksum_is_refused() -> None:
    saved(GOOD)
    with pytest.raises(
        ValueError, match=r"w.pth: sha256 [0-9a-f]{64}, expected 0{64}; .*end model.weights with #sha256="
    ):
        bring("w.pth", checksum="sha256:" + "0" * 64)


def test_a_torchvision_name_is_fetched_from_a_mirror_and_checked_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    body = saved(GOOD).read_bytes()
    digest = hashlib.sha256(body).hexdigest()
    with misbehaving_server() as server:
        server.body = body
        with pytest.raises(ValueError, match=r"resnet18-f37072fd.pth: sha256 [0-9a-f]{64}, expected f37072fd"):
            bring("IMAGENET1K_V1", mirror=server.base)
        facts = bring("IMAGENET1K_V1", mirror=server.base, checksum=f"sha256:{digest}")  # the person's word counts
        assert facts["checksum"] == f"sha256:{digest}"
        entry = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"].value
        monkeypatch.setitem(entry.__dict__, "url", f"https://host.invalid/models/resnet18-{digest[:8]}.pth")
        facts = bring("IMAGENET1K_V1", mirror=f"{server.base}/m")
    assert server.requests[-1][0] == f"/m/resnet18-{digest[:8]}.pth"
    assert (facts["kind"], facts["checksum"], facts["sha256"]) == ("torchvision", f"sha256:{digest[:8]}", digest)
    assert facts["url"] == f"https://host.invalid/models/resnet18-{digest[:8]}.pth"
    assert load_file("out/weights.safetensors").keys() == GOOD.keys()


def test_weights_behind_a_url_are_shown_without_secrets() -> None:
    with misbehaving_server() as server:
        server.body = saved(GOOD).read_bytes()
        facts = bring(f"{server.base.replace('//', '//u:SECRET@')}/w.pth?sig=SECRET")
        server.body = saved({"a": Code()}).read_bytes()
        with pytest.raises(ValueError, match=r"not readable as weights") as caught:
            bring(f"{server.base}/w.pth?sig=SECRET")
    assert (facts["kind"], facts["source"]) == ("url", f"{server.base.replace('//', '//***@')}/w.pth?***")
    assert "SECRET" not in str(caught.value)
