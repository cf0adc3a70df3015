"""The data half of the recipe: captions, choice of drawings, splits, and the built-in sets as committed."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py", reason="the recipe's own dependency")

from bench.builtin.recipe import captions, icons, rasterise, targets  # noqa: E402
from bench.builtin.recipe.data import as_arrays, compare_lines  # noqa: E402
from bench.builtin.recipe.packages import FLUENT_COLOR, SOURCES, all_packages  # noqa: E402
from bench.builtin.recipe.row import Row  # noqa: E402
from bench.builtin.recipe.splits import read_splits  # noqa: E402

EMOJI = Path(str(files("bench"))) / "builtin" / "emoji"
STYLES = [target.name for target in targets.TARGETS]
NUM_PICTURES = {"train": 60, "dev": 48, "test": 96}


def concept(
    name: str, *, codepoint: str = "1f600", group: str = "objects", subgroup: str = ""
) -> captions.Concept:
    return captions.Concept(name=name, caption=name, codepoint=codepoint, group=group, subgroup=subgroup)


def row(name: str, pixels: rasterise.Pixels, *, set: str = "noto", codepoint: str = "1f600") -> Row:
    return Row(
        set=set,
        role="base",
        split="train",
        name=name,
        caption=name,
        style="noto style",
        codepoint=codepoint,
        group="objects",
        subgroup="",
        flip_ok=True,
        licence="MIT",
        pixels=pixels,
    )


def noise(seed: int = 0) -> rasterise.Pixels:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def metadata(style: str, split: str) -> list[dict[str, str]]:
    lines = (EMOJI / style / split / "metadata.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


USES = {"rare": 3, "box": 12, "celebration": 26, "surprise": 5, "gift": 9, "143": 22, "good": 13}


def test_caption_is_name_class_word_and_the_two_most_used_keywords():
    text = captions.caption("wrapped gift", "celebration", ["surprise", "box", "rare", "gift"], USES)
    assert text == "wrapped gift, celebration, box, surprise"


@pytest.mark.parametrize("keyword", ["rare", "143", "good", "gift"])
def test_caption_skips_rare_slang_and_repeated_keywords(keyword):
    assert captions.caption("gift", "", [keyword], USES) == "gift"


def test_caption_says_no_word_twice():
    assert captions.caption("timer clock", "clock", [], {}) == "timer clock"
    assert captions.caption("performing arts", "art", [], {}) == "performing arts, art"


def test_plain_names_have_no_typographic_marks():
    assert captions.plain("Japanese “here” button") == "japanese here button"
    assert captions.plain("keycap: 1") == "keycap, 1"
    assert captions.plain("woman’s boot") == "woman's boot"


def test_what_cldr_does_not_know_is_called_by_its_icon_name():
    unknown = captions.unknown_concept("man-in-suit-levitating-2", "Smiley People")
    assert (unknown.name, unknown.codepoint, unknown.group) == ("man in suit levitating", "", "smiley-people")


@pytest.mark.parametrize(
    ("name", "subgroup", "flip_ok"),
    [
        ("lion", "animal-mammal", True),
        ("thumbs up", "hand-fingers-closed", False),
        ("a button", "alphanum", False),
    ],
)
def test_pictures_with_a_side_are_not_mirrored(name, subgroup, flip_ok):
    assert concept(name, subgroup=subgroup).flip_ok is flip_ok


@pytest.mark.parametrize(
    ("source", "icon", "name", "wanted"),
    [
        ("noto", "paperclip", "paperclip", True),
        ("fluent-flat", "paperclip", "paperclip", False),
        ("fluent-3d", "video-game", "video game", False),
        ("twemoji", "flag-france", "flag, france", False),
        ("twemoji", "white-flag", "white flag", True),
        ("noto", "family-man-boy", "family, man, boy", False),
        ("noto", "family", "family", True),
    ],
)
def test_which_drawings_are_used(source, icon, name, wanted):
    assert icons.is_wanted(source, icon, concept(name)) is wanted


def test_fluent_color_is_listed_for_its_names_and_never_drawn():
    assert FLUENT_COLOR in all_packages()
    assert FLUENT_COLOR not in [source.package for source in SOURCES]
    assert all("fluent-emoji-3d" not in source.package.name for source in SOURCES if source.role == "base")


def test_fxemoji_drawings_are_cc_by_whatever_its_package_says():
    assert {source.name: source.licence for source in SOURCES}["fxemoji"] == "CC-BY-4.0"


def test_svg_is_drawn_on_white_inside_the_margin():
    body = '<rect width="10" height="10" fill="#ff0000"/>'
    picture = rasterise.draw_svg(rasterise.svg(body, 10, 10))
    assert picture.shape == (64, 64, 3)
    assert (picture[2:62, 2:62] == [255, 0, 0]).all()
    assert (picture[:2] == 255).all() and (picture[:, 62:] == 255).all()


def test_a_wide_drawing_keeps_its_proportions():
    picture = rasterise.draw_svg(rasterise.svg('<rect width="20" height="10"/>', 20, 10))
    black = (picture == 0).all(axis=-1)
    assert (black.any(axis=0).sum(), black.any(axis=1).sum()) == (60, 30)


def test_blank_pictures_are_told():
    assert rasterise.is_blank(np.full((64, 64, 3), 255, dtype=np.uint8))
    assert not rasterise.is_blank(noise())


def test_pixel16_is_16_by_16_blocks_of_16_colours():
    picture = targets.pixel16(noise())
    blocks = picture.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(targets.PALETTE) == len(np.unique(targets.PALETTE, axis=0)) == 16
    assert {tuple(c) for c in picture.reshape(-1, 3).tolist()} <= {tuple(c) for c in targets.PALETTE.tolist()}


@pytest.mark.parametrize("num_colours", [2, 300])
def test_png_keeps_every_pixel(tmp_path, num_colours):
    picture = noise() if num_colours > 256 else noise() // 128 * 255
    targets.write_png(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as read:
        assert (np.asarray(read.convert("RGB")) == picture).all()


def test_arrays_keep_one_value_a_row():
    arrays = as_arrays([row("lion", noise()), row("frog", noise(1), codepoint="1f438")])
    assert arrays["images"].shape == (2, 64, 64, 3)
    assert arrays["codepoint"].tolist() == ["1f600", "1f438"]
    assert arrays["flip_ok"].dtype == np.bool_


def test_comparison_counts_what_agrees():
    ours = as_arrays([row("lion", noise()), row("frog", noise(1))])
    theirs = as_arrays([row("lion", noise()), row("bear", noise(1))])
    lines = compare_lines(ours, theirs)
    assert lines[0].split()[-4:] == ["1", "of", "2", "(50.00%)"]
    assert lines[-1] == "rows only here: 1"


def test_no_concept_is_in_two_splits():
    splits = read_splits()
    for style in STYLES:
        parts = [splits.val, *map(frozenset, splits.of_target(style).values())]
        assert len(frozenset.union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize("style", STYLES)
def test_built_in_set_matches_its_metadata(style):
    phrase = json.loads((EMOJI / style / "set.json").read_text("utf-8"))["style_phrase"]
    for split, num_pictures in NUM_PICTURES.items():
        records = metadata(style, split)
        listed = [record["file_name"] for record in records]
        assert listed == sorted(path.name for path in (EMOJI / style / split).glob("*.png"))
        assert len(listed) == num_pictures
        assert all(record["text"].endswith(f", {phrase}") for record in records)


@pytest.mark.parametrize("style", STYLES)
def test_built_in_pictures_are_64_pixels_wide(style):
    for path in (EMOJI / style).glob("*/*.png"):
        with Image.open(path) as picture:
            assert picture.size == (64, 64)


@pytest.mark.parametrize("style", STYLES)
def test_built_in_splits_share_no_name(style):
    names = [record["text"].split(", ")[0] for split in NUM_PICTURES for record in metadata(style, split)]
    assert len(names) == len(set(names)) == 204


def test_the_three_sets_ask_for_the_same_dev_and_test_concepts():
    for split in ("dev", "test"):
        asked = [[record["file_name"] for record in metadata(style, split)] for style in STYLES]
        assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize("style", STYLES)
def test_every_set_says_whose_it_is(style):
    said = json.loads((EMOJI / style / "set.json").read_text("utf-8"))
    assert said["name"] == style and said["licence"] and said["attribution"]
    assert all((EMOJI / style / split).is_dir() for split in NUM_PICTURES)
