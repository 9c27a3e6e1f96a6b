"""flows/promote: the rule, versions that DVC's registry reads, nothing half done by a kill."""

import http.server
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.promote import judge, registry
from flows.promote.decide import decide
from flows.promote.measured import Measured
from flows.settings import Promotion, load_schedule
from tests import promoted_project
from tests.toy_project import dvc, fork_dvc, git

ROOT = Path(__file__).parents[1]
RULE = Promotion(
    max_accuracy_loss=0.02, max_class_loss=0.1, max_ece_rise=0.02, max_latency_ratio=1.2, max_size_ratio=1.5
)
IMAGES = [(f"{i:03}.png", "0") for i in range(200)]
LABELS = {image: "odd" if number % 2 else "even" for number, image in enumerate(IMAGES)}


def answers(wrong: set[int]) -> dict[tuple[str, str], str]:
    """The right ones, but for these images."""
    return {image: "neither" if number in wrong else LABELS[image] for number, image in enumerate(IMAGES)}


def model(wrong: int = 10, **changes: Any) -> Measured:
    """Of 200 test images in two classes the first `wrong` are wrong."""
    made = Measured(
        recipe="finetune",
        answers=answers({number for number in range(200) if number < wrong}),
        labels=LABELS,
        ece=0.02,
        parity={"passed": 20, "failed": 0, "not run": 3},
        latency_ms=5.0,
        num_bytes=10**7,
    )
    return replace(made, **changes)


def failed(candidate: Measured, promoted: Measured | None) -> list[str]:
    return [check.name for check in judge.judge(candidate, promoted, RULE) if not check.passed]


def test_an_equal_model_is_good_enough() -> None:
    assert failed(model(), model()) == []


@pytest.mark.parametrize(
    ("candidate", "names"),
    [
        (model(wrong=16), ["accuracy"]),
        (model(wrong=40), ["accuracy", "recall of each class"]),
        (model(parity={"passed": 19, "failed": 1, "not run": 3}), ["parity"]),
        (model(parity={"passed": 0, "failed": 0, "not run": 23}), ["parity"]),
        (model(ece=0.05), ["calibration error (ECE)"]),
        (model(latency_ms=6.1), ["latency"]),
        (model(num_bytes=16 * 10**6), ["size"]),
        (model(latency_ms=None), []),
    ],
)
def test_each_condition_of_the_rule_is_held(candidate: Measured, names: list[str]) -> None:
    assert failed(candidate, model()) == names


def test_a_class_that_is_lost_is_not_made_good_by_another() -> None:
    worse = model(answers=answers({number for number in range(41) if number % 2 == 1}))
    before = model(answers=answers({number for number in range(41) if number % 2 == 0}))
    assert judge.class_changes(worse, before) == {"even": pytest.approx(0.21), "odd": pytest.approx(-0.2)}
    assert "recall of each class" in failed(worse, before)


def test_labels_that_a_fix_list_changed_count_for_both_models() -> None:
    mended = {image: "even" if number < 30 else LABELS[image] for number, image in enumerate(IMAGES)}
    assert failed(model(labels=mended), model()) == []
    assert judge.class_changes(model(labels=mended), model()) == {"even": 0, "odd": 0}


def test_the_first_model_needs_parity_alone() -> None:
    assert failed(model(wrong=150), None) == []
    assert failed(model(parity={"passed": 1, "failed": 1, "not run": 0}), None) == ["parity"]


def test_only_images_with_the_same_pixels_are_compared() -> None:
    changed = {(path, "1" if int(path[:3]) < 100 else "0"): True for path, _ in IMAGES}
    difference, low, high = judge.paired(changed, judge.correct(model(wrong=110), LABELS))
    assert difference == pytest.approx(0.1)
    assert low < difference < high
    with pytest.raises(ValueError, match="share no test image"):
        judge.paired({("a", "1"): True}, {("a", "2"): True})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = promoted_project.create(tmp_path_factory.mktemp("promote") / "project")
    for name, *settings in (("good",), ("same", "recipe=tuned"), ("worse", "wrong=60"), ("broken", "failed_rows=2")):
        words = [word for setting in settings for word in ("-S", setting)]
        dvc(root, "exp", "run", "--name", name, *words)
        git(root, "checkout", "--quiet", "--", ".")
    return root


