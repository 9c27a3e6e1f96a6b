"""Near-duplicates are found and different pictures are not, wrong labels are named, and folds keep what belongs together."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.inspect import __main__ as inspect
from stages.inspect import duplicates
from stages.inspect.duplicates import find_pairs
from stages.inspect.folds import assign_folds, check_classes, choose_num_folds, group_images
from stages.inspect.fragment import map_points
from stages.inspect.labels import find_wrong_labels, neighbour_probabilities, out_of_fold_probabilities
from stages.inspect.odd import find_odd, looks_of
from stages.inspect.proposals import propose
from stages.inspect.structure import structure_of
from stages.preprocess.fixes import read_fixes
from stages.shared import artifacts
from stages.shared.dataset import Entry, Manifest, TestFile, pack_canvas, save_manifest, save_test_files
from stages.shared.files import read_json
from stages.shared.held_out import LEFT_OUT, load_folds
from stages.shared.transforms import Transform, resize_center_crop
from synthetic_images import TARGET_CLASSES, draw_target
from tests.experiment import write_params

TRANSFORM = Transform(110, 96, (0.5,) * 3, (0.5,) * 3)


def photo(index: int) -> Image.Image:
    return Image.fromarray(draw_target(TARGET_CLASSES[index % 2], index, 0, 128))


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((0, height // 10, width - width // 10, height))


def recoloured(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * [0.7, 1.0, 1.2] + 10).clip(0, 255).astype(np.uint8))


CHANGES = {
    "resized": lambda image: image.resize((image.width // 2, image.height // 2)),
    "recompressed": recompressed,
    "cropped": cropped,
    "mirrored": ImageOps.mirror,
    "recoloured": recoloured,
    "gray": lambda image: image.convert("L").convert("RGB"),
}


def crop_of(image: Image.Image) -> np.ndarray:
    return resize_center_crop(np.asarray(image), TRANSFORM.resize, TRANSFORM.crop)


def describe(crops: np.ndarray) -> np.ndarray:
    """A stand-in for a network's features: the picture in 12 x 12."""
    return crops[:, ::8, ::8].reshape(len(crops), -1).astype(np.float32)


def pairs_among(images: list[Image.Image]):
    crops = np.stack([crop_of(image) for image in images])
    return find_pairs(structure_of(crops), describe(crops), describe(crops[:, :, ::-1]))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change):
    originals = [photo(index) for index in range(24)]
    found = pairs_among([*originals, *(CHANGES[change](image) for image in originals[:6])])
    assert {(pair.first, pair.second) for pair in found} == {(index, 24 + index) for index in range(6)}
    assert all(pair.mirrored == (change == "mirrored") for pair in found)


