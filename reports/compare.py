"""The report of a comparison: two or more sides on the same test prompts -> one HTML file."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.comparison import MIRRORED, Comparison, MetricComparison, ShownMetric, Side
from bench.files import write_text
from bench.run import read_adapter_record
from bench.scoring.metrics import METRICS, title
from reports import concepts, page, tables
from reports.cards import page_of
from reports.images import NUM_AT_A_GLANCE, Column, Grid, Thumbnail, column, grid
from reports.tracks import Track, tracks
from reports.trial_images import thumbnail
from reports.verdict import Fact, Verdict
from reports.wording import (
    MISSING,
    capital,
    decimals_of,
    direction,
    duration,
    number,
    p_value,
    plural,
    plus_minus,
    qualifier,
    settings,
    trial_name,
)

NUM_EXTREMES = 4
"""Prompts shown as the best and the worst for A."""
MAX_BARS = 200
"""Prompts whose bars show images."""
MAX_NAME, MAX_FILE_NAME = 64, 140
FLOOR = "the luck of the default configuration, and others may vary much more"
GROUPS = {"shown": "Shown without a verdict", "alarm": "Alarms: has it copied its training pictures?"}
KEPT = {
    "kept": "keeps what it was not trained on",
    "lost": "has lost some of what it was not trained on",
    "not shown": "is not shown to keep what it was not trained on",
}


class MetricRow(NamedTuple):
    """One tested metric of the comparison as text."""

    heading: tables.Heading
    a: str
    b: str
    difference: str
    interval: str
    floor: str
    inside_floor: bool
    p_value: str
    p_adjusted: str
    verdict: str
    track: Track
    """The interval beside the floor; right is better for A."""


class ShownRow(NamedTuple):
    """One metric without a verdict as text."""

    heading: tables.Heading
    a: str
    b: str
    difference: str
    caution: str


class Pair(NamedTuple):
    """One comparison, in the words of the page."""

    number: int
    a: str
    b: str
    """Letter and name."""
    letter: str
    """B's."""
    verdict: Verdict
    rows: list[MetricRow]
    shown: list[tuple[str, list[ShownRow]]]
    untested: list[str]
    kept: list[str]
    floor_known: bool
    has_judge: bool
    one_training: bool
    outcome: str
    """WIN, TIE or LOSS of A."""
    difference: str
    """In the metric of choice."""
    reason: str


class SideFacts(NamedTuple):
    """One side, in the words of the page."""

    letter: str
    kind: str
    name: str
    what: str
    facts: list[tuple[str, str]]
    links: list[tuple[str, str]]
    """Pages about it: what they are called, and the way there from the folder of this page."""


class Bar(NamedTuple):
    """One prompt: A minus B, and what both drew."""

    caption: str
    difference: str
    better: str
    """`a` or `b`, or nothing for neither: decides the colour."""
    part: float
    """Of the height of all bars above and below 0 together, from 0 to 1."""
    images: list[tuple[str, str, Thumbnail]]
    """Title and colour of each, with the first seed's image."""


class Bars(NamedTuple):
    """One a prompt, where A does best first."""

    zero: float
    """Where 0 is, from the top, as a share of the height."""
    rows: list[Bar]


class SettingRow(NamedTuple):
    """One setting over all sides that have any."""

    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


class Cell(NamedTuple):
    """A row's verdict against a column, in the matrix of pairs."""

    verdict: str
    difference: str


def write(sides: Sequence[Side], comparisons: Sequence[Comparison], path: Path) -> Path:
    """Write the report of all pairs of `sides` to `path`."""
    write_text(path, render(sides, comparisons, path.parent))
    return path


def file_name(sides: Sequence[Side]) -> str:
    """Of the page, the same for the same sides: `compare-one-two.html`."""
    names = [side.run.path.name if side.config else side.name for side in sides]
    labels = [re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:MAX_NAME] for name in names]
    text = "-".join(labels)
    if len(text) > MAX_FILE_NAME:
        places = "\n".join(f"{side.run.path} {side.label}" for side in sides)
        text = f"{text[:MAX_FILE_NAME]}-{hashlib.sha256(places.encode()).hexdigest()[:8]}"
    return f"compare-{text}.html"