@pytest.fixture
def fresh(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project with nothing promoted."""
    fork_dvc(monkeypatch)
    yield project
    for ref in git(project, "for-each-ref", "--format=%(refname)", "refs/tags", "refs/shared").splitlines():
        git(project, "update-ref", "-d", ref)


def test_a_promoted_model_is_a_version_that_dvcs_registry_reads(fresh: Path, tmp_path: Path) -> None:
    decision = decide(fresh, "good", RULE)
    assert (decision.good, decision.tag) == (True, "model@v1.0.0")
    shown = subprocess.run(
        [str(Path(sys.executable).with_name("gto")), "show", "--repo", str(fresh), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["model"]["version"] == "v1.0.0"
    dvc(fresh, "artifacts", "get", str(fresh), "model", "--rev", "v1.0.0", "--out", str(tmp_path / "got.onnx"))
    assert (tmp_path / "got.onnx").read_bytes() == b"m" * 1000

    assert decide(fresh, "same", RULE).tag == "model@v1.1.0"
    assert [*registry.versions(fresh)] == ["model@v1.0.0", "model@v1.1.0"]
    assert registry.undo(fresh) == ("model@v1.1.0", "model@v1.0.0")
    assert registry.current(fresh) == ("model@v1.0.0", git(fresh, "rev-parse", "model@v1.0.0^{commit}"))


@pytest.mark.parametrize(("name", "reason"), [("worse", "accuracy"), ("broken", "parity")])
def test_a_worse_candidate_touches_nothing_and_is_told_why(fresh: Path, name: str, reason: str) -> None:
    decide(fresh, "good", RULE)
    before = registry.versions(fresh)
    decision = decide(fresh, name, RULE)
    assert not decision.good
    assert f"{name} is not promoted: {reason}" in decision.text
    assert registry.versions(fresh) == before
    (written,) = (fresh / "artifacts/promotions").glob(f"*-{name}.json")
    assert json.loads(written.read_text())["tag"] is None


def test_what_was_decided_stands_in_the_tag_and_beside_the_artifacts(fresh: Path) -> None:
    decision = decide(fresh, "good", RULE)
    assert "| parity | 1 passed, 0 failed, 0 not run | none failed | passed |" in decision.text
    assert git(fresh, "tag", "--list", "--format=%(contents)", "model@v1.0.0") == decision.text
    assert decide(fresh, "good", RULE).text == "good is promoted already, as model@v1.0.0"


def test_a_dry_run_changes_nothing(fresh: Path) -> None:
    decision = decide(fresh, "good", RULE, dry_run=True)
    assert (decision.good, decision.tag) == (True, None)
    assert "good would be promoted as model@v1.0.0" in decision.text
    assert registry.versions(fresh) == {}


def test_what_is_no_finished_run_is_refused(fresh: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such experiment or commit"):
        decide(fresh, "nothing", RULE)
    with pytest.raises(ValueError, match=r"no artifacts/.*promote a finished run"):
        decide(fresh, "HEAD", RULE)
    with pytest.raises(ValueError, match="nothing is promoted"):
        registry.undo(fresh)


def test_versions_that_were_never_shared_stay_whatever_the_remote_has(fresh: Path, tmp_path: Path) -> None:
    hub = str(tmp_path / "hub.git")
    git(fresh, "clone", "--quiet", "--bare", str(fresh), hub)
    registry.promote(fresh, "model@v1.0.0", "HEAD", "shared", hub)
    registry.promote(fresh, "model@v1.1.0", "HEAD", "ours")
    registry.fetch(fresh, hub)
    assert [*registry.versions(fresh)] == ["model@v1.0.0", "model@v1.1.0"]
    assert registry.undo(fresh, hub) == ("model@v1.1.0", "model@v1.0.0")
    assert git(tmp_path / "hub.git", "tag", "--list") == "model@v1.0.0"


def test_two_versions_of_one_name_are_told(fresh: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub.git"
    git(fresh, "clone", "--quiet", "--bare", str(fresh), str(hub))
    git(hub, "tag", "model@v1.0.0", "HEAD")
    registry.promote(fresh, "model@v1.0.0", "HEAD", "ours")
    with pytest.raises(ValueError, match=r"model@v1\.0\.0 is another version on"):
        registry.fetch(fresh, str(hub))


def test_a_promoted_model_whose_files_are_gone_is_named_with_what_to_do(fresh: Path) -> None:
    git(fresh, "tag", "model@v1.0.0", "HEAD")
    with pytest.raises(ValueError, match=r"model@v1\.0\.0, which is promoted, is not here: .*--undo"):
        decide(fresh, "good", RULE)


def test_the_command_leaves_other_folders_alone(tmp_path: Path) -> None:
    assert "no dvc.yaml; run this in the project's folder" in command(tmp_path, "good").stderr
    assert not any(tmp_path.iterdir())


def command(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "flows.promote", *words]
    return subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True)


def test_the_command_promotes_lists_and_takes_back(fresh: Path) -> None:
    assert command(fresh).stderr.startswith("error: name an experiment")
    assert command(fresh, "good").returncode == 0
    refused = command(fresh, "worse")
    assert refused.returncode == 1
    assert "worse is not promoted: accuracy" in refused.stdout
    for words in (("good", "--undo"), ("--undo", "--list"), ("--undo", "--dry-run")):
        assert command(fresh, *words).returncode
    assert command(fresh, "--list").stdout.startswith("model@v1.0.0 ")
    assert "taken back: model@v1.0.0; promoted now: nothing" in command(fresh, "--undo").stdout


def test_a_shared_version_is_taken_back_from_any_clone_for_all(fresh: Path, tmp_path: Path) -> None:
    hub, first, second = tmp_path / "hub.git", tmp_path / "first", tmp_path / "second"
    git(fresh, "clone", "--quiet", "--bare", str(fresh), str(hub))
    for clone in (first, second):
        git(fresh, "clone", "--quiet", str(hub), str(clone))
    decide(fresh, "good", RULE, git_remote=str(hub))
    assert git(hub, "tag", "--list") == "model@v1.0.0"
    assert registry.undo(first, "origin") == ("model@v1.0.0", None)  # it has never heard of the version
    assert git(hub, "tag", "--list") == ""
    with pytest.raises(ValueError, match="nothing is promoted"):
        registry.undo(second, "origin")
    registry.fetch(fresh, str(hub))
    assert registry.versions(fresh) == {}


def test_a_version_that_was_taken_back_and_given_again_reaches_every_clone(fresh: Path, tmp_path: Path) -> None:
    hub, other = tmp_path / "hub.git", tmp_path / "other"
    git(fresh, "clone", "--quiet", "--bare", str(fresh), str(hub))
    git(fresh, "clone", "--quiet", str(hub), str(other))
    git(fresh, "tag", "model@v1.0.0", "HEAD")
    git(fresh, "push", "--quiet", str(hub), "model@v1.0.0")
    registry.fetch(other, "origin")
    registry.undo(fresh, str(hub))
    registry.promote(fresh, "model@v1.0.0", "HEAD", "another", str(hub))
    registry.fetch(other, "origin")
    assert git(other, "rev-parse", "model@v1.0.0") == git(fresh, "rev-parse", "model@v1.0.0")


@pytest.mark.parametrize("num_kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_leaves_the_old_or_the_new_state_whole(fresh: Path, num_kills: int) -> None:
    decide(fresh, "good", RULE)
    generator, environment = random.Random(0), {**os.environ, "PYTHONPATH": str(ROOT)}
    candidates = {
        name: git(fresh, "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{name}") for name in ("good", "same")
    }
    for number in range(num_kills):
        tag, commit = registry.current(fresh) or ("", "")
        name = "same" if commit == candidates["good"] else "good"
        process = subprocess.Popen([sys.executable, "-m", "flows.promote", name], cwd=fresh, env=environment)
        time.sleep(generator.uniform(0, 3) if number else 0)
        process.kill()
        process.wait()
        now = registry.current(fresh)
        assert now in ((tag, commit), (registry_next(tag), candidates[name]))
        assert git(fresh, "fsck", "--no-dangling", "--strict") == ""
    for left in fresh.glob(".git/**/*.lock"):
        left.unlink()
    assert decide(fresh, name, RULE).good  # and the next one goes through


def registry_next(tag: str) -> str:
    major, minor, patch = tag.removeprefix("model@v").split(".")
    return f"model@v{major}.{int(minor) + 1}.{patch}"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    bodies: list[Any]

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_nightly_promotes_itself_and_tells_the_outcome(server: str, fresh: Path) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    from flows.pipeline.flow import pipeline

    receiver = type("Kept", (Receiver,), {"bodies": []})
    listening = http.server.HTTPServer(("127.0.0.1", 0), receiver)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_port}/"
    data = {"title": "{{subject}}", "text": "{{body}}"}
    CustomWebhookNotificationBlock(name="ops", url=url, json_data=data).save("ops", overwrite=True)

    def nightly(**settings: Any) -> Any:
        return pipeline(
            experiment="nightly", promotion=RULE.model_dump(), notify="custom-webhook/ops", settings=settings,
            root=str(fresh), return_state=True,
        )  # fmt: skip

    assert nightly(num_bytes=900).is_completed()
    assert [*registry.versions(fresh)] == ["model@v1.0.0"]
    assert receiver.bodies[0]["title"] == "nightly: Completed"
    assert "is promoted as model@v1.0.0" in receiver.bodies[0]["text"]
    listening.shutdown()
    listening.server_close()
    worse = nightly(wrong=80)
    assert worse.is_completed()  # nobody listens: no fault of the run's
    assert "is not promoted: accuracy" in worse.message
    assert [*registry.versions(fresh)] == ["model@v1.0.0"]


def test_a_nightly_that_changed_nothing_adds_no_experiment(server: str, fresh: Path) -> None:
    from flows.pipeline.flow import pipeline

    first = pipeline(experiment="quiet", root=str(fresh), return_state=True)
    assert "saved as experiment quiet-" in first.message
    count = len(git(fresh, "for-each-ref", "refs/exps").splitlines())
    again = pipeline(experiment="quiet", root=str(fresh), return_state=True)
    assert "nothing changed since quiet-" in again.message
    assert len(git(fresh, "for-each-ref", "refs/exps").splitlines()) == count
    assert not registry.versions(fresh)
    ruled = pipeline(experiment="quiet", promotion=RULE.model_dump(), root=str(fresh), return_state=True)
    assert "nothing changed since quiet-" in ruled.message  # and yet it is judged, as nobody has
    assert "is promoted as model@v1.0.0" in ruled.message
    assert len(git(fresh, "for-each-ref", "refs/exps").splitlines()) == count
    registry.undo(fresh)
    pipeline(experiment="quiet", promotion=RULE.model_dump(), root=str(fresh), return_state=True)
    assert not registry.versions(fresh)  # a quiet night does not undo what a person undid


def test_the_shipped_rule_is_whole_and_promotes_nothing_by_itself() -> None:
    schedule = load_schedule()
    assert not schedule.promote
    assert schedule.promotion.max_accuracy_loss == 0.01
