"""Copies that were resized, recompressed, cropped or mirrored are found; different drawings are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bench.dataset import load_dataset
from bench.near_duplicates import Likeness, groups, near_duplicates

Change = Callable[[Image.Image], Image.Image]


def drawings(name: str) -> list[Image.Image]:
    dataset = load_dataset(f"emoji/{name}")
    return [example.image() for example in dataset.train + dataset.dev + dataset.test]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, *shares: float) -> Image.Image:
    left, top, right, bottom = shares
    width, height = image.size
    return image.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


CHANGES: dict[str, Change] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "another shape": lambda image: image.resize((image.width * 2, image.height * 3 // 2)),
    "jpeg": lambda image: jpeg(image, 75),
    "poor jpeg": lambda image: jpeg(image, 50),
    "cropped": lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05),
    "cropped on one side": lambda image: cropped(image, 0.1, 0, 0, 0),
    "mirrored": ImageOps.mirror,
    "mirrored, cropped, jpeg": lambda image: jpeg(
        cropped(ImageOps.mirror(image), 0.05, 0.05, 0.05, 0.05), 75
    ),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_others(change: str) -> None:
    pictures = drawings("fluent-3d")[:24]
    copies = [CHANGES[change](picture) for picture in pictures[:8]]
    found = [(pair.first, pair.second) for pair in near_duplicates([*pictures, *copies])]
    assert found == [(index, 24 + index) for index in range(8)]


@pytest.mark.parametrize(("name", "alike"), [("fluent-3d", 0), ("pixel16", 2), ("streamline", 7)])
def test_hardly_any_of_20706_pairs_of_drawings_are_called_alike(name: str, alike: int) -> None:
    assert len(near_duplicates(drawings(name))) <= alike


def test_another_colour_is_another_picture() -> None:
    red, blue = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    for image, colour in ((red, "red"), (blue, "blue")):
        image.paste(colour, (16, 16, 48, 40))
    assert near_duplicates([red, blue]) == []
    assert len(near_duplicates([red, red.resize((40, 40))])) == 1


def test_pictures_of_one_colour_and_lonely_ones() -> None:
    assert near_duplicates([]) == near_duplicates([Image.new("RGB", (32, 32))]) == []
    assert near_duplicates([Image.new("RGB", (32, 32), "red"), Image.new("RGB", (40, 32), "white")]) == []


def test_a_photograph_like_picture_survives_what_sites_do_to_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 9, 12, 3), np.uint8)
    first, second = (
        Image.fromarray(pixels).resize((1200, 900), Image.Resampling.BICUBIC) for pixels in noise
    )
    smaller = jpeg(first.resize((400, 300)), 60)
    assert [(pair.first, pair.second) for pair in near_duplicates([first, second, smaller])] == [(0, 2)]


def test_pairs_join_into_groups() -> None:
    pairs = [(0, 4), (1, 2), (4, 7), (2, 9), (1, 9)]
    assert groups(Likeness(first, second, 0.1) for first, second in pairs) == [[0, 4, 7], [1, 2, 9]]
