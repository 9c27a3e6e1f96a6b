"""The comparison: one entry a recipe, the published row where there is one, and paired differences."""

import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy import stats

from stages.compare.__main__ import main
from stages.compare.paired import paired_difference
from stages.compare.published import is_published_data
from stages.shared import artifacts
from tests.experiment import ROOT, write_params
from tests.finished_experiment import write_experiment, write_run, write_split

KEYS = {
    "recipe",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "examples_per_second",
    "seconds",
    "device",
}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_comparison_has_one_entry_a_recipe_beside_the_published_row(capsys):
    write_experiment()
    main()
    entries = json.loads(artifacts.COMPARISON.read_text())
    assert [entry["recipe"] for entry in entries] == ["finetune", "scratch"]
    assert all(set(entry) >= KEYS | {"published", "precision"} for entry in entries)
    assert [entry["published"]["test_accuracy"] for entry in entries] == [0.880, 0.849]
    assert entries[0]["published"]["caption"] == "published (d2l)"
    assert capsys.readouterr().out.count("published (d2l)") == 2
    assert artifacts.COMPARISON.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_score_before_the_fix_list_is_said_where_it_changed_test_labels():
    write_experiment()
    main()
    assert "before the fix list" not in artifacts.COMPARISON.with_suffix(".md").read_text()
    path = artifacts.evaluate_dir("finetune") / "metrics.json"
    before = {"num_images": 39, "num_relabelled": 2, "test_loss": 0.5}
    before |= {"test_accuracy": 0.812, "test_accuracy_low": 0.7, "test_accuracy_high": 0.9}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"before_fixes": before}))
    main()
    assert json.loads(artifacts.COMPARISON.read_text())[0]["before_fixes"] == before
    text = artifacts.COMPARISON.with_suffix(".md").read_text()
    assert "changes the label of 2 test images: accuracy 0.812 (0.700 to 0.900) on 39 images" in text


def test_a_recipe_of_no_epochs_has_dashes_for_what_it_did_not_measure():
    write_experiment()
    path = artifacts.train_dir("scratch") / "metrics.json"
    nothing = {"train_loss": None, "train_accuracy": None, "examples_per_second": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | nothing))
    path.with_name("history.csv").write_text("epoch,train_loss,train_accuracy,examples_per_second,seconds\n")
    main()
    row = artifacts.COMPARISON.with_suffix(".md").read_text().split("**scratch**")[1].split("\n")[0]
    assert row.count("–") == 5  # loss and accuracy in training and validation, examples a second


def test_validation_stands_beside_test_and_is_left_out_where_there_is_none():
    write_experiment()
    path = artifacts.train_dir("finetune") / "metrics.json"
    validated = {"validation_accuracy": 0.712, "validation_accuracy_low": 0.6, "validation_accuracy_high": 0.8}
    validated |= {"validation_loss": 0.512, "validation_loss_low": 0.4, "validation_loss_high": 0.7}
    path.write_text(json.dumps(json.loads(path.read_text()) | validated))
    main()
    first, second = json.loads(artifacts.COMPARISON.read_text())
    assert {key: first[key] for key in validated} == validated
    assert (second["validation_accuracy"], second["validation_loss"]) == (None, None)
    assert all(0 <= entry["test_ece"] <= 1 for entry in (first, second))
    text = artifacts.COMPARISON.with_suffix(".md").read_text()
    assert "| 0.512    | 0.712 (0.600 to 0.800) |" in text
    assert "| –        | –" in text


def test_third_recipe_appears_without_a_published_row():
    write_params(Path(), {"train.tiny_head": YAML(typ="safe").load(ROOT / "params.yaml")["base_recipe"]})
    labels = write_split(("a", "b", "c"), 30)
    for recipe in ("finetune", "tiny_head", "scratch"):
        write_run(recipe, ("a", "b", "c"), labels, skill=2.0)
    main()
    entries = json.loads(artifacts.COMPARISON.read_text())
    assert [entry["recipe"] for entry in entries] == ["finetune", "scratch", "tiny_head"]
    assert entries[2]["published"] is None
    assert entries[2]["against_first"]["recipe"] == "finetune"
    assert "tiny_head minus finetune" in artifacts.COMPARISON.with_suffix(".md").read_text()


def test_published_row_says_when_the_data_is_another():
    write_experiment()
    write_params(Path(), {"dataset.source": "http://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip"})
    main()
    captions = {entry["published"]["caption"] for entry in json.loads(artifacts.COMPARISON.read_text())}
    assert captions == {"published (d2l, other data)"}


def test_published_data_is_known_by_its_verified_checksum(tmp_path):
    checksum = "#sha1=fba480ffa8aa7e0febbb511d181409f899b9baa5"
    assert is_published_data(f"../mirror/hotdog.zip{checksum}")
    assert not is_published_data("../mirror/hotdog.zip")
    assert not is_published_data("../mirror/hotdog.zip#sha1=00")
    assert not is_published_data(f"{tmp_path}{checksum}")  # a folder has no checksum to verify
    assert not is_published_data("synthetic")


def test_missing_recipe_names_the_stage_to_run():
    write_experiment()
    (artifacts.evaluate_dir("scratch") / "metrics.json").unlink()
    with pytest.raises(ValueError, match="run evaluate scratch"):
        main()


def test_comparison_is_the_same_bytes_twice():
    write_experiment()
    outputs = [artifacts.COMPARISON.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    main()
    first = [path.read_bytes() for path in outputs]
    main()
    assert [path.read_bytes() for path in outputs] == first


def test_paired_difference_of_a_hand_made_table():
    # 100 images: 12 gained, 4 lost. Agresti and Min: (12.5 - 4.5) / 102 ± 1.96·sqrt(17/102 - (8/102)²)/sqrt(102).
    correct = {str(i): i < 70 for i in range(100)}
    reference = {str(i): 12 <= i < 74 for i in range(100)}
    pair = paired_difference(correct, reference)
    assert pair["difference"] == pytest.approx(0.08)
    assert (pair["difference_low"], pair["difference_high"]) == pytest.approx((0.00068, 0.15618), abs=5e-5)
    assert pair["p_value"] == pytest.approx(stats.binomtest(4, 16).pvalue)


def test_paired_interval_of_equal_recipes_has_width():
    correct = dict.fromkeys(map(str, range(50)), True)
    pair = paired_difference(correct, correct)
    assert pair["difference_low"] < 0 == pair["difference"] < pair["difference_high"]
    assert pair["p_value"] == 1.0


def test_paired_interval_covers_the_truth_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        both = generator.choice(4, size=100, p=[0.7, 0.12, 0.04, 0.14])  # both right, gained, lost, both wrong
        pair = paired_difference(
            *({str(i): bool(kind in kinds) for i, kind in enumerate(both)} for kinds in ((0, 1), (0, 2)))
        )
        covered += pair["difference_low"] <= 0.08 <= pair["difference_high"]
    assert 0.91 < covered / 400 < 0.99


def test_recipes_on_different_images_are_not_compared():
    with pytest.raises(ValueError, match="different test images"):
        paired_difference({"a": True}, {"b": True})
