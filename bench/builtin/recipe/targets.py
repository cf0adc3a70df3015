"""The three LoRA targets: 60 train, 48 dev and 96 test pictures in one style each, with captions."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.builtin.recipe.captions import slug
from bench.builtin.recipe.rasterise import SIZE, Pixels
from bench.builtin.recipe.row import Row
from bench.builtin.recipe.splits import Splits


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A style to be learned; its pictures are those of the set `source`."""

    name: str
    source: str
    style_phrase: str
    licence: str
    origin: str
    attribution: str


CHANGES = "Changes: drawn at 64x64 on white, selected and captioned. No endorsement implied."

TARGETS = (
    Target(
        name="streamline",
        source="streamline",
        style_phrase="outline cartoon style",
        licence="CC-BY-4.0",
        origin="@iconify-json/streamline-emojis 1.2.4",
        attribution="Streamline Emojis, Streamline (CC BY 4.0),"
        " https://github.com/webalys-hq/streamline-vectors. " + CHANGES,
    ),
    Target(
        name="pixel16",
        source="noto",
        style_phrase="pixel art style",
        licence="Apache-2.0",
        origin="@iconify-json/noto 1.2.9",
        attribution="Derived from Noto Emoji, Google (Apache-2.0). Changes: drawn at 16x16 in 16 colours, "
        "selected and captioned. No endorsement implied.",
    ),
    Target(
        name="fluent-3d",
        source="fluent-3d",
        style_phrase="glossy 3d style",
        licence="MIT",
        origin="@lobehub/fluent-emoji-3d 1.1.0",
        attribution="Fluent Emoji, (c) Microsoft Corporation (MIT), 3D rasters via LobeHub (MIT). " + CHANGES,
    ),
)

PIXEL_GRID = 16

# The 16 colours of pixel16, fixed once for all its pictures so that they never move.
PALETTE = np.array(
    [
        [255, 255, 255],
        [249, 200, 41],
        [243, 237, 231],
        [208, 219, 224],
        [243, 195, 100],
        [246, 209, 168],
        [211, 160, 40],
        [182, 188, 188],
        [146, 109, 54],
        [72, 64, 54],
        [160, 162, 129],
        [231, 62, 47],
        [234, 101, 140],
        [102, 111, 110],
        [117, 169, 210],
        [34, 134, 203],
    ],
    dtype=np.float64,
)


def pixel16(picture: Pixels) -> Pixels:
    """The picture as 16x16 blocks, each in the palette colour nearest to its mean: uint8 [64, 64, 3]."""
    block = SIZE // PIXEL_GRID
    means: NDArray[np.float64] = picture.reshape(PIXEL_GRID, block, PIXEL_GRID, block, 3).mean(axis=(1, 3))
    distance = ((means[:, :, None] - PALETTE) ** 2).sum(axis=-1)
    small: Pixels = PALETTE.astype(np.uint8)[distance.argmin(axis=-1)]
    return small.repeat(block, axis=0).repeat(block, axis=1)


def target_rows(target: Target, rows: list[Row], splits: Splits) -> Iterator[tuple[str, str, Row, Pixels]]:
    """Split, file name, row and pixels of each picture of a target, in the order of the files."""
    first: dict[str, Row] = {}
    for row in rows:
        if row.set == target.source:
            first.setdefault(row.codepoint, row)  # some vendors draw one concept two or three times
    for split, codepoints in splits.of_target(target.name).items():
        for number, codepoint in enumerate(codepoints):
            row = first[codepoint]
            pixels = pixel16(row.pixels) if target.name == "pixel16" else row.pixels
            yield split, f"{number:03d}_{file_words(row.name)}.png", row, pixels


def file_words(name: str) -> str:
    """A picture's name in the spelling of its file: woman's boot -> woman-s-boot."""
    return slug(name.replace("'", " "))


def write_target(target: Target, rows: list[Row], splits: Splits, folder: Path) -> None:
    """Write the target as an image folder: PNGs with `metadata.jsonl` for each split, and `set.json`."""
    lines: dict[str, list[str]] = {}
    for split, file_name, row, pixels in target_rows(target, rows, splits):
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_png(pixels, folder / split / file_name)
        text = f"{row.caption}, {target.style_phrase}"
        lines.setdefault(split, []).append(json.dumps({"file_name": file_name, "text": text}))
    for split, records in lines.items():
        (folder / split / "metadata.jsonl").write_text("\n".join(records) + "\n", "utf-8")
    (folder / "set.json").write_text(json.dumps(description(target), indent=1) + "\n", "utf-8")


def description(target: Target) -> Mapping[str, str]:
    """What `set.json` says of a target."""
    return {
        "name": target.name,
        "style_phrase": target.style_phrase,
        "licence": target.licence,
        "source": target.origin,
        "attribution": target.attribution,
    }


def write_png(pixels: Pixels, path: Path) -> None:
    """Write an optimised PNG, with a palette where the picture has few enough colours for one."""
    picture = Image.fromarray(pixels)
    colours = picture.getcolors(256)
    if colours is not None:
        picture = _with_palette(pixels)
    picture.save(path, optimize=True)


def _with_palette(pixels: Pixels) -> Image.Image:
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    picture = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    picture.putpalette(colours.ravel().tolist())
    return picture