def render(sides: Sequence[Side], comparisons: Sequence[Comparison], folder: Path | None = None) -> str:
    """The page as text: the comparisons with the first side, and the matrix of all if there are more.

    `folder` is where the page will lie, if it is to lead to reports and to images in full size.
    """
    firsts = [comparison for comparison in comparisons if comparison.a is sides[0]]
    alone = firsts[0] if len(sides) == 2 else None
    best, worst = extremes(alone) if alone else ([], [])
    rest = [index for index in range(_num_prompts(sides[0])) if index not in {*best, *worst}]
    select_by = comparisons[0].select_by
    return page.render(
        "compare.html.j2",
        select_by=METRICS[select_by],
        num_pairs=len(comparisons),
        floor=FLOOR,
        lead=_lead(sides, comparisons),
        matrix=matrix(sides, comparisons) if len(sides) > 2 else [],
        pairs=[pair(number, letter(number), c) for number, c in enumerate(firsts, start=1)],
        best=_grid(sides, select_by, best, 0.2, folder),
        worst=_grid(sides, select_by, worst, 0.2, folder),
        every=_grid(sides, select_by, rest, 0.6 if alone else 1.0, folder),
        first=_grid(sides, select_by, list(range(_num_prompts(sides[0])))[:NUM_AT_A_GLANCE], 0.2, folder),
        has_winner=any(side.config for side in sides),
        bars=bars(alone) if alone else None,
        concepts=concepts.of_sides(sides, _titles(sides), select_by),
        sides=[_side(index, side, folder) for index, side in enumerate(sides)],
        settings=side_settings(sides),
        figures={},
    )


