"""A CSV of labels in the source: which files it gives which class and split, and what is told of rows that cannot be meant."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.download.__main__ import main as download
from stages.preprocess.__main__ import main as preprocess
from stages.preprocess.find import find_images
from stages.preprocess.labels import read_labels
from stages.shared.artifacts import MANIFEST, PREPROCESS_REPORT, SOURCE_DATASET, TEST_SPLIT
from stages.shared.dataset import load_manifest, load_test_files

PROJECT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """A flat folder of six pictures, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(6):
        Image.new("RGB", (20, 16), (40 * number, 9, 9)).save(f"photos/{number}.png")
    return tmp_path / "photos"


def write_csv(folder, *rows, name="labels.csv"):
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


def layout_of(folder, *rows):
    write_csv(folder, *rows)
    layout = read_labels(folder, "labels.csv")
    return {source.path: (layout.class_names[source.label], source.split) for source in layout.sources}


def write_params(**dataset):
    values = YAML(typ="safe").load(PROJECT / "params.yaml")
    values["dataset"] |= dataset
    values["preprocess"] |= {"resize": 16, "crop": 16}
    YAML().dump(values, Path("params.yaml"))
    shutil.copy(PROJECT / "fixes.yaml", ".")


CATS_AND_DOGS = [f"{number}.png,{'cat' if number < 3 else 'dog'}" for number in range(6)]


def test_a_csv_gives_files_their_classes(photos):
    expected = {f"{number}.png": ("cat" if number < 3 else "dog", None) for number in range(6)}
    assert layout_of(photos, "file,label", *CATS_AND_DOGS) == expected


@pytest.mark.parametrize(
    "rows",
    [
        ["\ufefffile;label;photographer", "0.png;cat;Ann", "1.png;dog;Bob"],  # as Excel saves it
        ["Label\tFILE", "cat\t0.png", "dog\t1.png"],
        ['"file","label"', '"0.png"," cat "', "", "./1.png,dog"],
    ],
)
def test_separators_order_case_and_other_columns_do_not_matter(photos, rows):
    assert layout_of(photos, *rows) == {"0.png": ("cat", None), "1.png": ("dog", None)}


def test_files_may_lie_in_the_only_folder_beside_the_csv(photos):
    write_csv(photos.parent, "file,label", *CATS_AND_DOGS)
    Path("params.yaml").write_text("")
    assert [source.path for source in read_labels(photos.parent, "labels.csv").sources][:2] == [
        "photos/0.png",
        "photos/1.png",
    ]
    assert layout_of(photos.parent, "file,label", r"photos\0.png,cat", "photos/1.png,dog") == {
        "photos/0.png": ("cat", None),
        "photos/1.png": ("dog", None),
    }


def test_splits_have_any_usual_name(photos):
    rows = ["0.png,cat,Train", "1.png,cat,test", "2.png,dog,training", "3.png,dog,Testing", "4.png,dog,train"]
    assert layout_of(photos, "file,label,split", *rows) == {
        "0.png": ("cat", "train"),
        "1.png": ("cat", "test"),
        "2.png": ("dog", "train"),
        "3.png": ("dog", "test"),
        "4.png": ("dog", "train"),
    }


@pytest.mark.parametrize(
    ("other", "split", "said"), [("test", "train", "part of training"), ("train", "test", "serve")]
)
def test_validation_rows_mean_what_validation_folders_do(photos, other, split, said):
    rows = ["0.png,cat,train", "1.png,dog,train", f"2.png,cat,{other}", f"3.png,dog,{other}", "4.png,dog,valid"]
    assert layout_of(photos, "file,label,split", *rows)["4.png"] == ("dog", split)
    assert said in " ".join(read_labels(photos, "labels.csv").remarks)


