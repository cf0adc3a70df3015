"""What a picture shows, in words: Unicode CLDR names and keywords made into short captions."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

NUM_KEYWORDS = 2
MIN_KEYWORD_USES = 4  # a rarer keyword would be a word that the text encoder hardly sees
MIN_KEYWORD_LETTERS = 3

# Slang, and keywords that often say the opposite of what the picture shows ("thumbs down": good).
UNWANTED_KEYWORDS = frozenset(
    {"bff", "bro", "good", "ily", "lol", "meh", "omg", "one", "xoxo", "yes", "yolo"}
)

# Pictures of these kinds mean something else, or carry text that turns unreadable, when mirrored.
UNMIRRORED_SUBGROUPS = frozenset(
    "alphanum arrow av-symbol book-paper clothing computer currency flag game gender geometric"
    " hand-fingers-partial hand-single-finger keycap mail math money music musical-instrument office"
    " other-symbol phone punctuation religion science sound time transport-sign"
    " warning writing zodiac".split()
)
UNMIRRORED_NAMES = re.compile(
    r"left|right|arrow|letter|stop|map|japan|globe|laptop|thumbs|palms? (up|down)|upside"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One emoji of Unicode; `codepoint` is lower-case hexadecimal, and empty where CLDR does not know it."""

    name: str
    caption: str
    codepoint: str
    group: str
    subgroup: str

    @property
    def flip_ok(self) -> bool:
        """Whether its pictures may be mirrored."""
        fixed = self.subgroup in UNMIRRORED_SUBGROUPS or (self.group == "symbols" and not self.codepoint)
        return not (fixed or UNMIRRORED_NAMES.search(self.name))


def read_concepts(folder: Path) -> dict[str, Concept]:
    """Every emoji of an unpacked emojibase-data package that is no skin-tone variant, by its codepoint."""
    entries = json.loads((folder / "en" / "data.json").read_text("utf-8"))
    titles = json.loads((folder / "en" / "messages.json").read_text("utf-8"))
    groups = {title["order"]: title["key"] for title in titles["groups"]}
    subgroups = {title["order"]: title["key"] for title in titles["subgroups"]}
    uses = Counter(keyword for entry in entries for keyword in set(entry.get("tags", ())))
    concepts = (
        _concept(entry, groups[entry["group"]], subgroups[entry["subgroup"]], uses)
        for entry in entries
        if "group" in entry
    )
    return {concept.codepoint: concept for concept in concepts}


def unknown_concept(icon: str, category: str) -> Concept:
    """What an icon shows that CLDR does not list: its own name is all there is to say."""
    name = icon_words(icon)
    return Concept(name=name, caption=name, codepoint="", group=slug(category), subgroup="")


def icon_words(icon: str) -> str:
    """The words of an icon's name, less the number that tells two drawings of one thing apart."""
    return re.sub(r"(?<=[a-z])-\d$", "", icon).replace("-", " ")


def slug(text: str) -> str:
    """The text in the spelling of icon names: lower-case words joined by hyphens, without apostrophes."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", text.lower())).strip("-")


def plain(label: str) -> str:
    """A CLDR name in lower case and plain ASCII punctuation, with a comma for its colon."""
    return re.sub('[“”"]', "", label.lower().replace("’", "'").replace(": ", ", "))


def caption(name: str, class_word: str, keywords: Sequence[str], uses: Mapping[str, int]) -> str:
    """Name, class word and up to two keywords, the most used first; no word is said twice."""
    parts = [name]
    if class_word and not _words(class_word) <= _words(name):
        parts.append(class_word)
    said = _words(", ".join(parts))
    by_use = sorted(keywords, key=lambda keyword: -uses[keyword])
    chosen = [k for k in by_use if k not in said and _is_wanted(k, uses[k])]
    return ", ".join(parts + chosen[:NUM_KEYWORDS])


def _concept(entry: Mapping[str, Any], group: str, subgroup: str, uses: Mapping[str, int]) -> Concept:
    name = plain(entry["label"])
    return Concept(
        name=name,
        caption=caption(name, _class_words().get(subgroup, ""), entry.get("tags", ()), uses),
        codepoint=entry["hexcode"].lower(),
        group=group,
        subgroup=subgroup,
    )


def _is_wanted(keyword: str, uses: int) -> bool:
    common = uses >= MIN_KEYWORD_USES and len(keyword) >= MIN_KEYWORD_LETTERS
    return common and keyword.replace(" ", "").isalpha() and keyword not in UNWANTED_KEYWORDS


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z0-9]+", text))


@cache
def _class_words() -> dict[str, str]:
    """Subgroup of CLDR -> the word for its members, written once by hand."""
    table: dict[str, str] = json.loads(files(__package__).joinpath("class_words.json").read_text("utf-8"))
    return table