def letter(index: int) -> str:
    """A, B, C, … by which the page calls a side."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


# The terminal


def table(sides: Sequence[Side], comparisons: Sequence[Comparison]) -> Table:
    """The verdicts for a terminal: metric by metric for two sides, else pair by pair."""
    return _metric_table(comparisons[0]) if len(sides) == 2 else _pair_table(sides, comparisons)


def _metric_table(comparison: Comparison) -> Table:
    said = verdict(comparison)
    scorer = qualifier(comparison.a.scores[comparison.select_by])
    caption = f"{capital(comparison.reason)}. {scorer} {noise([comparison])}"
    found = Table(title=Text(said.headline), caption=Text(caption), box=SIMPLE_HEAD)
    found.add_column("metric", min_width=18)
    for heading in ("verdict", "A minus B", "95 % interval", "floor", "p (Holm)"):
        found.add_column(heading, no_wrap=True)
    for row in map(_metric_row, comparison.metrics):
        cells = (row.heading.label, row.verdict, row.difference, row.interval, row.floor, row.p_adjusted)
        found.add_row(*map(Text, cells))
    return found


def _pair_table(sides: Sequence[Side], comparisons: Sequence[Comparison]) -> Table:
    label = METRICS[comparisons[0].select_by].label
    caption = (
        f"Row against column, {label}. Verdicts hold for all {_family(comparisons)}. {noise(comparisons)}"
    )
    found = Table(title=Text(_lead(sides, comparisons).headline), caption=Text(caption), box=SIMPLE_HEAD)
    found.add_column("")
    for index in range(len(sides)):
        found.add_column(letter(index), no_wrap=True)
    for index, row in enumerate(matrix(sides, comparisons)):
        cells = [f"{cell.verdict} {cell.difference}" if cell else MISSING for cell in row]
        found.add_row(Text(f"{letter(index)}: {sides[index].name}"), *map(Text, cells))
    return found


# Verdicts


def verdict(comparison: Comparison, letters: tuple[str, str] = ("A", "B")) -> Verdict:
    """WIN, TIE or LOSS of A, in a sentence, and why."""
    row, select_by = comparison.main, comparison.select_by
    a, b = f"{letters[0]} ({comparison.a.name})", f"{letters[1]} ({comparison.b.name})"
    headline = {"WIN": f"WIN: {a} beats {b}.", "LOSS": f"LOSS: {b} beats {a}."}.get(
        comparison.verdict, f"TIE: {a} and {b} cannot be told apart."
    )
    detail = [f"{capital(comparison.reason)}."]
    if row is None:
        headline = f"No verdict on {a} and {b}."
    else:
        detail.append(
            f"{title(METRICS[select_by], row.a)}, {direction(METRICS[select_by])}: "
            f"{letters[0]} minus {letters[1]} is {plus_minus(row.mean, row.stderr, signed=True)}, "
            f"95 % interval {_interval(row)}, on {plural(row.num_prompts, 'test prompt')}."
        )
    detail.append(noise([comparison]))
    facts = _facts(comparison, row, letters) if row else []
    return Verdict(comparison.verdict.lower(), headline, " ".join(detail), facts)


def noise(comparisons: Sequence[Comparison]) -> str:
    """What is known of the luck of training."""
    names = " and ".join(dict.fromkeys(side.name for c in comparisons for side in c.one_training))
    floor = all(comparison.floor_known for comparison in comparisons)
    if names:
        alone = f"There is only one training of {names}, whose training noise is not known"
        measured = f"the noise floor is {FLOOR}" if floor else "no noise floor was measured"
        return f"{alone}: a WIN or LOSS may be the luck of that training; {measured}."
    known = "Noise between training seeds is part of every error"
    return f"{known}." if floor else f"{known}; no noise floor was measured."


def _facts(comparison: Comparison, row: MetricComparison, letters: tuple[str, str]) -> list[Fact]:
    note, judge = "± is one standard error", comparison.judge
    first, second = letters
    facts = [
        Fact(first, plus_minus(row.a.value, row.a.stderr), note),
        Fact(second, plus_minus(row.b.value, row.b.stderr), note),
        _difference_fact(f"{first} minus {second}", row),
    ]
    if judge:
        facts.append(_difference_fact(f"the judge ({judge.a.extractor}) says {judge.verdict}", judge))
    return facts


def _difference_fact(label: str, row: MetricComparison) -> Fact:
    text = plus_minus(row.mean, row.stderr, signed=True)
    return Fact(label, text, _floor_note(row), track=tracks([row])[0])


def _floor_note(row: MetricComparison) -> str:
    if row.floor is None:
        return "noise floor not known"
    side = "inside" if row.inside_floor else "outside"
    return f"{side} the noise floor, {_floor(row)}"


def _lead(sides: Sequence[Side], comparisons: Sequence[Comparison]) -> Verdict:
    """The first block of the page: the verdict on two sides, or A's against all others."""
    if len(sides) == 2:
        said, reason = verdict(comparisons[0]), f"{capital(comparisons[0].reason)}."
        return said._replace(lead=reason, detail=said.detail.removeprefix(reason).lstrip())
    firsts = [comparison for comparison in comparisons if comparison.a is sides[0]]
    counts = [sum(c.verdict == outcome for c in firsts) for outcome in ("WIN", "TIE", "LOSS")]
    words = [f"{count} {name}" for count, name in zip(counts, ("won", "tied", "lost"), strict=True) if count]
    headline = f"A ({sides[0].name}) against {len(firsts)} others: {', '.join(words)}."
    corrected = f"Verdicts are from A's point of view, corrected for all {_family(comparisons)}."
    tone = "loss" if counts[2] else "tie" if counts[1] else "win"
    return Verdict(tone, headline, corrected, [])


def _family(comparisons: Sequence[Comparison]) -> str:
    return f"{len(comparisons)} pairs together (Holm)"


def matrix(sides: Sequence[Side], comparisons: Sequence[Comparison]) -> list[list[Cell | None]]:
    """Rows and columns are the sides; None on the diagonal."""
    rows: list[list[Cell | None]] = [[None] * len(sides) for _ in sides]
    places = {id(side): index for index, side in enumerate(sides)}
    for comparison in comparisons:
        a, b = places[id(comparison.a)], places[id(comparison.b)]
        rows[a][b] = Cell(comparison.verdict, _difference(comparison, 1))
        rows[b][a] = Cell(MIRRORED[comparison.verdict], _difference(comparison, -1))
    return rows


