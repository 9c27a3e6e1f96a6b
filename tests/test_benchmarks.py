"""The benchmark compares what it says, and the committed table is that of the committed results."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from benchmarks import ours, peers, timm_peer
from benchmarks.__main__ import parse_arguments
from benchmarks.accuracy import mean_and_interval
from benchmarks.contestants import PEERS, our_runs, peer_runs
from benchmarks.record import attempt, write_row
from benchmarks.roofline import H200, floor_seconds, training_flops
from benchmarks.table import ROWS, render, value_and_text, write_table
from benchmarks.timing import interleave, ratio, summarize
from benchmarks.training import over_floor, when_it_pays
from benchmarks.workload import HEAD_LR_MULTIPLIER, LR, MEAN, QUICK, STD, WEIGHT_DECAY, make_model, make_workload
from stages.shared.optimization import param_groups
from stages.shared.params import load_params
from stages.shared.reproducibility import Execution
from stages.shared.sampling import Sampling, batches
from stages.shared.training import fit
from stages.shared.transforms import Transform

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_workload(QUICK, tmp_path_factory.mktemp("photos"))


def setting(work) -> peers.Setting:
    return peers.Setting(work.files, QUICK.crop, batch_size=4, num_workers=0, device=CPU)


def test_the_roofline_is_the_one_that_was_counted_by_hand():
    assert training_flops(224) == pytest.approx(10.6e9, rel=0.01)
    assert 1 / floor_seconds(224, 128, H200["flops"], H200["bytes"]) == pytest.approx(38_500, rel=0.005)


def test_a_chip_without_limits_has_no_floor():
    assert floor_seconds(224, 128, 1e30, 1e30) < 1e-15


def test_every_contestant_runs_once_more_than_it_is_measured_and_they_take_turns():
    order = []
    contestants = {name: lambda name=name: order.append(name) or 1 for name in "abc"}
    rates = interleave(contestants, 3, CPU)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(len(rates[name]["rounds"]) == 3 for name in "abc")


def test_ratios_are_taken_round_by_round():
    slowing = summarize([40.0, 20.0, 10.0]), summarize([10.0, 5.0, 5.0])
    assert ratio(*slowing) == {"ratio": 4.0, "ratio_low": 2.0, "ratio_high": 4.0}


def test_our_benchmarked_step_is_the_one_that_fit_runs(work):
    mine = ours.prepare(work.train, QUICK, CPU, torch.float32)
    ours.run(mine.step, ours.plan(work.train, 8, CPU), QUICK.batch_size)
    loss, correct, images = mine.totals.sums.tolist()

    model = make_model(QUICK.crop)
    history = fit(
        model, param_groups(model, ("fc.weight", "fc.bias"), ours.FINETUNE), work.train,
        Transform(QUICK.resize, QUICK.crop, MEAN, STD), Sampling(torch.arange(8), 0, 1, QUICK.batch_size),
        ours.FINETUNE, Execution(CPU, torch.float32),
    )  # fmt: skip
    assert images == 8
    assert loss / images == history[0].train_loss
    assert correct / images == history[0].train_accuracy


def test_the_step_without_a_data_path_trains_on_as_many_images(work):
    mine = ours.prepare(work.train, QUICK, CPU, torch.float32)
    assert ours.run(mine.resident_step, ours.plan(work.train, 7, CPU), QUICK.batch_size) == 7
    assert mine.totals.sums[2] == 7


def test_reading_losses_counts_every_image(work):
    mine = ours.prepare(work.train, QUICK, CPU, torch.float32)
    assert ours.run_reading_losses(mine, batches(ours.plan(work.train, 7, CPU), QUICK.batch_size)) == 7


def test_a_floor_is_that_of_the_devices_own_peaks():
    slower = {name: peak / 2 for name, peak in H200.items()}
    size = replace(QUICK, crop=224, batch_size=128)
    row = over_floor({"median": 10_000.0}, size, slower)
    assert row["allowed"]["h200"] == pytest.approx(38_500, rel=0.005)
    assert row["allowed"]["this device"] == pytest.approx(38_500 / 2, rel=0.005)
    assert row["ratio"] == pytest.approx(10_000 / (38_500 / 2), rel=0.005)


def test_compiling_pays_when_the_steps_have_won_its_time_back():
    rates = {"ours": {"median": 10_000.0}, "compiled": {"median": 12_500.0}}  # 12.8 and 10.24 ms a step
    pays = when_it_pays(64.0, rates, batch_size=128)
    assert pays["pays_after_steps"] == pytest.approx(25_000)
    row = {"ratio": 1.25, "rates": {"compiled": rates["compiled"], "ours": rates["ours"]}, **pays}
    text = "1.25× (12,500 / 10,000; compiled in 64 s, pays after 25,000 steps)"
    assert value_and_text("compiled", row) == (1.25, text)
    slower = when_it_pays(64.0, {"ours": rates["compiled"], "compiled": rates["ours"]}, batch_size=128)
    assert value_and_text("compiled", {**row, **slower})[1].endswith("pays never)")


def test_a_failing_contestant_is_a_row_and_the_others_are_kept(tmp_path):
    path, about = tmp_path / "cpu.json", {"machine": {"torch": "1"}, "size": {"processes": (1, 2)}}

    def fail() -> dict:
        raise RuntimeError("out of memory")

    for name, row in [*attempt(("a",), lambda: {"a": {"ratio": 1.0}}), *attempt(("b", "c"), fail)]:
        write_row(path, about, "rows", name, row)
    rows = json.loads(path.read_text())["rows"]
    assert rows["a"]["ratio"] == 1.0
    assert rows["b"]["failed"] == rows["c"]["failed"] == "RuntimeError: out of memory"
    assert {row["date"] for row in rows.values()} == {date.today().isoformat()}


def test_rows_of_other_versions_are_not_kept_beside_new_ones(tmp_path):
    path = tmp_path / "cpu.json"
    write_row(path, {"machine": {"torch": "1"}}, "rows", "a", {"ratio": 1.0})
    write_row(path, {"machine": {"torch": "1"}}, "rows", "b", {"ratio": 2.0})
    assert set(json.loads(path.read_text())["rows"]) == {"a", "b"}
    write_row(path, {"machine": {"torch": "2"}}, "rows", "b", {"ratio": 3.0})
    assert set(json.loads(path.read_text())["rows"]) == {"b"}


def test_what_our_process_is_asked_for_counts_images(tmp_path):
    make_workload(QUICK, tmp_path)
    runs = our_runs(QUICK, tmp_path, CPU, torch.float32, False)
    assert [runs[name]() for name in ("timer", "end_to_end", "steps", "resident", "data")] == [4, 8, 4, 4, 4]


def test_what_a_peers_process_is_asked_for_counts_images(tmp_path):
    make_workload(QUICK, tmp_path)
    for name in PEERS:
        runs = peer_runs(name, QUICK, tmp_path, CPU)
        assert [runs["timer"](), runs["end_to_end"]()] == [4, 8]


def test_the_recipe_is_that_of_params_yaml():
    recipe = load_params(ROOT / "params.yaml").train["finetune"]
    assert (recipe.lr, recipe.head_lr_multiplier, recipe.weight_decay) == (LR, HEAD_LR_MULTIPLIER, WEIGHT_DECAY)


def test_the_books_step_sums_its_losses(work):
    images, labels = next(iter(peers.d2l(make_model(QUICK.crop), setting(work)).loader))
    model = make_model(QUICK.crop).train()
    expected = torch.nn.functional.cross_entropy(model(images), labels, reduction="sum").item()
    model = make_model(QUICK.crop)
    loss, _, count = peers.d2l_step(model, peers.book_optimizer(model), CPU)(images, labels)
    assert loss == pytest.approx(expected)
    assert count == 4


@pytest.mark.slow
@pytest.mark.parametrize("make", [peers.torchvision_references, timm_peer.timm_training])
def test_the_peers_loops_train_on_every_image_and_change_the_weights(make, work):
    model = make_model(QUICK.crop)
    before = model.conv1.weight.clone()
    peer = make(model, setting(work))
    assert peer.loop(peer.loader) == len(work.files)
    for _ in range(8):  # the gradient scaler starts too high and leaves the first steps out
        peer.loop(peer.loader)
    assert not torch.equal(model.conv1.weight, before)


def test_timms_loader_brings_uint8_to_the_host_and_normalised_images_to_the_device(work):
    loader, prefetch = timm_peer.timm_loader(setting(work), training=False)
    batches = list(loader)
    assert batches[0][0].dtype == torch.uint8
    arrived = list(prefetch(batches))
    assert [labels.tolist() for _, labels in arrived] == [labels.tolist() for _, labels in batches]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(arrived[0][0], (batches[0][0] / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("make", [peers.torchvision_evaluation, timm_peer.timm_evaluation])
def test_the_peers_evaluations_see_every_image_and_leave_the_weights(make, work):
    model = make_model(QUICK.crop)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peer = make(model, setting(work))
    assert peer.loop(peer.loader) == len(work.files)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_intervals_are_students():
    result = mean_and_interval([0.8, 0.9, 1.0, 0.9, 0.9])
    assert result["mean"] == pytest.approx(0.9)
    assert result["high"] - result["mean"] == pytest.approx(2.776445 * 0.0707107 / 5**0.5, rel=1e-6)


def test_what_was_not_measured_says_so_and_what_misses_its_target_stands_out():
    machine = {"device": "cpu (x)", "torch": "1", "torchvision": "2", "python": "3"}
    rates = {"ours": {"median": 200.0}, "d2l": {"median": 100.0}}
    rows = {"d2l_timer": {"ratio": 2.0, "rates": rates}, "d2l_end_to_end": {"ratio": 2.5, "rates": rates}}
    result = {"machine": machine, "precision": "float32", "quick": False, "rows": rows}
    cpu = {**result, "size": {"batch_size": 1, "side": 2, "crop": 3}}
    table = render([], cpu).splitlines()
    assert table[2].endswith("| not run: no CUDA device | ≥ 2.4× | **2.00× (200 / 100)** |")
    assert table[3].endswith("| not run: no CUDA device | ≥ 2.4× | 2.50× (200 / 100) |")
    assert "- CUDA: not run: no CUDA device" in table

    failed = {
        **cpu,
        "machine": {**machine, "device": "cuda (NVIDIA X)"},
        "rows": {"d2l_timer": {"failed": "no memory"}},
    }
    table = render([failed, failed], cpu).splitlines()
    assert table[0] == "|  | target, CUDA | NVIDIA X | NVIDIA X | target, CPU | CPU |"
    assert table[2].split(" | ")[2:4] == ["failed: no memory"] * 2
    assert table[3].split(" | ")[2:4] == ["not measured"] * 2


def test_the_committed_table_is_that_of_the_committed_results(tmp_path):
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    assert (RESULTS / "table.md").read_text() == write_table(tmp_path)
    results = [json.loads(path.read_text()) for path in (RESULTS / "cpu.json", *RESULTS.glob("cuda-*.json"))]
    assert not any(result["quick"] for result in results)


@pytest.mark.slow
def test_one_command_measures_every_row(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=500)
    result = json.loads((tmp_path / "cpu.json").read_text())
    on_cpu = {name for name, _, _, target in ROWS if target.text != "-"}
    assert set(result["rows"]) == on_cpu
    cells = [line.split("|")[5] for line in (tmp_path / "table.md").read_text().splitlines()[2 : 2 + len(ROWS)]]
    assert not [cell for cell in cells if "not measured" in cell or "failed" in cell]


def test_a_smoke_run_cannot_replace_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick"])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert "give it an --out of its own" in capsys.readouterr().err
