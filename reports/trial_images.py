"""Images on the page of a trial: by prompt and seed at every scored epoch, beside base, default and real."""

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from bench.run import WRITERS, PromptRecord, Run
from reports.images import (
    MAX_SEEDS,
    SMALL_PIXELS,
    Cell,
    Column,
    Grid,
    PromptRow,
    Thumbnail,
    read_picture,
)
from reports.memorization import Maker

MAX_CHARACTERS = 700_000
"""Of the thumbnails of a page, which is to stay under 1 MB."""
QUALITY = 88
"""Of the thumbnails, which are links to what was drawn: a fifth of the bytes of lossless ones."""
EXACT_BYTES = 1500
"""Files up to this size stay exact: pixel art is small, and shows every fault."""
REMEMBERED = 2048
"""Thumbnails: those of base, default and true pictures, and of one trial."""


def maker() -> Maker:
    """Makes thumbnails, and remembers them: images of the base stand on the page of every trial."""
    return lru_cache(REMEMBERED)(thumbnail)


def images(run: Run, columns: list[Column], page: Path, make: Maker) -> Grid:
    """Rows of dev prompts until the page is full; `page` is the folder that it lies in."""
    prompts = run.metadata.prompts.get("dev", [])
    seeds = min((len(prompt.seeds) for prompt in prompts), default=0)
    rows: list[PromptRow] = []
    left = MAX_CHARACTERS
    with ThreadPoolExecutor(WRITERS) as workers:
        for index, prompt in enumerate(prompts):
            cells = [_cell(column, index, seeds, page, make, workers) for column in columns]
            row = PromptRow(prompt.text, [*cells, *_real(run, prompt, page, make)])
            left -= sum(len(image.uri) for cell in row.cells for image in cell.thumbnails if image)
            if left < 0:
                break
            rows.append(row)
    return Grid(rows, min(seeds, MAX_SEEDS), len(prompts))


def _cell(
    column: Column, index: int, seeds: int, page: Path, make: Maker, workers: ThreadPoolExecutor
) -> Cell:
    files = column.images[index * seeds : (index + 1) * seeds][:MAX_SEEDS]
    made = workers.map(make, files)
    shown = [_linked(image, file, page) for image, file in zip(made, files, strict=True)]
    value = column.values[index] if index < len(column.values) else None
    return Cell(column.title, column.kind, shown or [None], value)


def _real(run: Run, prompt: PromptRecord, page: Path, make: Maker) -> list[Cell]:
    """The true picture, where there is one; a name that leads out of the run folder is not followed."""
    if prompt.real is None:
        return []
    file = (run.path / prompt.real).resolve()
    shown = make(file) if file.is_relative_to(run.path.resolve()) else None
    return [Cell("real picture", "real", [_linked(shown, file, page.resolve())], None)]


def _linked(image: Thumbnail | None, file: Path, page: Path) -> Thumbnail | None:
    return image._replace(href=quote(os.path.relpath(file, page))) if image else None


def thumbnail(path: Path) -> Thumbnail | None:
    """A data URI, at most SMALL_PIXELS wide and high; None where there is no readable image."""
    picture = read_picture(path)
    if picture is None:
        return None
    small = max(picture.size) <= SMALL_PIXELS
    picture.thumbnail((SMALL_PIXELS, SMALL_PIXELS), Image.Resampling.LANCZOS)
    exact, buffer = small and path.stat().st_size <= EXACT_BYTES, io.BytesIO()
    picture.save(buffer, "WEBP", lossless=exact, quality=QUALITY, method=2)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # Markup, since there is nothing in it to escape, or to search for secrets.
    return Thumbnail(Markup("data:image/webp;base64,") + Markup(data), small)
