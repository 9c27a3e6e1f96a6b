"""Batch norm over the batch of all devices, in a group of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stages.shared import distributed
from stages.shared.distributed import process_group, with_exact_batch_norm


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_one_value_a_channel_leaves_statistics_that_are_numbers():
    """A last batch of one image whose maps are 1 x 1: its variance is 0, and not 0/0, which no checkpoint may hold."""
    model = with_exact_batch_norm(nn.Sequential(nn.BatchNorm2d(3))).train()
    model(torch.randn(1, 3, 1, 1))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert model[0].running_var.tolist() == pytest.approx([0.9] * 3)


@pytest.mark.usefixtures("alone")
def test_statistics_are_torchs_own():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 5, 5)
    plain, exact = nn.BatchNorm2d(3).train(), with_exact_batch_norm(nn.Sequential(nn.BatchNorm2d(3))).train()
    assert torch.allclose(exact(images), plain(images), atol=1e-5)
    assert torch.allclose(exact[0].running_var, plain.running_var, atol=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("cuda", ("nccl", torch.device("cuda", 1))), ("cpu", ("gloo", None))])
def test_a_process_tells_its_device_to_the_group(monkeypatch, kind, expected):
    """NCCL would guess it from the rank otherwise, which is another device's where a host has several groups."""
    told = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda backend, device_id: told.append((backend, device_id))
    )
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    with process_group(torch.device(kind)) as device:
        assert device == (expected[1] or torch.device("cpu"))
    assert told == [expected]


def test_more_processes_than_cuda_devices_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    needs = "process 1 of this machine needs a CUDA device of its own; it has 1"
    with pytest.raises(ValueError, match=needs), process_group(torch.device("cuda")):
        pass
