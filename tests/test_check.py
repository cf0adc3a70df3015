"""`bench data check`: what it finds, what it says, and the contact sheet."""

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from bench import cli
from bench.check import KINDS, Check, check_data, shared_phrase
from bench.errors import UsageError
from bench.pipeline import PipelineFolder
from bench.sources import find_source
from reports import data

HOSTILE = "</script><img src=x onerror=alert(1)>"
CAPTION = "ohwx, a drawing of number {} on a plain and empty white page"
Command = Callable[..., tuple[int, str, str]]


def picture(seed: int, size: tuple[int, int] = (80, 80)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def add(folder: Path, name: str, image: Image.Image, caption: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture(scope="module")
def base() -> PipelineFolder:
    found = find_source("emoji-xl")
    assert isinstance(found, PipelineFolder)
    return found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Twelve pictures of which there is nothing to say."""
    for index in range(12):
        add(tmp_path / "mine", f"{index:02d}.png", picture(index), CAPTION.format(index))
    return tmp_path / "mine"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`bench("check", …)` of `data` in tmp_path: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", "data", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def kinds(check: Check) -> dict[str, list[str]]:
    """Names of pictures, sorted, by kind of finding."""
    found: dict[str, list[str]] = {}
    for finding in check.findings:
        found.setdefault(finding.kind, []).extend(finding.names)
    return {kind: sorted(names) for kind, names in found.items()}


# Findings


def test_nothing_is_found_in_good_data(mine: Path, base: PipelineFolder) -> None:
    check = check_data(str(mine), base)
    assert kinds(check) == {} and check.problem is None
    assert (check.resolution, check.max_tokens, check.phrase) == (64, 32, "ohwx")
    assert sorted(picture.split for picture in check.pictures) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 8


def test_each_kind_is_found_where_it_is(mine: Path, base: PipelineFolder) -> None:
    add(mine, "small.png", picture(20, (60, 70)), CAPTION.format("twenty"))
    add(mine, "wide.png", picture(21, (330, 80)), CAPTION.format("twenty-one"))
    add(mine, "tall.png", picture(22, (80, 200)), CAPTION.format("twenty-two"))
    add(mine, "camera.png", picture(23), "IMG_0042")
    add(mine, "long.png", picture(24), CAPTION.format("24") + ", very" * 80 + " long")
    add(mine, "equal.png", picture(25), CAPTION.format(3).upper())
    check = check_data(str(mine), base)
    assert kinds(check) == {
        "equal-captions": ["03.png", "equal.png"],
        "file-name": ["camera.png"],
        "cut-off": ["long.png"],
        "no-trigger": ["camera.png"],
        "small": ["small.png"],
        "extreme-shape": ["wide.png"],
        "elongated": ["tall.png"],
        "short-caption": ["camera.png"],
        "long-caption": ["long.png"],
    }
    assert [finding.kind for finding in check.findings] == [kind for kind in KINDS if kind in kinds(check)]


def test_what_is_cut_off_is_what_the_encoder_does_not_read(mine: Path, base: PipelineFolder) -> None:
    words = "one two three four five six seven eight nine ten".split() * 4
    add(mine, "long.png", picture(24), " ".join(words))
    [long] = [shown for shown in check_data(str(mine), base).pictures if shown.name == "long.png"]
    tokenizer = base.load("tokenizer_2").tokenizer_2
    read = tokenizer.decode(tokenizer(long.caption, truncation=True).input_ids, skip_special_tokens=True)
    assert f"{read} {long.cut_off}".split() == words
    assert long.num_tokens == len(tokenizer(long.caption, verbose=False).input_ids)


def test_near_duplicates_and_leaks(tmp_path: Path, base: PipelineFolder) -> None:
    for split, first in (("train", 0), ("dev", 10), ("test", 20)):
        for index in range(first, first + 4):
            add(tmp_path, f"{split}/{index}.png", picture(index), CAPTION.format(index))
    add(tmp_path, "train/copy.jpg", picture(1, (120, 110)), CAPTION.format("again"))
    add(tmp_path, "test/mirrored.png", ImageOps.mirror(picture(2)), CAPTION.format("mirrored"))
    found = kinds(check_data(str(tmp_path), base))
    assert found == {
        "leak": ["test/mirrored.png", "train/2.png"],
        "near-duplicate": ["train/1.png", "train/copy.jpg"],
    }


def test_leaks_are_found_in_data_that_cannot_be_used_yet(tmp_path: Path, base: PipelineFolder) -> None:
    for index, split in enumerate(("train", "train", "dev", "dev", "test", "test")):
        add(tmp_path, f"{split}/{index}.png", picture(index), CAPTION.format(index))
    add(tmp_path, "test/copy.jpg", picture(0), CAPTION.format("again"))
    (tmp_path / "dev/2.txt").unlink()
    found = kinds(check_data(str(tmp_path), base))
    assert found["leak"] == ["test/copy.jpg", "train/0.png"] and found["unusable"] == ["dev/2.png"]


def test_few_and_many_pictures(mine: Path, base: PipelineFolder) -> None:
    for index in range(4, 12):
        (mine / f"{index:02d}.png").unlink()
    check = check_data(str(mine), base)
    assert set(kinds(check)) == {"too-few", "few"}
    assert "at least 6 are needed" in str(check.problem)
    add(mine, "5.png", picture(5), CAPTION.format(5))
    add(mine, "6.png", picture(6), CAPTION.format(6))
    assert set(kinds(check_data(str(mine), base))) == {"few"}
    assert "many" in kinds(check_data("emoji/fluent-3d", base))


@pytest.mark.fault(22)
def test_what_cannot_be_used_is_listed_and_the_rest_is_checked(mine: Path, base: PipelineFolder) -> None:
    (mine / "00.txt").unlink()
    (mine / "01.txt").write_text(" ")
    add(mine, "same.png", picture(5), CAPTION.format("same"))
    add(mine, "camera.png", picture(23), "IMG_0042")
    (mine / "broken.png").write_bytes(b"no picture")
    (mine / "broken.txt").write_text("a caption")
    check = check_data(str(mine), base)
    assert kinds(check)["unusable"] == ["00.png", "01.png", "broken.png", "same.png"]
    assert kinds(check)["file-name"] == ["camera.png"]
    assert "01.png: no caption" in str(check.problem)
    shown = {picture.name: picture.thumbnail is not None for picture in check.pictures}
    assert len(shown) == 15 and [name for name, there in shown.items() if not there] == ["broken.png"]


def test_text_that_is_no_text_is_shown_and_breaks_nothing(tmp_path: Path, base: PipelineFolder) -> None:
    rows = []
    for index in range(8):
        picture(index).save(tmp_path / f"{index}\x1b[31m.png")
        rows.append({"file_name": f"{index}\x1b[31m.png", "text": "\ud800" if index == 3 else CAPTION})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check = check_data(str(tmp_path), base)
    assert kinds(check)["unusable"] == ["3\\x1b[31m.png"]
    assert "\\ud800" in data.write(check, tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("captions", "phrase"),
    [
        (["a fox, pixel art style", "a dog, Pixel Art Style", "art, pixel art style"], "pixel art style"),
        (["ohwx, a dog in a garden", "ohwx, a cat in a garden", "a fox, a garden, ohwx"], "ohwx"),
        (["photo of ohwx dog", "drawing of ohwx dog", "the ohwx dog sleeps"], "ohwx dog"),
        (
            ["ohwx on a hill, white sky", "an ohwx, white sky", "the ohwx, white sky", "red ohwx, rain"],
            "ohwx",
        ),
        (["a red fox", "a dog in the snow", "the sea"], ""),
        (["in the garden", "in the house"], ""),
        (["one"], ""),
        ([], ""),
    ],
)
def test_what_captions_share(captions: list[str], phrase: str) -> None:
    assert shared_phrase(captions) == phrase


def test_data_that_shares_nothing_is_told_so(tmp_path: Path, base: PipelineFolder) -> None:
    animals = "fox dog cat pig ape bat ant bee cow hen".split()
    for index, animal in enumerate(animals):
        add(tmp_path, f"{animal}.png", picture(index), f"{animal} " * 10 + str(index))
    assert kinds(check_data(str(tmp_path), base)) == {"no-common-word": []}


@pytest.mark.parametrize("broken", ["tokenizer_2/vocab.json", "vae/config.json"])
def test_a_base_that_cannot_be_read(tmp_path: Path, mine: Path, base: PipelineFolder, broken: str) -> None:
    shutil.copytree(base.path, tmp_path / "b", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "b" / broken).write_text("{}")
    with pytest.raises(UsageError, match=r"base .*b: "):
        check_data(str(mine), find_source(str(tmp_path / "b")))


# The page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        self.words.append(text)

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for found, attrs in self.tags if found == tag and name in attrs]


def test_the_page_shows_every_picture_once_and_what_is_wrong_first(mine: Path, base: PipelineFolder) -> None:
    add(mine, "camera.png", picture(23), "IMG_0042")
    (mine / "00.txt").unlink()
    (mine / "broken.png").write_bytes(b"no picture")
    check = check_data(str(mine), base)
    found = data.sections(check)
    assert [section.id for section in found] == ["unusable", "file-name", "fine"]
    page = Page(data.render(check))
    assert sorted(page.values("img", "alt")) == sorted({p.name for p in check.pictures} - {"broken.png"})
    assert page.values("section", "id") == ["answer", "unusable", "file-name", "fine"]


def test_the_page_is_one_file_that_escapes_and_loads_nothing(mine: Path, base: PipelineFolder) -> None:
    add(mine, "a'\"<b>.png", picture(30), HOSTILE)
    text = data.render(check_data(str(mine), base))
    page = Page(text)
    assert HOSTILE in page.words and "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert [policy for policy in page.values("meta", "content") if "default-src 'none'" in policy]
    assert all(source.startswith("data:image/webp;") for source in page.values("img", "src"))
    assert all(link.startswith("#") for link in page.values("a", "href")) and "plotly.js" not in text


def test_many_pictures_are_shown_smaller(
    mine: Path, base: PipelineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(mine, "large.png", picture(30, (640, 480)), CAPTION.format("large"))
    check = check_data(str(mine), base)

    def sizes() -> set[tuple[int, int]]:
        cards = [card for section in data.sections(check) for card in section.cards if card.thumbnail]
        uris = [card.thumbnail.uri for card in cards if card.thumbnail]
        return {Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in uris}

    assert sizes() == {(80, 80), (256, 192)}
    monkeypatch.setattr(data, "MAX_LARGE", 5)
    assert sizes() == {(80, 80), (128, 96)}


# The command


def test_check_prints_what_it_found(bench: Command, mine: Path) -> None:
    code, output, errors = bench("check", "mine")
    assert (code, errors) == (0, "")
    assert "12 (8 train, 2 dev, 2 test)" in output and "Nothing to mend" in output
    assert "Contact sheet: runs/check-mine.html" in output and "\x1b" not in output
    assert (mine.parent / "runs/check-mine.html").exists()


def test_exit_codes(bench: Command, mine: Path) -> None:
    add(mine, "short.png", picture(40), "ohwx fox")
    assert bench("check", "mine", "--strict")[0] == 0  # advice only
    add(mine, "camera.png", picture(23), "IMG_0042")
    assert bench("check", "mine")[0] == 0
    assert bench("check", "mine", "--strict")[0] == 1
    (mine / "00.txt").unlink()
    (mine / "01.png").write_bytes(b"")
    code, output, errors = bench("check", "mine")
    assert code == 2 and "Cannot be used yet: 2 problems" in output
    assert errors.splitlines() == [
        "bench: mine: 2 problems in 14 images",
        "00.png: no caption: there is no 00.txt",
        "01.png: an empty file",
    ]


def test_json_holds_the_same(bench: Command, mine: Path) -> None:
    add(mine, "camera.png", picture(23, (90, 80)), "IMG_0042")
    code, output, errors = bench("check", "mine", "--json")
    found = json.loads(output)
    assert (code, errors, found["usable"], found["phrase"]) == (0, "", True, "ohwx")
    assert found["levels"] == {"warning": 2, "advice": 1}
    assert {
        "kind": "file-name",
        "level": "warning",
        "names": ["camera.png"],
        "detail": "'IMG_0042'",
    } in found["findings"]
    [camera] = [shown for shown in found["pictures"] if shown["name"] == "camera.png"]
    assert (camera["size"], camera["num_words"]) == ([90, 80], 1)
    assert found["page"] == "runs/check-mine.html"


def test_captions_are_written_and_shown(bench: Command, tmp_path: Path) -> None:
    for index, animal in enumerate("fox dog cat owl elk eel".split()):
        add(tmp_path, f"mine/red-{animal}.png", picture(index), "")
    picture(9).save(tmp_path / "mine/IMG_0001.png")
    code, output, errors = bench(
        "caption", "mine", "--template", "a {caption}, in {trigger} style", "--trigger", "ohwx"
    )
    assert (code, errors) == (0, "")
    assert "red-cat.png: a red cat, in ohwx style" in output and "6 captions in all" in output
    assert "IMG_0001.png: no .txt" in output and "Written: mine/metadata.jsonl" in output
    (tmp_path / "mine/IMG_0001.png").unlink()
    assert bench("check", "mine")[0] == 0
    assert bench("caption", "mine")[0] == 2
