"""Images of a run as thumbnails inside the page: one row a prompt, one column a set of images."""

import base64
import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

from bench.pictures import FORMATS
from bench.run import (
    PromptRecord,
    Run,
    has_evaluation,
    image_files,
    read_evaluation,
)

THUMBNAIL_PIXELS = 256
SMALL_PIXELS = 128
"""Images up to this size are kept as they are and enlarged without smoothing."""
MAX_PROMPTS = 48
MAX_SEEDS = 4
NUM_AT_A_GLANCE = 4
"""Prompts whose images stand beside the verdict once more."""
MAX_CHARACTERS = 8_500_000
"""Of all thumbnails of a page: with plotly.js (4.8 MB) it stays under 15 MB."""


class Column(NamedTuple):
    """A set of images to show: `images` in the order of an evaluation."""

    title: str
    kind: str
    """`base`, `default`, `winner`, `a` or `b`: decides the colour."""
    images: list[Path]
    values: list[float]
    """One score a prompt, or empty."""


class Thumbnail(NamedTuple):
    uri: str
    pixelated: bool
    href: str = ""
    """Of the image in full size, from the folder of the page; empty where that is not known."""


class Cell(NamedTuple):
    title: str
    kind: str
    thumbnails: list[Thumbnail | None]
    """One a seed; the true picture has just one."""
    value: float | None


class PromptRow(NamedTuple):
    caption: str
    cells: list[Cell]


class Grid(NamedTuple):
    rows: list[PromptRow]
    seeds: int
    num_prompts: int
    """Prompts there are; rows may be fewer."""


def grid(
    run: Run,
    prompts: list[PromptRecord],
    columns: list[Column],
    order: list[int],
    share: float = 1.0,
    at_a_glance: int = NUM_AT_A_GLANCE,
    page: Path | None = None,
) -> Grid:
    """Rows for prompts in `order`, until this grid's share of the page is full.

    The images of the first `at_a_glance` stand in the page twice. From the folder `page` thumbnails lead to
    the images in full size.
    """
    rows: list[PromptRow] = []
    seeds = min((len(prompt.seeds) for prompt in prompts), default=0)
    left = MAX_CHARACTERS * share
    for index in order[:MAX_PROMPTS]:
        cells = [_cell(column, index, seeds, page) for column in columns]
        cells += [_real(run, prompts[index], page)] if prompts[index].real is not None else []
        row = PromptRow(prompts[index].text, cells)
        size = sum(len(image.uri) for cell in row.cells for image in cell.thumbnails if image)
        left -= 2 * size if len(rows) < at_a_glance else size
        if left < 0:
            break
        rows.append(row)
    return Grid(rows, min(seeds, MAX_SEEDS), len(order))


def column(title: str, kind: str, folders: list[Path], metric: str) -> Column:
    """The images of the first of several evaluations, with each prompt's mean score over all of them."""
    found = [folder for folder in folders if has_evaluation(folder)]
    values = [read_evaluation(folder).per_prompt.get(metric, []) for folder in found]
    means = [sum(entries) / len(entries) for entries in zip(*values, strict=False)]
    return Column(title, kind, image_files(found[0]) if found else [], means)


def thumbnail(path: Path, page: Path | None = None) -> Thumbnail | None:
    """A data URI, with the way to the file from the folder `page`; None where there is no readable image."""
    picture = read_picture(path)
    if picture is None:
        return None
    found = thumbnail_of(picture)
    return found._replace(href=quote(os.path.relpath(path, page))) if page else found


def read_picture(path: Path) -> Image.Image | None:
    """RGB; None where there is no readable image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def thumbnail_of(picture: Image.Image) -> Thumbnail:
    """A data URI of an RGB picture."""
    picture = picture.copy()
    small = max(picture.size) <= SMALL_PIXELS
    if not small:
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    # Of lossless files quality is the effort: 100 takes twice as long as 0 and saves 1 %.
    return Thumbnail(_uri(picture, lossless=small, quality=0 if small else 82), small)


def sheet(files: list[Path], pixels: int) -> str:
    """A data URI of several images in a row, each as high as `pixels` at most; empty without an image."""
    pictures = [picture for file in files if (picture := read_picture(file))]
    if not pictures:
        return ""
    side = min(pixels, max(pictures[0].size))
    row = Image.new("RGB", (side * len(pictures), side))
    for index, picture in enumerate(pictures):
        row.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (index * side, 0))
    return _uri(row, lossless=False, quality=78)


def _uri(picture: Image.Image, *, lossless: bool, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _cell(column: Column, index: int, seeds: int, page: Path | None) -> Cell:
    files = column.images[index * seeds : (index + 1) * seeds][:MAX_SEEDS]
    value = column.values[index] if index < len(column.values) else None
    return Cell(column.title, column.kind, [thumbnail(file, page) for file in files] or [None], value)


def _real(run: Run, prompt: PromptRecord, page: Path | None) -> Cell:
    """The true picture; a name that leads out of the run folder is not followed."""
    image = None
    if prompt.real is not None:
        path = (run.path / prompt.real).resolve()
        folder = page.resolve() if page else None
        image = thumbnail(path, folder) if path.is_relative_to(run.path.resolve()) else None
    return Cell("real picture", "real", [image], None)
