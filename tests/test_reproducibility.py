"""The choice of device and precision, and what is recorded of the machine."""

import random

import numpy as np
import pytest
import torch

from stages.shared import reproducibility
from stages.shared.reproducibility import (
    COMPILED_FROM,
    Execution,
    choose_device,
    choose_precision,
    describe_machine,
    seed_everything,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_same_seed_gives_the_same_numbers_of_every_kind() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(2**32 + 5)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("requested", "available", "expected"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_takes_cuda_where_there_is_a_device(
    monkeypatch: pytest.MonkeyPatch, requested: str, available: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(requested).type == expected


def test_cuda_without_a_device_is_refused_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"runtime\.device is cuda, but torch finds no CUDA device; set it to auto or cpu"
    ):
        choose_device("cuda")


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_bfloat16_only_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    expected = torch.bfloat16 if native else torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert choose_precision("auto", CUDA) == expected
    assert choose_precision("auto", CPU) == expected


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("step", "device", "num_steps", "expected"),
    [
        ("auto", CPU, COMPILED_FROM, "eager"),
        ("auto", CUDA, 80, "graph"),  # the book's recipes
        ("auto", CUDA, COMPILED_FROM - 1, "graph"),
        ("auto", CUDA, COMPILED_FROM, "compile"),
        ("eager", CUDA, COMPILED_FROM, "eager"),
        ("graph", CUDA, COMPILED_FROM, "graph"),
        ("compile", CPU, 1, "compile"),
    ],
)
def test_only_a_long_training_on_cuda_is_compiled_by_itself(
    step: str, device: torch.device, num_steps: int, expected: str
) -> None:
    assert Execution(device, torch.float32, step).chosen_step(num_steps) == expected


def test_the_machine_is_named_with_its_threads_and_versions() -> None:
    facts = describe_machine(CPU)
    assert facts["device"].startswith("cpu (")
    assert f", {torch.get_num_threads()} threads)" in facts["device"]
    assert facts["torch"] == torch.__version__


def test_a_machine_that_does_not_name_its_processor_has_its_kind_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        def __init__(self, _: str) -> None: ...

        def exists(self) -> bool:
            return False

    monkeypatch.setattr(reproducibility, "Path", Nowhere)
    monkeypatch.setattr(reproducibility.platform, "processor", lambda: "")
    monkeypatch.setattr(reproducibility.platform, "machine", lambda: "arm64")
    assert describe_machine(CPU)["device"].startswith("cpu (arm64, ")
