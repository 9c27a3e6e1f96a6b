"""Two machines train one recipe, here two nodes of one process each on this one: equal to one node; a death is named."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import torch

from stages.shared import nodes
from stages.shared.distributed import meeting_point
from tests.experiment import free_port
from tests.test_training import model_and_head, split, train

__all__ = ["split"]  # the fixture
NODE = """
import os, sys, torch, numpy as np
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_training import model_and_head, train
from stages.shared import nodes
from stages.shared.dataset import TrainSplit
from stages.shared.distributed import process_group, rank_and_world_size, with_exact_batch_norm

nodes.BEAT, nodes.SILENCE = 0.2, 3.0
def main():
    with process_group(torch.device("cpu")):
        arrays = np.load("../split.npz")
        split = TrainSplit(arrays["pixels"], arrays["sizes"], arrays["labels"])
        model, head = model_and_head("resnet18", 64)
        train(
            with_exact_batch_norm(model), head, split, lr=0.0003, precision=torch.float64, batch_size=9, crop=64,
            epochs=int(os.environ["EPOCHS"]), resume_path=Path("resume.pt"),
        )
        if rank_and_world_size()[0] == 0:
            torch.save(model.state_dict(), "model.pt")

main()
"""


@pytest.fixture
def folders(tmp_path: Path, split) -> list[Path]:
    """A folder for each node, as two machines would have their own."""
    np.savez(tmp_path / "split.npz", pixels=split.pixels, sizes=split.sizes, labels=split.labels)
    both = [tmp_path / f"machine-{number}" for number in range(2)]
    for folder in both:
        folder.mkdir()
        (folder / "node.py").write_text(NODE.format(root=str(Path(__file__).parents[1])))
    return both


def start(folders: list[Path], epochs: int) -> list[subprocess.Popen[str]]:
    port, torchrun = str(free_port()), [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
    started = []
    for number, folder in enumerate(folders):
        at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(number)}
        with mock.patch.dict(os.environ, at):
            words = [*torchrun, *meeting_point(2), "node.py"]
        environment = os.environ | {"EPOCHS": str(epochs), "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("w") as log:
            started.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log, text=True))
    return started


def wait_for(folder: Path, words: str) -> None:
    deadline = time.monotonic() + 200
    while words not in (folder / "log").read_text():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_two_nodes_equal_one_in_float64_and_resume_where_only_the_first_has_the_file(folders, split):
    for epochs in (1, 2):
        assert [process.wait(200) for process in start(folders, epochs)] == [0, 0], (folders[0] / "log").read_text()
        assert (folders[0] / "resume.pt").exists()
        assert not (folders[1] / "resume.pt").exists()
    assert "resuming after epoch 1" in (folders[0] / "log").read_text()
    model, head = model_and_head("resnet18", 64)
    train(model, head, split, lr=0.0003, precision=torch.float64, batch_size=9, crop=64)
    several = torch.load(folders[0] / "model.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert (value.double() - several[name].double()).abs().max() < 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize(("end", "dies"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGKILL, 0)])
def test_a_node_that_dies_ends_the_other_with_its_name_and_the_run_resumes(folders, end, dies):
    """Killed, its connections close; stopped, as a machine without power, they do not."""
    processes = start(folders, epochs=100_000)
    wait_for(folders[0], "epoch 2/")
    signal_all(processes[dies], end)
    assert processes[1 - dies].wait(60) == 1
    said = (folders[1 - dies] / "log").read_text()
    assert f"error: node {dies} ({socket.gethostname()}) has given no sign of life for 3 s" in said
    signal_all(processes[dies], signal.SIGKILL)
    processes[dies].wait(10)
    done = int(said.split("/100000: loss")[-2].split()[-1]) if dies else 2
    assert [process.wait(200) for process in start(folders, done + 2)] == [0, 0]
    assert "resuming after epoch" in (folders[0] / "log").read_text()


def signal_all(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to every process of a node: torchrun's own are in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            member.send_signal(number)


@pytest.mark.parametrize(
    "found", [{}, {"MASTER_ADDR": "a"}, {"MASTER_ADDR": "a", "NODE_RANK": "2"}, {"NODE_RANK": "0"}]
)
def test_a_node_that_does_not_know_which_it_is_is_told_how(monkeypatch, found):
    for name in ("MASTER_ADDR", "NODE_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=r"runtime\.num_nodes is 2: .* MASTER_ADDR .* NODE_RANK to 0 there and up to 1"
    ):
        meeting_point(2)


def test_torchrun_is_told_where_the_nodes_meet(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert meeting_point(2) == ["--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29500"]


def test_one_node_is_not_watched(monkeypatch):
    monkeypatch.setattr(nodes, "keep_watch", None)
    with nodes.watching_nodes():
        pass
