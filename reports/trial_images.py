"""Images on the page of a trial: by prompt and seed at every scored epoch, beside base, default and real."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from os.path import relpath
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from bench.run import WRITERS, PromptRecord, Run, image_files
from reports.images import MAX_SEEDS, SMALL_PIXELS, Thumbnail, opened
from reports.memorization import Maker

MAX_CHARACTERS = 700_000
"""Of the thumbnails of a page, which is to stay under 1 MB."""
QUALITY = 88
"""Of the thumbnails, which are links to what was drawn: a fifth of the bytes of lossless ones."""
EXACT_BYTES = 1500
"""Files up to this size stay exact: pixel art is small, and shows every fault."""
REMEMBERED = 2048
"""Thumbnails: those of base, default and true pictures, and of one trial."""


class Shot(NamedTuple):
    """One image, to be seen while its epoch and its seed are chosen; 0 means: whichever is."""

    epoch: int
    """From 1: the place among the epochs, not their number."""
    seed: int
    thumbnail: Thumbnail
    href: str
    """The image in full size, from the page's folder."""


class Cell(NamedTuple):
    title: str
    kind: str
    shots: list[Shot]


class Row(NamedTuple):
    caption: str
    cells: list[Cell]


class Source(NamedTuple):
    """A column: evaluations whose images are shown, one an epoch, or one for all epochs."""

    title: str
    kind: str
    folders: list[Path]


class Images(NamedTuple):
    rows: list[Row]
    seeds: int
    num_prompts: int
    """Prompts there are; rows may be fewer."""


def maker() -> Maker:
    """Makes thumbnails, and remembers them: images of the base stand on the page of every trial."""
    return lru_cache(REMEMBERED)(thumbnail)


def images(run: Run, sources: list[Source], page: Path, make: Maker) -> Images:
    """Rows of dev prompts until the page is full; `page` is the folder that it lies in."""
    prompts = run.metadata.prompts.get("dev", [])
    seeds = min((len(prompt.seeds) for prompt in prompts), default=0)
    files = [[image_files(folder) for folder in source.folders] for source in sources]
    rows: list[Row] = []
    left = MAX_CHARACTERS
    with ThreadPoolExecutor(WRITERS) as workers:
        for index, prompt in enumerate(prompts):
            cells = [
                Cell(source.title, source.kind, _shots(found, index, seeds, page, make, workers))
                for source, found in zip(sources, files, strict=True)
            ]
            row = Row(prompt.text, [*cells, *_real(run, prompt, page, make)])
            left -= sum(len(shot.thumbnail.uri) for cell in row.cells for shot in cell.shots)
            if left < 0:
                break
            rows.append(row)
    return Images(rows, min(seeds, MAX_SEEDS), len(prompts))


def _shots(
    files: list[list[Path]], index: int, seeds: int, page: Path, make: Maker, workers: ThreadPoolExecutor
) -> list[Shot]:
    """Of one prompt, epoch by epoch, seed by seed; without those that cannot be read."""
    wanted = [
        (epoch if len(files) > 1 else 0, seed, file)
        for epoch, found in enumerate(files, start=1)
        for seed, file in enumerate(found[index * seeds : (index + 1) * seeds][:MAX_SEEDS], start=1)
    ]
    made = workers.map(make, [file for _, _, file in wanted])
    return [
        Shot(epoch, seed, shown, quote(relpath(file, page)))
        for (epoch, seed, file), shown in zip(wanted, made, strict=True)
        if shown
    ]


def _real(run: Run, prompt: PromptRecord, page: Path, make: Maker) -> list[Cell]:
    """The true picture, where there is one; a name that leads out of the run folder is not followed."""
    if prompt.real is None:
        return []
    file = (run.path / prompt.real).resolve()
    shown = make(file) if file.is_relative_to(run.path.resolve()) else None
    shots = [Shot(0, 0, shown, quote(relpath(file, page.resolve())))] if shown else []
    return [Cell("real picture", "real", shots)]


def thumbnail(path: Path) -> Thumbnail | None:
    """A data URI, at most SMALL_PIXELS wide and high; None where there is no readable image."""
    picture = opened(path)
    if picture is None:
        return None
    small = max(picture.size) <= SMALL_PIXELS
    picture.thumbnail((SMALL_PIXELS, SMALL_PIXELS), Image.Resampling.LANCZOS)
    exact, buffer = small and path.stat().st_size <= EXACT_BYTES, io.BytesIO()
    picture.save(buffer, "WEBP", lossless=exact, quality=QUALITY, method=2)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # Markup, since there is nothing in it to escape, or to search for secrets.
    return Thumbnail(Markup("data:image/webp;base64,") + Markup(data), small)