def _difference(comparison: Comparison, sign: int) -> str:
    """In the metric of choice."""
    if row := comparison.main:
        return plus_minus(sign * row.mean, row.stderr, signed=True)
    shown = next((row for row in comparison.shown if row.metric == comparison.select_by), None)
    return plus_minus(sign * shown.mean, shown.stderr, signed=True) if shown and shown.mean else MISSING


# Tables


def pair(number: int, second: str, comparison: Comparison) -> Pair:
    a, b = comparison.a, comparison.b
    shown = [
        (heading, [_shown_row(row) for row in comparison.shown if METRICS[row.metric].role == role])
        for role, heading in GROUPS.items()
    ]
    return Pair(
        number=number,
        a=f"A: {a.name}",
        b=f"{second}: {b.name}",
        letter=second,
        verdict=verdict(comparison, ("A", second)),
        rows=[_metric_row(row) for row in comparison.metrics],
        shown=[(heading, rows) for heading, rows in shown if rows],
        untested=[title(METRICS[name], a.scores[name]) for name in comparison.untested],
        kept=[text for text in (_kept("A", a), _kept(second, b)) if text],
        floor_known=comparison.floor_known,
        has_judge=comparison.judge is not None,
        one_training=bool(comparison.one_training),
        outcome=str(comparison.verdict),
        difference=_difference(comparison, 1),
        reason=comparison.reason,
    )


def _metric_row(row: MetricComparison) -> MetricRow:
    return MetricRow(
        heading=tables.heading(row.metric, row.a),
        a=plus_minus(row.a.value, row.a.stderr),
        b=plus_minus(row.b.value, row.b.stderr),
        difference=plus_minus(row.mean, row.stderr, signed=True),
        interval=_interval(row),
        floor=_floor(row),
        inside_floor=row.inside_floor,
        p_value=p_value(row.p_value),
        p_adjusted=p_value(row.p_adjusted),
        verdict=row.verdict,
        track=tracks([row])[0],
    )


def _shown_row(row: ShownMetric) -> ShownRow:
    score = row.a or row.b
    assert score is not None
    cautions = [found.caution for found in (row.a, row.b) if found and found.caution]
    return ShownRow(
        heading=tables.heading(row.metric, score),
        a=plus_minus(row.a.value, row.a.stderr) if row.a else MISSING,
        b=plus_minus(row.b.value, row.b.stderr) if row.b else MISSING,
        difference=plus_minus(row.mean, row.stderr, signed=True),
        caution=cautions[0] if cautions else "",
    )


def _interval(row: MetricComparison) -> str:
    decimals = decimals_of(row.stderr) if row.stderr > 0 else 3
    return f"{number(row.low, decimals, signed=True)} to {number(row.high, decimals, signed=True)}"


def _floor(row: MetricComparison) -> str:
    """With the decimals of the difference beside it."""
    return MISSING if row.floor is None else number(row.floor, decimals_of(row.floor) if row.floor > 0 else 3)


def _kept(name: str, side: Side) -> str:
    """Non-inferiority on unrelated prompts, in a sentence."""
    found = side.preservation
    if found is None:
        return ""
    low, high = (number(end, 4, signed=True) for end in (found.low, found.high))
    return (
        f"{name} ({side.name}) {KEPT[found.verdict]}: against the base the CLIP score of unrelated prompts "
        f"changed by {number(found.change, 4, signed=True)} (95 %: {low} to {high}); "
        f"a fall below {number(found.margin)} counts as none."
    )


# Images