def test_the_stages_take_a_csv_in_a_folder_or_an_archive(photos):
    rows = ["0.png,cat,train", "1.png,cat,test", "2.png,dog,train", "3.png,dog,test"]
    write_csv(photos, "file,label,split", *rows)
    shutil.make_archive("packed", "zip", ".", "photos")
    for source in ("photos", "packed.zip"):
        write_params(source=source, labels="labels.csv")
        download("dataset")
        preprocess()
        assert load_manifest(MANIFEST).train_paths == ("0.png", "2.png")
        assert [file.path for file in load_test_files(TEST_SPLIT)] == ["1.png", "3.png"]
        report = json.loads(PREPROCESS_REPORT.read_text())
        assert report["train"]["classes"] == {"cat": 1, "dog": 1}
        assert report["names"]["outside_classes"] == ["4.png", "5.png"]
        assert report["remarks"] == ["labels.csv names 4 files; 2 others are left out"]


def test_download_keeps_a_csv_that_stands_beside_class_folders(photos):
    photos.rename("elsewhere")
    for name in ("a", "b"):
        shutil.copytree("elsewhere", f"set/photos/{name}")
    write_csv(Path("set"), "file,label", "a/0.png,cat", "b/0.png,dog")
    write_params(source="set", labels="labels.csv")
    download("dataset")
    layout = read_labels(SOURCE_DATASET / "images", "labels.csv")
    assert [source.path for source in layout.sources] == ["photos/a/0.png", "photos/b/0.png"]


def test_download_names_the_tables_there_are(photos):
    write_csv(photos, "file,label", *CATS_AND_DOGS, name="answers.csv")
    write_params(source="photos", labels="labels.csv")
    with pytest.raises(
        ValueError, match=r"dataset\.labels: labels\.csv: no such file in the dataset; it has answers\.csv"
    ):
        download("dataset")


def test_a_csv_that_params_do_not_name_is_pointed_at(photos):
    write_csv(photos, "file,label", *CATS_AND_DOGS)
    with pytest.raises(ValueError, match=r"found none; add the others, or set dataset\.labels to labels\.csv"):
        find_images(photos)


def test_a_class_without_a_usable_file_is_named(photos):
    (photos / "3.png").write_bytes(b"\x89PNG")
    write_csv(photos, "file,label,split", "0.png,cat,train", "1.png,cat,test", "2.png,dog,train", "3.png,dog,test")
    write_params(source="photos", labels="labels.csv")
    download("dataset")
    with pytest.raises(
        ValueError, match=r"no usable image in class dog of test \(none of its 1 files can be used, the"
    ):
        preprocess()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["id,breed", "0.png,cat"], r"needs the columns file and label, perhaps split; its first line has id, breed"),
        ([""], r"needs the columns file and label, perhaps split; its first line has none"),
        (["file,label", "0.png,cat", "8.png,dog", "9.png,dog"], r"rows name no file: line 3 \(8.png\), line 4 \(9.png\)"),
        (["file,label", "0.png,cat", "../photos/1.png,dog"], r"rows name no file: line 3 \(\.\./photos/1\.png\); correct"),
        (["file,label", "0.png,cat", "1.png,dog", "./0.png,cat"], r"rows name a file again: line 4 \(\./0\.png\); keep one"),
        (["file,label", "0.png,cat", "1.png", "2.png,dog"], r"rows have no label: line 3 \(1\.png\); fill them in"),
        (["file,label", "0.png,cat", "1.png,cat"], r"needs two labels or more, found cat; add the others"),
        (["file,label", *(f"x{i}.png,cat" for i in range(9))], r"line 4 \(x2\.png\) and 6 more; correct or delete them"),
        (["file,label,split", "0.png,cat,train", "1.png,dog,held-out"], r"no split that is known: line 3 \(1\.png\); write one of"),
        (["file,label,split", "0.png,cat,train", "1.png,dog,"], r"rows have no split that is known: line 3 \(1\.png\)"),
        (["file,label,split", "0.png,cat,train", "1.png,dog,Train"], r"rows are all of train; give both train and test"),
        (["file,label", "0.png,\x00cat", '"1.png,dog'], r"photos/labels\.csv: "),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_meant_are_refused_by_line(photos, rows, message):
    write_csv(photos, *rows)
    with pytest.raises(ValueError, match=message):
        read_labels(photos, "labels.csv")


def test_a_csv_that_is_not_utf8_is_refused(photos):
    (photos / "labels.csv").write_bytes("file,label\n0.png,köter\n1.png,cat\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.csv: cannot be read: .*; save it as a CSV in UTF-8"):
        read_labels(photos, "labels.csv")
