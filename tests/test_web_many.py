"""The page with many pictures, thresholds, a heat map and several models, in headless Chromium."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.test_web import answer, browser, open_page, url_of  # noqa: F401
from tests.tiny_model import write_tiny_model
from tests.web_pictures import encode

RED, GREEN, GRAY = (
    encode(Image.new("RGB", (60, 40), colour), "PNG") for colour in ((250, 5, 5), (5, 250, 5), (130, 120, 120))
)
THRESHOLDS = {"familiarity": 0.3, "probability": {"red": 0.9}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "plain.onnx", familiarity=False)
    facts = {"architecture": "tiny", "recipe": "by hand", "weights_digest": "0123456789abcdef"}
    write_tiny_model(
        folder / "careful.onnx", heatmap=True, thresholds=THRESHOLDS, test_transform={"resize": 20, "crop": 10}, **facts
    )
    return [folder / "plain.onnx", folder / "careful.onnx"]


@pytest.fixture
def plain(browser, url_of, models) -> Iterator[object]:  # noqa: F811
    page = open_page(browser, url_of(models))
    yield page
    assert not page.problems


@pytest.fixture
def careful(browser, url_of, models) -> Iterator[object]:  # noqa: F811
    page = open_page(browser, f"{url_of(models)}?model=careful.onnx")
    yield page
    assert not page.problems


def choose(page, **pictures: bytes) -> None:
    """Several files at once, and wait until all are answered."""
    files = [{"name": f"{name}.png", "mimeType": "image/png", "buffer": content} for name, content in pictures.items()]
    page.set_input_files("#file", files)
    wait_for_cards(page)
    answer(page)


def wait_for_cards(page) -> None:
    """No polling script: the page's policy forbids it."""
    page.wait_for_selector("#cards:has(li):not(:has(li:not([data-kind])))", state="attached", timeout=20_000)


def cards(page) -> list[list[str]]:
    """Kind, file name and what is said of each."""
    script = "[...document.querySelectorAll('#cards li')].map((c) => [c.dataset.kind, ...['.file-name', '.said'].map((s) => c.querySelector(s).textContent)])"
    return page.evaluate(script)


def test_pictures_dropped_together_get_an_answer_each(plain) -> None:
    page = plain
    script = """(pictures) => {
      const transfer = new DataTransfer();
      for (const [name, bytes] of pictures) transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, [["one.png", list(RED)], ["two.png", list(GREEN)]])
    wait_for_cards(page)
    assert [(kind, name, said.split()[0]) for kind, name, said in cards(page)] == [
        ("answered", "one.png", "red"),
        ("answered", "two.png", "green"),
    ]
    assert page.is_visible("#gallery")


def test_bad_picture_among_others_has_a_card_and_harms_none(plain) -> None:
    choose(plain, a=RED, b=b"no picture", c=GREEN)
    assert [kind for kind, _, _ in cards(plain)] == ["answered", "error", "answered"]
    assert "not an image" in cards(plain)[1][2]


def test_card_shows_its_picture_large_again_with_its_name(plain) -> None:
    choose(plain, a=RED, b=GREEN)
    assert plain.inner_text("#caption") == "b.png"
    plain.click("#cards li:first-child button")
    plain.wait_for_selector("#caption:has-text('a.png')")
    assert "red" in plain.inner_text("#verdict")
    while plain.evaluate(CENTER)[0] < 200:
        plain.wait_for_timeout(20)
    plain.click("#clear")
    assert plain.is_hidden("#gallery")
    assert plain.get_attribute("body", "data-state") == "waiting"


CENTER = """() => {
  const canvas = document.querySelector("#preview");
  return [...canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data];
}"""


def test_table_has_a_row_a_picture_and_no_formula(careful) -> None:
    choose(careful, **{"=cmd()": RED, 'a "b", c': GREEN, "x": b"no picture"})
    with careful.expect_download() as download:
        careful.click("#csv")
    assert download.value.suggested_filename == "answers.csv"
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(), newline="")))
    assert [row["image"] for row in rows] == ["'=cmd().png", 'a "b", c.png', "x.png"]
    assert [row["decision"] for row in rows] == ["answered", "unfamiliar", ""]
    assert rows[0]["class"] == "red"
    assert float(rows[0]["probability:red"]) > 0.9
    assert "not an image" in rows[2]["error"]


def test_thresholds_say_not_sure_and_unfamiliar_unless_told_to_answer_always(careful) -> None:
    choose(careful, red=RED, green=GREEN, gray=GRAY)
    assert [(kind, said.split()[0]) for kind, _, said in cards(careful)] == [
        ("answered", "red"),
        ("unfamiliar", "Unlike"),
        ("unsure", "Not"),
    ]
    assert "Not sure" in careful.inner_text("#verdict")
    assert "Most like red" in careful.inner_text("#doubt")
    assert "familiarity 51.0\u00a0%" in careful.inner_text("#facts")
    careful.check("#always")
    assert [kind for kind, _, _ in cards(careful)] == ["answered"] * 3
    assert "red" in careful.inner_text("#verdict")


def test_heat_map_lies_over_the_crop_where_the_file_has_one(careful, plain) -> None:
    choose(careful, red=RED)
    before = careful.evaluate(CENTER)
    careful.click("#heat")
    after = careful.evaluate(CENTER)
    assert before[:3] == [250, 5, 5]
    assert after != before
    corner = careful.evaluate("[...document.querySelector('#preview').getContext('2d').getImageData(2, 2, 1, 1).data]")
    assert corner[:3] == [250, 5, 5]  # outside the crop
    careful.click("#heat")
    assert careful.evaluate(CENTER) == before
    choose(plain, red=RED)
    assert plain.is_hidden("#heat")


def test_page_names_its_model_and_offers_the_others(careful, plain, browser, url_of, models) -> None:  # noqa: F811
    assert "careful.onnx: tiny, by hand, of " in careful.inner_text("#model")
    assert "weights 01234567" in careful.inner_text("#model")
    assert careful.input_value("#models") == "careful.onnx"
    with plain.expect_navigation():
        plain.select_option("#models", "careful.onnx")
    plain.wait_for_selector("body[data-state=waiting]")
    assert "careful.onnx" in plain.inner_text("#model")
    page = open_page(browser, f"{url_of(models)}?model=other.onnx")
    assert "There is no model other.onnx" in answer(page)


def test_old_answer_does_not_stand_beside_the_live_camera(plain) -> None:
    choose(plain, a=RED)
    assert plain.is_visible("#result")
    plain.click("#camera")
    plain.wait_for_selector("#shoot", state="visible")
    assert plain.is_hidden("#result")
    assert plain.is_hidden("#preview")
    plain.click("#close")
    plain.wait_for_selector("#preview", state="visible")
    assert "red" in plain.inner_text("#verdict")


def test_progress_says_which_picture_and_how_large(plain) -> None:
    plain.evaluate(
        "() => { window.said = []; new MutationObserver(() => said.push(document.querySelector('#progress-text').textContent))"
        ".observe(document.querySelector('#progress-text'), { childList: true }); }"
    )
    choose(plain, large=encode(Image.new("RGB", (2000, 1500), (250, 5, 5)), "PNG"))
    said = plain.evaluate("window.said")
    assert "large.png: decoding …" in said
    assert "large.png: 3.0 megapixels, classifying …" in said
    assert plain.is_hidden("#progress")
