"""Which drawings of each package are used, and which concept each one shows."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.builtin.recipe import rasterise
from bench.builtin.recipe.captions import Concept, icon_words, slug, unknown_concept
from bench.builtin.recipe.packages import FLUENT_COLOR, SOURCES, Source, unpacked
from bench.builtin.recipe.rasterise import Pixels

# Microsoft states that it cannot license all flags, nor these glyphs, with the rest of Fluent Emoji.
UNLICENSED_FLUENT = frozenset(
    {"linked-paperclips", "man-technologist", "paperclip", "technologist", "video-game", "woman-technologist"}
)

# Many near copies: who stands beside whom. The plain couple and family stay.
COMBINATIONS = re.compile(r"^(family|couple with heart|kiss), .*\b(man|woman)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Icon:
    """One drawing to be used; `draw` gives its uint8 [64, 64, 3] pixels."""

    name: str
    concept: Concept
    draw: Callable[[], Pixels]


@dataclass(frozen=True, kw_only=True, slots=True)
class IconSet:
    """The files of one iconify package: its drawings, their codepoints where given, their categories."""

    drawings: Mapping[str, Mapping[str, Any]]
    width: float
    height: float
    codepoints: Mapping[str, str]
    categories: Mapping[str, str]

    def draw(self, name: str) -> Pixels:
        drawing = self.drawings[name]
        width, height = drawing.get("width", self.width), drawing.get("height", self.height)
        return rasterise.draw_svg(rasterise.svg(drawing["body"], width, height))


def read_icon_set(folder: Path) -> IconSet:
    """The icon set of an unpacked iconify package; `hidden` (withdrawn) drawings are left out."""
    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    categories = _optional(folder / "metadata.json").get("categories", {})
    return IconSet(
        drawings={name: icon for name, icon in icons["icons"].items() if not icon.get("hidden")},
        width=icons["width"],
        height=icons["height"],
        codepoints=_optional(folder / "chars.json"),
        categories={name: title for title, names in categories.items() for name in names},
    )


def icons_of(source: Source, concepts: Mapping[str, Concept], cache_folder: Path) -> Iterator[Icon]:
    """The drawings of one vendor that are used, in the order of their names."""
    folder = unpacked(source.package, cache_folder)
    if source.name == "fluent-3d":
        yield from _webp_icons(folder, concepts, cache_folder)
        return
    icon_set = read_icon_set(folder)
    shown = _concepts_shown(source, icon_set, concepts)
    for name in sorted(icon_set.drawings):
        concept = shown.get(name)
        if concept is not None and is_wanted(source.name, name, concept):
            yield Icon(name=name, concept=concept, draw=partial(icon_set.draw, name))


def is_wanted(source_name: str, icon_name: str, concept: Concept) -> bool:
    """Whether a drawing may and should be used: no flags of places, no combinations, none unlicensed."""
    if concept.name.startswith("flag, ") or concept.group == "component":
        return False
    if COMBINATIONS.match(concept.name):
        return False
    return not (source_name.startswith("fluent") and icon_name in UNLICENSED_FLUENT)


def icon_names(source_name: str) -> dict[str, str]:
    """Icon name -> codepoint, for names that are not CLDR's; "" where CLDR does not know the concept.

    Fixed once by hand, looking at the drawings, so that pictures keep their captions and splits never move.
    For fxemoji, whose names follow no standard, it lists every drawing that could be told.
    """
    return _icon_names().get(source_name, {})


@cache
def _icon_names() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = json.loads(
        files(__package__).joinpath("icon_names.json").read_text("utf-8")
    )
    return table


def _webp_icons(folder: Path, concepts: Mapping[str, Concept], cache_folder: Path) -> Iterator[Icon]:
    """The rasters of fluent-3d, named by codepoint.

    The package also holds about 250 flags that are not Microsoft's, of unknown origin: only what Microsoft's
    own set has too is used.
    """
    flat = next(source.package for source in SOURCES if source.name == "fluent-flat")
    names = {
        _bare(code): name for code, name in read_icon_set(unpacked(flat, cache_folder)).codepoints.items()
    }
    microsoft = read_icon_set(unpacked(FLUENT_COLOR, cache_folder)).drawings
    by_bare = {_bare(code): concept for code, concept in concepts.items()}
    for path in sorted((folder / "assets").glob("*.webp"), key=lambda file: file.stem):
        concept, name = by_bare.get(_bare(path.stem)), names.get(_bare(path.stem), "")
        if concept is not None and name in microsoft and is_wanted("fluent-3d", name, concept):
            yield Icon(name=name, concept=concept, draw=partial(rasterise.draw_file, path))


def _concepts_shown(source: Source, icon_set: IconSet, concepts: Mapping[str, Concept]) -> dict[str, Concept]:
    """Icon name -> what it shows, for every icon of which that can be told."""
    by_hand = {
        name: concepts[code] if code else unknown_concept(name, icon_set.categories.get(name, ""))
        for name, code in icon_names(source.name).items()
    }
    if source.name == "fxemoji":
        return by_hand
    known = _known_by_codepoint if icon_set.codepoints else _known_by_name
    return known(icon_set, concepts) | by_hand


def _known_by_codepoint(icon_set: IconSet, concepts: Mapping[str, Concept]) -> dict[str, Concept]:
    by_bare = {_bare(code): concept for code, concept in concepts.items()}
    codes = {name: _bare(code) for code, name in icon_set.codepoints.items()}
    return {name: by_bare[code] for name, code in codes.items() if code in by_bare}


def _known_by_name(icon_set: IconSet, concepts: Mapping[str, Concept]) -> dict[str, Concept]:
    """Icon name -> concept, where the name is CLDR's, with or without the number of a second drawing."""
    by_slug = {slug(concept.name): concept for concept in concepts.values()}
    found = {name: by_slug.get(name) or by_slug.get(slug(icon_words(name))) for name in icon_set.drawings}
    # "-light" is how skin tones end; the traffic and police lights that end so too are lost with them.
    return {name: concept for name, concept in found.items() if concept and not name.endswith("-light")}


def _bare(codepoint: str) -> str:
    """A codepoint without its variation selectors, which vendors use freely."""
    return "-".join(part for part in codepoint.lower().split("-") if part != "fe0f")


def _optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content
