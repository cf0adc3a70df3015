"""What a figure's point shows when it is pointed at: its settings, scores and images."""

from typing import NamedTuple

from bench.run import Run, image_files
from bench.scoring.metrics import METRICS
from reports.images import MAX_CHARACTERS, sheet
from reports.trials import Point, point_folder
from reports.wording import plus_minus, settings

NUM_IMAGES, PIXELS = 4, 80
SHARE = 0.2
"""Of the page's room for images."""


class Card(NamedTuple):
    title: str
    href: str
    """Of the trial's page, from the run folder."""
    kind: str
    settings: list[tuple[str, str]]
    """Those that were searched."""
    scores: list[tuple[str, str]]
    sheet: str
    """The first prompts' images in a row, as a data URI; empty where there is no room for more."""


def key_of(point: Point) -> str:
    return f"{point.label}@{point.epoch}" if point.scores else ""


def cards(run: Run, points: list[Point]) -> dict[str, Card]:
    """One a scored point, by its key."""
    shown = list(dict.fromkeys([run.space.select_by, *run.space.objectives]))
    searched = [name for name in run.space.distributions if name != "epochs"]
    left, found = MAX_CHARACTERS * SHARE, {}
    for point in points:
        if not (key := key_of(point)):
            continue
        texts = settings(point.config)
        images = _sheet(run, point) if left > 0 else ""
        left -= len(images)
        found[key] = Card(
            title=point.title[:1].upper() + point.title[1:],
            href=page_of(point.label),
            kind=point.kind,
            settings=[(name.replace("_", " "), texts[name]) for name in searched],
            scores=[
                (METRICS[name].label, plus_minus(point.scores[name].value, point.scores[name].stderr))
                for name in shown
                if name in point.scores
            ],
            sheet=images if left > 0 else "",
        )
    return found


def page_of(label: str) -> str:
    """The page of a trial of the search, from the run folder."""
    return f"trials/{label}/trial.html"


def _sheet(run: Run, point: Point) -> str:
    """Of the first prompts, with their first seed."""
    seeds = min((len(prompt.seeds) for prompt in run.metadata.prompts.get("dev", [])), default=1)
    return sheet(image_files(point_folder(run, point))[::seeds][:NUM_IMAGES], PIXELS)