def test_of_many_copies_of_a_test_picture_none_stays_in_training():
    def variant(index: int) -> Image.Image:
        image = photo(100)
        width, height = image.size
        return recompressed(image.crop((index % 4, index // 4, width - index % 3, height - index % 5)))

    train = [*(photo(index) for index in range(12)), *(variant(index) for index in range(20))]
    pairs = pairs_among([*train, photo(100), photo(101)])
    groups = group_images(len(train) + 2, [(pair.first, pair.second) for pair in pairs])
    assert inspect.leaking_rows(groups, len(train)) == list(range(12, 32))


def test_blank_images_are_no_duplicates_of_each_other():
    blank = [Image.new("RGB", (60, 40), color) for color in ("white", "black", "#123456", "red")]
    assert pairs_among([*blank, photo(0), photo(1)]) == []


def striped(ground: str) -> Image.Image:
    """A rug of stripes in the middle of a ground."""
    image = Image.fromarray(np.asarray(GROUNDS[ground]))
    rug = np.repeat(np.random.default_rng(1).integers(0, 256, (12, 1, 3), dtype=np.uint8), 6, axis=0)
    image.paste(Image.fromarray(np.repeat(rug, 90, axis=1)), (19, 28))
    return image


GROUNDS = {
    name: Image.fromarray(generator.integers(0, 256, (10, 10, 3), dtype=np.uint8)).resize((128, 128))
    for name, generator in {"grass": np.random.default_rng(2), "stone": np.random.default_rng(3)}.items()
}


def test_one_thing_on_two_grounds_is_two_pictures_and_recompressed_it_is_one():
    others = [photo(index) for index in range(12)]
    assert pairs_among([striped("grass"), striped("stone"), *others]) == []
    (pair,) = pairs_among([striped("grass"), recompressed(striped("grass")), *others])
    assert (pair.first, pair.second) == (0, 1)


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that torch makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_memory_grows_with_the_images_and_not_with_their_square(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 16)
    monkeypatch.setattr(duplicates, "NEIGHBOURS", 1)

    def peak(num_images: int) -> int:
        generator = np.random.default_rng(0)
        structure = generator.normal(size=(num_images, 16, 16)).astype(np.float16)
        features = generator.normal(size=(num_images, 8)).astype(np.float32)
        tracemalloc.start()
        with LargestTensor() as largest:
            find_pairs(structure, features, features)
        size = 4 * largest.elements + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(20)  # what is imported late
    assert peak(480) < 2.5 * peak(240)


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_few_images_are_no_trouble(num_images):
    assert pairs_among([photo(index) for index in range(num_images)]) == []


# --- folds ---


GROUPS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=2, max_size=60)


@settings(deadline=None)
@given(GROUPS, st.randoms(use_true_random=False))
def test_folds_keep_groups_together_and_depend_on_contents_alone(groups, random):
    rows = [
        (label, f"{number:03} {copy}", number) for number, (label, size) in enumerate(groups) for copy in range(size)
    ]
    shuffled = random.sample(rows, len(rows))
    dealt = []
    for order in (rows, shuffled):
        labels, digests, numbers = zip(*order, strict=True)
        folds = assign_folds(np.array(labels), digests, np.array(numbers), [])
        assert all(len({f for f, n in zip(folds, numbers, strict=True) if n == number}) == 1 for number in set(numbers))
        dealt.append(dict(zip(digests, folds.tolist(), strict=True)))
    assert dealt[0] == dealt[1]
    assert set(dealt[0].values()) == set(range(min(choose_num_folds(len(rows)), len(groups))))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=20, max_size=300))
def test_single_images_are_dealt_evenly_class_by_class(labels):
    labels = np.array(labels)
    folds = assign_folds(labels, [f"{row:04}" for row in range(len(labels))], np.arange(len(labels)), [])
    for label in set(labels.tolist()):
        counts = np.bincount(folds[labels == label], minlength=folds.max() + 1)
        assert counts.max() - counts.min() <= 1


def test_images_left_out_have_no_fold_and_their_near_duplicates_keep_theirs():
    groups = group_images(6, [(0, 1), (1, 2)])
    assert groups[0] == groups[1] == groups[2] != groups[3]
    folds = assign_folds(np.array([0, 0, 0, 1, 1, 1]), list("abcdef"), groups, [1])
    assert folds[1] == LEFT_OUT
    assert folds[0] == folds[2] != LEFT_OUT


def test_a_class_that_would_be_left_without_an_image_is_named():
    with pytest.raises(ValueError, match="class b: every training image shows a picture of the test split"):
        check_classes(np.array([0, 1, 0]), [1], ("a", "b"))


# --- labels ---


def test_confident_contradictions_are_flagged_surest_first():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    wrong = [5, 17, 40]
    given = labels.copy()
    given[wrong] = (labels[wrong] + 1) % 3
    sure = 0.75 + 0.2 * generator.random(60)
    probabilities = np.where(np.eye(3)[labels] == 1, sure[:, None], (1 - sure[:, None]) / 2)
    issues = find_wrong_labels(probabilities, given, np.arange(60))
    assert sorted(issue.row for issue in issues) == wrong
    assert all(issue.given == given[issue.row] and issue.proposed == labels[issue.row] for issue in issues)
    assert [issue.confidence for issue in issues] == sorted((issue.confidence for issue in issues), reverse=True)