def bars(comparison: Comparison) -> Bars | None:
    """A minus B on every test prompt; None where the metric is not paired."""
    values = comparison.differences.get(comparison.select_by)
    if not values:
        return None
    sign, prompts = METRICS[comparison.select_by].sign, comparison.a.run.metadata.prompts["test"]
    leads = [sign * value for value in values]
    top, bottom = max(0.0, *leads), min(0.0, *leads)
    whole = top - bottom or 1.0
    columns = [_column(i, side, comparison.select_by) for i, side in enumerate((comparison.a, comparison.b))]
    seeds = min(len(prompt.seeds) for prompt in prompts)
    found = []
    for place, index in enumerate(sorted(range(len(leads)), key=lambda index: -leads[index])):
        better = "a" if leads[index] > 0 else "b" if leads[index] < 0 else ""
        shown = [(c.title, c.kind, _first(c, index * seeds)) for c in columns] if place < MAX_BARS else []
        images = [(title, kind, image) for title, kind, image in shown if image]
        text, part = number(values[index], signed=True), round(abs(leads[index]) / whole, 4)
        found.append(Bar(prompts[index].text, text, better, part, images))
    return Bars(round(top / whole, 4), found)


def _first(column: Column, image: int) -> Thumbnail | None:
    return thumbnail(column.images[image]) if image < len(column.images) else None


def extremes(comparison: Comparison) -> tuple[list[int], list[int]]:
    """Prompts at which A does best and worst against B; none where the metric is not paired."""
    values = comparison.differences.get(comparison.select_by, ())
    good = METRICS[comparison.select_by].sign
    order = sorted(range(len(values)), key=lambda index: -good * values[index])
    count = min(NUM_EXTREMES, len(order) // 2)
    return order[:count], order[::-1][:count]


def _num_prompts(side: Side) -> int:
    return len(side.run.metadata.prompts["test"])


def _grid(sides: Sequence[Side], metric: str, order: list[int], share: float, folder: Path | None) -> Grid:
    run = sides[0].run
    columns = [_column(index, side, metric) for index, side in enumerate(sides)]
    return grid(run, run.metadata.prompts["test"], columns, order, share, page=folder)


def _column(index: int, side: Side, metric: str) -> Column:
    return column(_title(index, side), _kind(index, side), list(side.folders), metric)


def _titles(sides: Sequence[Side]) -> list[tuple[str, str]]:
    """With the colour of each."""
    return [(_title(index, side), _kind(index, side)) for index, side in enumerate(sides)]


def _title(index: int, side: Side) -> str:
    return f"{letter(index)}: {side.name}"


def _kind(index: int, side: Side) -> str:
    """The colour of a side."""
    return ("a", "b")[index] if index < 2 else "sampled" if side.trained else "base"


# Sides


def side_settings(sides: Sequence[Side]) -> list[SettingRow]:
    """Of sides that are configurations: settings that differ first; a dash for the others. None of fewer
    than two."""
    known = [settings(side.config) if side.config else {} for side in sides]
    if sum(map(bool, known)) < 2:
        return []
    names = [name for name in max(known, key=len) if name != "seed"]
    rows = [SettingRow(name, [texts.get(name, MISSING) for texts in known]) for name in names]
    return sorted(rows, key=lambda row: not row.differs)


def _side(index: int, side: Side, folder: Path | None) -> SideFacts:
    what, facts = _described(side)
    facts += [("device", side.run.metadata.device), ("started", side.run.metadata.created)]
    links = _links(side, folder) if folder else []
    return SideFacts(letter(index), _kind(index, side), side.name, what, facts, links)


def _links(side: Side, folder: Path) -> list[tuple[str, str]]:
    """To the report of its run, and to the page of its trial, if they are there."""
    pages = [("report", side.run.path / "report.html")]
    if side.label.isdecimal():
        pages.append((trial_name(side.label), side.run.path / page_of(side.label)))
    return [(name, quote(os.path.relpath(path, folder))) for name, path in pages if path.exists()]


def _described(side: Side) -> tuple[str, list[tuple[str, str]]]:
    if not side.trained:
        return "the base model", [("base", side.run.metadata.base)]
    if side.config is None:
        record = read_adapter_record(side.run.adapter_folder(side.label))
        facts = [("file", str(record.file)), ("SHA-256", f"{record.sha256[:12]}…")]
        return "an adapter file", [*facts, ("weight", f"{record.weight:g}")]
    result = side.run.result()
    return trial_name(side.label), [
        ("training seeds", str(len(side.evaluations))),
        ("trials searched", str(len(side.run.trials()))),
        ("whole search", duration(result.seconds if result else None)),
    ]
