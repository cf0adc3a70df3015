"""What `bench data check` found: for the terminal, for programs, and a contact sheet as a page."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.check import KINDS, Check, Finding, Kind, Level, Picture
from bench.files import write_text
from reports import page
from reports.images import SMALL_PIXELS, Thumbnail, thumbnail_of
from reports.verdict import Fact, Verdict
from reports.wording import capital, plural, source_name

MAX_LARGE = 300
"""Pictures up to this number are shown in full size, more of them smaller, so that a page stays light."""
NUM_NAMED = 3
"""Names that the terminal shows of each kind."""
STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "advice": "cyan"}
TONES: dict[str, str] = {"error": "error", "warning": "open", "advice": "tie", "": "tie"}
"""Worst level -> colour of the answer."""

DETAIL = "What is wrong comes first. Every picture is shown once, with all that was found about it."


class Remark(NamedTuple):
    """A finding, on the card of a picture."""

    level: Level
    title: str
    detail: str


class Card(NamedTuple):
    picture: Picture
    thumbnail: Thumbnail | None
    remarks: list[Remark]


class Section(NamedTuple):
    """Pictures whose most serious finding is of one kind."""

    id: str
    kind: Kind | None
    """None: nothing was found."""
    general: list[str]
    """What was found of all pictures together."""
    cards: list[Card]


# For the terminal and for programs


def summary(check: Check) -> Group:
    """A line for each kind of finding."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for kind, found in _by_kind(check.findings).items():
        names = [name for finding in found for name in finding.names]
        shown = ", ".join(names[:NUM_NAMED]) or "; ".join(finding.detail for finding in found)
        more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
        level = KINDS[kind].level
        title = f"{plural(len(names), 'picture')}: {KINDS[kind].title}" if names else KINDS[kind].title
        table.add_row(Text(level, STYLES[level]), Text(title), Text(f"{shown}{more}", "dim"))
    lines = [f"{fact.label}: {fact.value} ({fact.note})" for fact in facts(check)]
    return Group(*(Text(line) for line in lines), Text(headline(check), "bold"), table)


def as_json(check: Check, path: Path) -> dict[str, Any]:
    """What the page says, with the names of `bench.check`; `page` is where it is."""
    return {
        "source": check.source,
        "base": check.base,
        "resolution": check.resolution,
        "max_tokens": check.max_tokens,
        "phrase": check.phrase,
        "usable": check.problem is None,
        "levels": dict(check.levels),
        "findings": [
            {
                "kind": finding.kind,
                "level": finding.level,
                "names": list(finding.names),
                "detail": finding.detail,
            }
            for finding in check.findings
        ],
        "pictures": [
            {
                "name": picture.name,
                "split": picture.split,
                "size": picture.size,
                "caption": picture.caption,
                "num_words": picture.num_words,
                "num_tokens": picture.num_tokens,
                "cut_off": picture.cut_off,
            }
            for picture in check.pictures
        ],
        "page": str(path),
    }


# The page


def file_name(check: Check) -> str:
    """`check-my-images.html`."""
    name = Path(check.source).expanduser().absolute().name if Path(check.source).exists() else check.source
    return f"check-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'data'}.html"


def write(check: Check, path: Path) -> Path:
    """One file that shows every picture, what is wrong first."""
    write_text(path, render(check))
    return path


def render(check: Check) -> str:
    return page.render(
        "data.html.j2",
        figures={},
        name=source_name(check.source),
        check=check,
        verdict=Verdict(TONES[_worst(check)], headline(check), DETAIL, facts(check)),
        sections=sections(check),
    )


def headline(check: Check) -> str:
    levels = check.levels
    if check.problem:
        return f"Cannot be used yet: {plural(levels['error'], 'problem')}"
    if levels["warning"]:
        return f"Usable, with {plural(levels['warning'], 'warning')}"
    return "Usable, with some advice" if levels["advice"] else "Nothing to mend"


def facts(check: Check) -> list[Fact]:
    """Pictures, sizes, captions and what they share."""
    sizes = [picture.size for picture in check.pictures if picture.size]
    captions = [picture for picture in check.pictures if picture.caption]
    named = sum(picture.name not in _without_phrase(check) for picture in captions)
    splits = [picture.split for picture in check.pictures]
    divided = ", ".join(f"{splits.count(name)} {name}" for name in ("train", "dev", "test") if name in splits)
    sides = sorted(min(size) for size in sizes)
    words = [picture.num_words for picture in captions]
    tokens = [picture.num_tokens for picture in captions]
    draws = f"{check.base} draws {check.resolution}"
    reads = f"{_span(tokens)} tokens; {check.base} reads {check.max_tokens}"
    shared = (
        f"in {named} of {len(captions)} captions" if check.phrase else "no word or phrase in most captions"
    )
    return [
        Fact("Pictures", str(len(check.pictures)), divided or "not divided yet"),
        Fact("Shorter sides", f"{_span(sides)} pixels", draws),
        Fact("Captions", f"{_span(words)} words", reads),
        Fact("Shared", check.phrase or "nothing", shared),
    ]


def sections(check: Check) -> list[Section]:
    """Every picture once: in the first section, in the order of KINDS, that a finding puts it in."""
    remarks = _remarks(check.findings)
    small = len(check.pictures) > MAX_LARGE
    cards = {
        picture.name: Card(picture, _shown(picture, small), remarks.get(picture.name, []))
        for picture in check.pictures
    }
    found = []
    for kind, findings in _by_kind(check.findings).items():
        names = dict.fromkeys(name for finding in findings for name in finding.names)
        general = [finding.detail for finding in findings if not finding.names]
        taken = [cards.pop(name) for name in names if name in cards]
        if taken or general:
            found.append(Section(kind, KINDS[kind], general, taken))
    return [*found, Section("fine", None, [], list(cards.values()))] if cards else found


def _by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.kind, []).append(finding)
    return found


def _remarks(findings: Sequence[Finding]) -> dict[str, list[Remark]]:
    found: dict[str, list[Remark]] = {}
    for finding in findings:
        for name in finding.names:
            remark = Remark(finding.level, capital(KINDS[finding.kind].title), finding.detail)
            found.setdefault(name, []).append(remark)
    return found


def _shown(picture: Picture, small: bool) -> Thumbnail | None:
    if picture.thumbnail is None:
        return None
    image = picture.thumbnail.copy()
    if small:
        image.thumbnail((SMALL_PIXELS, SMALL_PIXELS))
    return thumbnail_of(image)


def _without_phrase(check: Check) -> set[str]:
    return {name for finding in check.findings if finding.kind == "no-trigger" for name in finding.names}


def _worst(check: Check) -> str:
    return next((level for level in STYLES if check.levels[level]), "")


def _span(numbers: Sequence[int]) -> str:
    """`64`, `4 to 31`, or a dash for none."""
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
