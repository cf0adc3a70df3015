"""Variants: crops within the picture, shuffles that keep what they must, and which of them a space needs."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.buckets import fit
from bench.errors import UsageError
from bench.space import SearchSpace
from bench.variants import AS_THEY_ARE, CENTRE, NUM_SHUFFLES, Variants, place_of, shuffled
from bench.yaml import validate

CAPTION = "ohwx, a red fox, snow, night, side view, from below"
TAGS = sorted(CAPTION.split(", "))


def space(**changes: Any) -> SearchSpace:
    default = {"rank": 8, "alpha": 16, "learning_rate": 1e-4, "epochs": 2, **changes.pop("default", {})}
    data = {"base": "emoji-xl", "parameters": {"rank": {"choices": [8]}}, "default": default}
    return validate({**data, **changes}, SearchSpace, "my.yaml")


# Views


@pytest.mark.parametrize(
    ("size", "shape"), [((90, 60), (32, 32)), ((61, 90), (32, 32)), ((90, 60), (24, 40))]
)
def test_crops_lie_within_the_picture_and_differ(size: tuple[int, int], shape: tuple[int, int]) -> None:
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    picture = Image.fromarray(np.stack([across, down, down * 0], axis=-1).astype(np.uint8))
    crops = [fit(picture, *shape, place=place_of("a", crop)) for crop in range(4)]
    assert np.array_equal(crops[0], fit(picture, *shape))
    assert len({crop.tobytes() for crop in crops}) == 4
    spans = np.array([np.ptp(crop.astype(int), axis=(0, 1)) for crop in crops])
    assert (np.ptp(spans, axis=0) <= 3).all()  # as large, elsewhere
    corners = [fit(picture, *shape, place=place)[:, :, :2] for place in ((0, 0), (1, 1))]
    assert corners[0].min() <= 2 and (corners[1].max(axis=(0, 1)) >= np.array(size) - 3).any()


def test_where_a_crop_lies_follows_from_the_picture_and_its_number() -> None:
    assert place_of("a", 0) == place_of("b", 0) == CENTRE
    places = [place_of(digest, crop) for digest in "ab" for crop in range(1, 9)]
    assert len(set(places)) == 16 and places[0] == place_of("a", 1)
    assert all(0 <= share < 1 for place in places for share in place)


def test_views_are_crops_then_mirrored_crops() -> None:
    assert AS_THEY_ARE.views == [(0, False)] and not AS_THEY_ARE.any
    assert Variants(flip=True, crops=2).views == [(0, False), (1, False), (0, True), (1, True)]


# Wordings


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_shuffle_holds_all_tags_and_keeps_the_first(keep: int) -> None:
    texts = [shuffled(CAPTION, keep, number) for number in range(NUM_SHUFFLES)]
    assert all(sorted(text.split(", ")) == TAGS for text in texts)
    assert {tuple(text.split(", ")[:keep]) for text in texts} == {tuple(CAPTION.split(", ")[:keep])}
    assert len(set(texts)) > 3
    assert texts == [shuffled(CAPTION, keep, number) for number in range(NUM_SHUFFLES)]


def test_the_trigger_stays_first() -> None:
    for number in range(NUM_SHUFFLES):
        assert shuffled(CAPTION, 0, number, "OHWX").startswith("ohwx, ")
    assert any(not shuffled(CAPTION, 0, n, "ohw").startswith("ohwx, ") for n in range(NUM_SHUFFLES))


@pytest.mark.parametrize("caption", ["a red fox", "ohwx, a red fox", "", " , ,", "a fox,"])
def test_a_caption_with_nothing_to_shuffle_stays(caption: str) -> None:
    assert shuffled(caption, 0, 3, "ohwx") == caption


def test_wordings_are_the_caption_and_its_shuffles_for_each_number_kept() -> None:
    variants = Variants(keep_tags=(1, 3))
    texts = variants.wordings(CAPTION)
    assert len(texts) == variants.num_wordings == 1 + 2 * NUM_SHUFFLES and texts[0] == CAPTION
    assert texts[variants.first_shuffle(3)] == shuffled(CAPTION, 3, 0)
    with pytest.raises(ValueError, match="not in"):
        variants.first_shuffle(2)


# What a space needs


def test_a_space_without_variants_needs_none() -> None:
    assert space().variants == AS_THEY_ARE


def test_a_space_needs_all_that_its_trials_may_draw() -> None:
    parameters = {
        "flip": {"choices": [False, True]},
        "crops": {"choices": [1, 4]},
        "shuffle_caption": {"choices": [True, False]},
        "keep_tags": {"choices": [2, 0]},
        "caption_dropout": {"low": 0, "high": 0.2},
    }
    mine = space(parameters=parameters, trigger="ohwx")
    assert mine.variants == Variants(flip=True, crops=4, keep_tags=(0, 2), trigger="ohwx")
    config = mine.config_of({**mine.parameters_of(mine.default), "flip": True, "caption_dropout": 0.1})
    assert (config.flip, config.crops, config.caption_dropout) == (True, 1, 0.1)


def test_what_the_default_fixes_is_needed_too() -> None:
    mine = space(default={"flip": True, "crops": 3, "shuffle_caption": True, "keep_tags": 1})
    assert mine.variants == Variants(flip=True, crops=3, keep_tags=(1,)) == mine.default.variants


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"default": {"crops": 0}}, "my.yaml: default.crops: .* greater than or equal to 1"),
        ({"default": {"flip": "sideways"}}, "my.yaml: default.flip: .*boolean"),
        ({"default": {"keep_tags": -1}}, "my.yaml: default.keep_tags: "),
        ({"parameters": {"crops": {"choices": [1, 65]}}}, "parameters.crops: .*less than or equal to 64"),
        ({"parameters": {"flip": {"choices": [False, 2]}}}, "parameters.flip.choices.1: .*boolean"),
        ({"parameters": {"flip": {"low": 0, "high": 1}}}, "parameters.flip.choices: required key is missing"),
        ({"parameters": {"flip": {"choices": [True]}}}, "default: flip=False is not in the space"),
    ],
)
def test_bad_values_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        space(**changes)
    assert "\n" not in str(raised.value)
