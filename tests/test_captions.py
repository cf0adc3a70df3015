"""Captions from .txt files, folder names and file names, written so that the data set reads them back."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.captions import like_a_file_name, write_captions
from bench.dataset import load_dataset
from bench.errors import UsageError


def write_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def read_back(folder: Path) -> dict[str, str]:
    dataset = load_dataset(str(folder))
    return {example.name: example.caption for example in dataset.train + dataset.dev + dataset.test}


NAMES = tuple(f"{index}.png" for index in range(6))


def test_text_files_come_back_as_captions(tmp_path: Path) -> None:
    write_pictures(tmp_path, *NAMES)
    for index, name in enumerate(NAMES):
        (tmp_path / name).with_suffix(".txt").write_text(
            f"a red\n “fox” {index}\u2028\n", encoding="utf-8-sig"
        )
    found = write_captions(tmp_path)
    assert read_back(tmp_path) == found.captions == {name: f"a red “fox” {name[0]}" for name in NAMES}
    assert found.left_out == {} and found.files == (tmp_path / "metadata.jsonl",)


def test_dreambooth_folders_name_the_concept(tmp_path: Path) -> None:
    names = [f"10_ohwx dog/IMG_{index:04d}.jpg" for index in range(4)]
    write_pictures(tmp_path, *names, "1_my_red cat/a/7.png", "1_my_red cat/told.png")
    (tmp_path / "1_my_red cat/told.txt").write_text("a cat on a sofa")
    write_captions(tmp_path)
    assert read_back(tmp_path) == {
        **dict.fromkeys(names, "ohwx dog"),
        "1_my_red cat/a/7.png": "my red cat",
        "1_my_red cat/told.png": "a cat on a sofa",
    }


def test_a_concept_may_be_the_folder_itself(tmp_path: Path) -> None:
    write_pictures(tmp_path / "10_ohwx dog", "0001.png")
    assert write_captions(tmp_path / "10_ohwx dog").captions == {"0001.png": "ohwx dog"}


def test_what_is_not_read_is_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, "red-fox.png")
    (tmp_path / "dog.gif").write_bytes(b"GIF89a")
    (tmp_path / os.fsdecode(b"red-\xff.png")).write_bytes(b"")
    found = write_captions(tmp_path)
    assert found.captions == {"red-fox.png": "red fox"}
    assert sorted(found.left_out.values()) == [
        "file name is not valid Unicode",
        "not in PNG, JPEG, WebP or BMP format",
    ]


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("red-fox", "red fox"),
        ("003_red_fox (2)", "red fox"),
        ("Café au lait 12", "Café au lait"),
        ("000_watermelon", "watermelon"),
        ("IMG_0123", None),
        ("DSC00042", None),
        ("00017", None),
        ("image (3)", None),
        ("Screenshot 2024-01-02 at 10.11.12", None),
        ("d41d8cd9-8f00-b204-e980-0998ecf8427e", None),
    ],
)
def test_file_names_say_something_or_nothing(tmp_path: Path, stem: str, caption: str | None) -> None:
    write_pictures(tmp_path, f"{stem}.png", "a-cat.png")
    found = write_captions(tmp_path)
    assert found.captions.get(f"{stem}.png") == caption
    assert (f"{stem}.png" in found.left_out) == (caption is None)


@pytest.mark.parametrize(
    "caption", ["a red fox", "fox", "ohwx", "3 foxes", "a fox, 1990s photograph", "well-lit fox"]
)
def test_what_a_person_wrote_is_no_file_name(caption: str) -> None:
    assert not like_a_file_name(caption)


@pytest.mark.parametrize(
    ("template", "trigger", "caption"),
    [
        ("{caption}, in {trigger} style", "ohwx", "red fox, in ohwx style"),
        ("a {trigger} picture", "ohwx", "a ohwx picture"),
        ("{caption}", None, "red fox"),
        (None, "ohwx", "ohwx, red fox"),
        (None, "FOX", "red fox"),
        (None, " ", "red fox"),
    ],
)
def test_templates(tmp_path: Path, template: str | None, trigger: str | None, caption: str) -> None:
    write_pictures(tmp_path, "red-fox.png")
    assert write_captions(tmp_path, template, trigger).captions == {"red-fox.png": caption}


@pytest.mark.parametrize(
    ("template", "trigger", "message"),
    [
        ("{caption}, {style}", None, r"\{style\}: known are \{caption\} and \{trigger\}"),
        ("{caption.__class__}", None, "known are"),
        ("in {trigger} style", None, "give the word with --trigger"),
        ("{caption}", "ohwx", "--trigger: the template does not contain"),
    ],
)
def test_templates_that_cannot_be_filled(
    tmp_path: Path, template: str, trigger: str | None, message: str
) -> None:
    write_pictures(tmp_path, "red-fox.png")
    with pytest.raises(UsageError, match=message):
        write_captions(tmp_path, template, trigger)
    assert [path.name for path in tmp_path.iterdir()] == ["red-fox.png"]


@pytest.mark.parametrize("taken", ["metadata.jsonl", "metadata.csv", "images/metadata.jsonl"])
def test_metadata_that_is_there_stays_unless_forced(tmp_path: Path, taken: str) -> None:
    write_pictures(tmp_path, "images/red-fox.png")
    (tmp_path / taken).write_text("mine")
    with pytest.raises(UsageError, match="--force writes captions anew"):
        write_captions(tmp_path)
    assert (tmp_path / taken).read_text() == "mine"
    write_captions(tmp_path, force=True)
    row = {"file_name": "images/red-fox.png", "text": "red fox"}
    assert json.loads((tmp_path / "metadata.jsonl").read_text()) == row


def test_each_split_gets_its_own(tmp_path: Path) -> None:
    names = [f"{split}/{animal}.png" for split in ("train", "val", "test") for animal in ("fox", "dog")]
    write_pictures(tmp_path, *names)
    found = write_captions(tmp_path, "a {caption}")
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == [
        f"{split}/metadata.jsonl" for split in ("train", "val", "test")
    ]
    assert read_back(tmp_path) == {name: f"a {Path(name).stem}" for name in names}


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    write_pictures(tmp_path / "mine", "red-fox.png", "dog.png")
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "mine/dog.txt").symlink_to(tmp_path / "secret")
    found = write_captions(tmp_path / "mine")
    assert found.captions == {"red-fox.png": "red fox"}
    assert found.left_out == {"dog.png": "dog.txt leads out of the folder"}


def test_pictures_that_say_nothing_write_nothing(tmp_path: Path) -> None:
    write_pictures(tmp_path, "0001.png", "0002.png")
    with pytest.raises(UsageError, match="a caption for none of 2; nothing was written"):
        write_captions(tmp_path)
    assert not (tmp_path / "metadata.jsonl").exists()