def clusters(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (num, 8) of three well-separated kinds, their labels and folds."""
    labels, folds = np.arange(num) % 3, np.arange(num) // 3 % 4
    features = np.random.default_rng(0).normal(size=(num, 8)) + 6 * np.eye(8)[labels]
    return features.astype(np.float32), labels, folds


def test_flipped_labels_among_clear_kinds_are_flagged_with_their_true_class():
    features, labels, folds = clusters(90)
    given, flipped = labels.copy(), [4, 31, 77]
    given[flipped] = (labels[flipped] + 1) % 3
    probabilities = out_of_fold_probabilities(features, features, given, folds, 3)
    issues = find_wrong_labels(probabilities, given, np.arange(90))
    found = {(issue.row, issue.proposed) for issue in issues}
    assert found <= {(row, labels[row]) for row in flipped}
    assert len(found) >= 2  # confident learning leaves out one that is less sure than its class's average


def test_neighbours_of_the_same_fold_have_no_vote_and_left_out_images_neither():
    features, labels, folds = clusters(60)
    copies, wrong = np.repeat(features[:1], 12, axis=0), np.full(12, 2)  # twelve copies of image 0, labelled otherwise
    for fold in (folds[0], LEFT_OUT):
        votes = neighbour_probabilities(
            np.concatenate([features, copies]), np.r_[labels, wrong], np.r_[folds, np.full(12, fold)], 3
        )
        assert votes[0].argmax() == labels[0]
        np.testing.assert_allclose(votes.sum(axis=1), 1)


# --- the stage ---


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Forty training and ten test pictures, one of which is in training too, mirrored; no test labels."""
    monkeypatch.chdir(tmp_path)
    write_params(Path(), {})
    train, test = [photo(index) for index in range(40)], [photo(100 + index) for index in range(10)]
    train[7] = ImageOps.mirror(test[3])
    pixels, sizes = pack_canvas([np.asarray(image) for image in train], 128)
    for folder, arrays in {
        artifacts.TRAIN_SPLIT: {"pixels": pixels, "sizes": sizes, "labels": np.arange(40) % 2},
        artifacts.TEST_SPLIT / "images": {"pixels": np.stack([crop_of(image) for image in test])},
    }.items():
        folder.mkdir(parents=True)
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
    entries = tuple(Entry(f"train/{row}.png", row % 2, f"{row:064}") for row in range(40))
    save_manifest(artifacts.MANIFEST, Manifest(TARGET_CLASSES, "d" * 64, TRANSFORM, 128, 128, entries))
    save_test_files(artifacts.TEST_SPLIT, [TestFile(f"test/{row}.png", "e" * 64) for row in range(10)])
    artifacts.FEATURES.mkdir(parents=True)
    crops = np.stack([crop_of(image) for image in train])
    features = {"crop": describe(crops), "mirror": describe(crops[:, :, ::-1])}
    save_file(features, artifacts.FEATURES / "train.safetensors")
    save_file(
        {"crop": describe(np.load(artifacts.TEST_SPLIT / "images/pixels.npy"))}, artifacts.FEATURES / "test.safetensors"
    )
    return tmp_path


@pytest.mark.parametrize("leaks", ["drop", "keep"])
def test_a_leak_is_reported_in_a_pair_and_taken_out_of_training_unless_told_otherwise(project, leaks):
    write_params(Path(), {"inspect.leaks": leaks})
    inspect.main()
    report = read_json(artifacts.INSPECTION / "report.json")
    (leak,) = report["leaks"]
    assert (leak["train"], leak["test"], leak["mirrored"]) == ("train/7.png", "test/3.png", True)
    assert 0 <= leak["distance"] < 0.4
    folds = load_folds(artifacts.INSPECTION / "folds.npz", 40)
    assert folds.dtype == np.int64
    assert np.flatnonzero(folds == LEFT_OUT).tolist() == ([7] if leaks == "drop" else [])
    assert report["left_out"] == (leaks == "drop")
    assert set(np.delete(folds, 7)) == set(range(choose_num_folds(40)))
    assert all(set(issue) == {"file", "given", "proposed", "confidence"} for issue in report["label_issues"])


def test_labels_are_judged_by_the_features_of_inspect_size(project):
    write_params(Path(), {"inspect.size": 120})
    shown = np.arange(40) % 2
    shown[12] = 1  # labelled 0
    telling = np.random.default_rng(0).normal(np.eye(2)[shown], 0.1).astype(np.float32)
    save_file({"crop": telling, "mirror": telling}, artifacts.FEATURES / "train-120.safetensors")
    inspect.main()
    report = read_json(artifacts.INSPECTION / "report.json")
    assert [issue["file"] for issue in report["label_issues"]] == ["train/12.png"]
    assert [leak["train"] for leak in report["leaks"]] == ["train/7.png"]  # found by the others, as before


def test_two_runs_write_the_same_bytes(project):
    outputs = []
    for _ in range(2):
        inspect.main()
        outputs.append({path.name: path.read_bytes() for path in artifacts.INSPECTION.iterdir()})
    assert outputs[0] == outputs[1]


def test_proposals_are_a_fix_list_that_preprocess_reads_and_never_overwrite_a_persons(project):
    inspect.main("--write", "proposals.yaml")
    assert not artifacts.INSPECTION.exists()
    fixes = read_fixes(Path("proposals.yaml"), TARGET_CLASSES)
    assert (fixes["train/7.png"].action, fixes["train/7.png"].sha256) == ("drop", f"{7:064}")
    Path("broken.yaml").write_text("- [")
    (artifacts.FEATURES / "train.safetensors").unlink()  # it is told before anything is read
    with pytest.raises(ValueError, match=r"broken\.yaml: is there already and is no YAML"):
        inspect.main("--write", "broken.yaml")
    with pytest.raises(ValueError, match=r"proposals\.yaml: holds entries already"):
        inspect.main("--write", "proposals.yaml")
    with pytest.raises(ValueError, match="unknown words '--right x'"):
        inspect.main("--right", "x")


def test_blank_pictures_are_proposed_for_dropping_other_odd_ones_are_not():
    odd = [{"file": "a", "reasons": ["far from its class", "blank"]}, {"file": "b", "reasons": ["dark"]}]
    issue = {"file": "a", "given": "x", "proposed": "y", "confidence": 0.9}
    entries = propose(
        {"leaks": [], "copies_of_leaks": ["c"], "odd": odd, "label_issues": [issue]}, {"a": "1", "b": "2", "c": "3"}
    )
    copy = {"action": "drop", "reason": "near-duplicate of one that shows a test picture"}
    assert entries == [
        {"file": "c", "sha256": "3", **copy},
        {"file": "a", "sha256": "1", "action": "drop", "reason": "blank"},
    ]


def test_the_page_shows_the_leak_in_a_pair_and_escapes_names(project):
    inspect.main()
    page = (artifacts.INSPECTION / "fragment.html").read_text()
    assert "train/7.png and test/3.png, mirrored" in page
    assert page.count("data:image/jpeg;base64,") >= 2
    assert page.count("<circle") == 50


def test_odd_pictures_are_named_with_their_reason():
    generator = np.random.default_rng(0)
    crops = generator.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    crops[3], crops[4] = 255, crops[4] // 8
    crops[5] = np.linspace(40, 60, 32, dtype=np.uint8)[:, None, None]
    sizes = np.full((50, 2), 40)
    sizes[6], sizes[7] = (5, 12), (300, 20)
    features = generator.normal(size=(50, 8)).astype(np.float32) + 5 * np.eye(8, dtype=np.float32)[0]
    found = find_odd(looks_of(crops), sizes, features, np.zeros(50, np.int64), 32)
    reasons = {row: [reason for reason in found.get(row, []) if reason != "far from its class"] for row in range(8)}
    assert reasons == {
        0: [],
        1: [],
        2: [],
        3: ["blank"],
        4: ["dark"],
        5: ["blurred"],
        6: ["tiny"],
        7: ["extreme shape"],
    }
    assert sum("far from its class" in reasons for reasons in found.values()) == 1


def test_a_few_long_features_do_not_press_the_map_into_a_line() -> None:
    features = np.abs(np.random.default_rng(0).normal(size=(200, 16)))
    features[:2] *= 30
    across = [x for x, *_ in map_points(features, np.zeros(200, int), [f"{i}.jpg" for i in range(200)])]
    assert np.subtract(*np.quantile(across, [0.9, 0.1])) > 25  # of 100
