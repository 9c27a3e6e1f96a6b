"""Deal the images to the splits: a function of contents and labels alone, never of file order or names."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.preprocess.store import Image


@dataclass(frozen=True)
class Split:
    train: tuple[Image, ...]  # in path order, as is test
    test: tuple[Image, ...]
    removed: tuple[tuple[Image, Image], ...]  # training images left out, each with the test image of the same content
    conflicting: tuple[tuple[Image, ...], ...]  # images of one content with more than one label


def split_images(images: Sequence[Image], class_names: Sequence[str], test_fraction: float) -> Split:
    """Keep the folders' split where there is one, else draw one; then drop training copies of test images.

    The training copy goes, so that a published test split stays as it was published.
    Raises ValueError when a class is left without a training image, or the test split without any.
    """
    held_out = _draw_test_contents(images, test_fraction)
    test = [i for i in images if (i.source.split or _drawn(i, held_out)) == "test"]
    train = [i for i in images if (i.source.split or _drawn(i, held_out)) == "train"]
    in_test = {image.sha256: image for image in reversed(test)}
    removed = [(image, in_test[image.sha256]) for image in train if image.sha256 in in_test]
    kept = [image for image in train if image.sha256 not in in_test]
    for label, name in enumerate(class_names):
        if not any(image.source.label == label for image in kept):
            raise ValueError(
                f"class {name}: every training image is in the test split too; add training images of {name}"
            )
    if not test:
        raise ValueError("the test split is empty: no class has two different images; add images")
    return Split(tuple(kept), tuple(test), tuple(removed), _conflicting(images))


def _draw_test_contents(images: Sequence[Image], test_fraction: float) -> set[tuple[int, str]]:
    """Per class, the contents with the smallest digests: at least one, and never all, of two or more.

    Equal contents of a class stay together. Digests are as good as random, and adding an image moves at most a few others.
    """
    contents: dict[int, set[str]] = {}
    for image in images:
        contents.setdefault(image.source.label, set()).add(image.sha256)
    return {
        (label, sha256)
        for label, digests in contents.items()
        for sha256 in sorted(digests)[: min(max(1, round(len(digests) * test_fraction)), len(digests) - 1)]
    }


def _drawn(image: Image, held_out: set[tuple[int, str]]) -> str:
    return "test" if (image.source.label, image.sha256) in held_out else "train"


def _conflicting(images: Sequence[Image]) -> tuple[tuple[Image, ...], ...]:
    copies: dict[str, list[Image]] = {}
    for image in images:
        copies.setdefault(image.sha256, []).append(image)
    return tuple(tuple(group) for group in copies.values() if len({image.source.label for image in group}) > 1)
