"""What is wrong with a data set, or could be better, before anything is trained on it.

The numbers of pictures and words are the training guide's: 10 to 100 pictures, captions of 10 to 75 words.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from PIL import Image

from bench.buckets import MAX_RATIO
from bench.captions import like_a_file_name
from bench.dataset import Contents, Example, printable, read_contents, split
from bench.errors import UsageError
from bench.near_duplicates import groups, near_duplicates
from bench.pictures import Flaw
from bench.prompts import COMMA, FUNCTION_WORDS
from bench.sources import Source

Level = Literal["error", "warning", "advice"]

NUM_PICTURES = (10, 100)
NUM_WORDS = (10, 75)
SHARED = 0.7
"""A word or phrase in this share of the captions is meant to be in all."""
MAX_PHRASE = 4
"""Words of a phrase that is looked for."""
ELONGATED = 2.0
"""Of the longer to the shorter side: half of the picture is lost where it is cropped to a square."""
THUMBNAIL = 256
"""Pixels of the longer side of the copies that are looked at and shown."""


class Kind(NamedTuple):
    """A kind of finding."""

    level: Level
    title: str
    advice: str


KINDS = {
    "unusable": Kind("error", "cannot be used", "Mend or remove these: nothing runs before."),
    "too-few": Kind("error", "too few pictures", "Some are held out, to measure what was learned."),
    "leak": Kind(
        "warning",
        "nearly the same picture in several splits",
        "What was trained on, or chosen by, must not be in the test as well: memorising would look like "
        "learning. Keep one of each, or all of them in one split.",
    ),
    "near-duplicate": Kind(
        "warning", "nearly the same picture", "It counts as often as it is there: keep the best one."
    ),
    "equal-captions": Kind(
        "warning",
        "the same caption",
        "Say what differs. Held-out prompts are different captions only, so few captions measure little.",
    ),
    "file-name": Kind("warning", "a caption like a file name", "Say what is to be seen."),
    "cut-off": Kind("warning", "a caption longer than the base reads", "Shorten it: the end is not read."),
    "no-trigger": Kind(
        "warning",
        "without what most captions share",
        "A trigger word or a style is learned best where every caption names it in the same words.",
    ),
    "small": Kind(
        "warning", "smaller than the base draws", "It is enlarged, and the base learns to draw it blurred."
    ),
    "extreme-shape": Kind(
        "warning", f"longer than {MAX_RATIO}:1", "Even buckets crop it: cut out what matters."
    ),
    "few": Kind("warning", "few pictures", "{} to {} are advised.".format(*NUM_PICTURES)),
    "many": Kind(
        "advice",
        "many pictures",
        "{} to {} are enough for a LoRA: choose the best, fewer train faster.".format(*NUM_PICTURES),
    ),
    "elongated": Kind(
        "advice",
        f"longer than {ELONGATED:g}:1",
        "Only the middle is seen, unless the space says `buckets: true`.",
    ),
    "short-caption": Kind(
        "advice",
        f"a caption of fewer than {NUM_WORDS[0]} words",
        "What it does not say becomes part of the style.",
    ),
    "long-caption": Kind(
        "advice",
        f"a caption of more than {NUM_WORDS[1]} words",
        "Few bases read as much, and the first words count most.",
    ),
    "no-common-word": Kind(
        "advice", "no word or phrase is in most captions", "A trigger word lets you call what was learned."
    ),
}
"""In the order in which they are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing to mend or to know."""

    kind: str
    """A key of KINDS."""
    names: tuple[str, ...]
    """The pictures it is about; none if it is about all of them."""
    detail: str

    @property
    def level(self) -> Level:
        return KINDS[self.kind].level


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of the data set, or one entry of it that cannot be read."""

    name: str
    split: str
    """`train`, `dev` or `test`; empty where the data is not usable yet."""
    caption: str = ""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    num_tokens: int = 0
    """With those that mark start and end."""
    cut_off: str = ""
    """What the base does not read of the caption."""
    thumbnail: Image.Image | None = None

    @property
    def num_words(self) -> int:
        return len(self.caption.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A data set as it was found."""

    source: str
    base: str
    resolution: int
    max_tokens: int
    pictures: tuple[Picture, ...]
    phrase: str
    """The word or phrase that most captions share; empty if there is none."""
    findings: tuple[Finding, ...]
    """In the order of KINDS."""
    problem: UsageError | None
    """Why it cannot be used."""

    @property
    def levels(self) -> Counter[Level]:
        return Counter(finding.level for finding in self.findings)


def check_data(source: str, base: Source) -> Check:
    """Look at every picture and caption of a folder, a bundled or a Hub data set, as `load_dataset` reads it.

    Raises UsageError or MissingError only where there is nothing to look at; what `load_dataset` would refuse
    is `problem`, and among the findings.
    """
    contents = read_contents(source)
    splits, problem = _splits(contents)
    tokenizer = getattr(base.load(*base.family.tokenizers), base.family.tokenizers[-1])
    resolution = base.resolution()
    pictures = [
        _picture(example, name, tokenizer) for name, examples in splits.items() for example in examples
    ]
    phrase = shared_phrase([picture.caption for picture in pictures])
    findings = [*_unusable(contents, problem), *_nearly_equal(pictures), *_about_captions(pictures, phrase)]
    findings += [*_about_sizes(pictures, resolution), *_about_numbers(pictures)]
    shown = {picture.name for picture in pictures}
    faulty = {printable(fault.name): fault.load for fault in contents.faults}
    pictures += [
        Picture(name=name, split="", thumbnail=_loaded(load))
        for name, load in faulty.items()
        if name not in shown
    ]
    order = list(KINDS)
    return Check(
        source=source,
        base=base.name,
        resolution=resolution,
        max_tokens=tokenizer.model_max_length,
        pictures=tuple(pictures),
        phrase=phrase,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.kind))),
        problem=problem,
    )


def _splits(contents: Contents) -> tuple[Mapping[str, Sequence[Example]], UsageError | None]:
    """What each split holds, or everything without a split and why there is none."""
    try:
        dataset = split(contents)
    except UsageError as problem:
        if "dev" in contents.splits:
            return contents.splits, problem
        return {"": [example for examples in contents.splits.values() for example in examples]}, problem
    return {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}, None


def _picture(example: Example, split: str, tokenizer: Any) -> Picture:
    caption = example.caption.encode("utf-8", "backslashreplace").decode()  # one that is not valid Unicode
    tokens = tokenizer(caption, verbose=False).input_ids
    limit = tokenizer.model_max_length
    return Picture(
        name=printable(example.name),
        split=split,
        caption=caption,
        size=example.size,
        num_tokens=len(tokens),
        cut_off=tokenizer.decode(tokens[limit - 1 : -1]).strip() if len(tokens) > limit else "",
        thumbnail=_thumbnail(example.image()),
    )


def _loaded(load: Callable[[], Image.Image] | None) -> Image.Image | None:
    try:
        return _thumbnail(load()) if load else None
    except Flaw:
        return None


def _thumbnail(image: Image.Image) -> Image.Image:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return image


# Findings


def _unusable(contents: Contents, problem: UsageError | None) -> Iterator[Finding]:
    for fault in contents.faults:
        yield Finding(kind="unusable", names=(printable(fault.name),), detail=printable(fault.problem))
    if problem and not contents.faults:
        yield Finding(kind="too-few", names=(), detail=str(problem).removeprefix(f"{contents.source}: "))


def _nearly_equal(pictures: Sequence[Picture]) -> Iterator[Finding]:
    thumbnails = [picture.thumbnail for picture in pictures if picture.thumbnail]
    for group in groups(near_duplicates(thumbnails)):
        alike = [pictures[index] for index in group]
        kind = "leak" if len({picture.split for picture in alike}) > 1 else "near-duplicate"
        shown = [f"{picture.name} ({picture.split})" if picture.split else picture.name for picture in alike]
        yield Finding(kind=kind, names=_names(alike), detail=", ".join(shown))


def _about_captions(pictures: Sequence[Picture], phrase: str) -> Iterator[Finding]:
    by_caption: dict[str, list[Picture]] = {}
    for picture in (picture for picture in pictures if picture.caption):
        yield from (replace(finding, names=(picture.name,)) for finding in _about_caption(picture))
        by_caption.setdefault(picture.caption.lower(), []).append(picture)
        if phrase and not _contains(picture.caption, phrase):
            yield Finding(kind="no-trigger", names=(picture.name,), detail=f"without {phrase!r}")
    for equal in by_caption.values():
        if len(equal) > 1:
            yield Finding(
                kind="equal-captions", names=_names(equal), detail=f"the caption of {len(equal)} pictures"
            )
    if not phrase and len(pictures) >= NUM_PICTURES[0]:
        yield Finding(kind="no-common-word", names=(), detail=f"none is in {SHARED:.0%} of them")


def _about_caption(picture: Picture) -> Iterator[Finding]:
    low, high = NUM_WORDS
    if like_a_file_name(picture.caption):
        yield Finding(kind="file-name", names=(), detail=repr(picture.caption))
    if picture.cut_off:
        yield Finding(
            kind="cut-off", names=(), detail=f"{picture.num_tokens} tokens; not read: {picture.cut_off!r}"
        )
    if picture.num_words < low:
        yield Finding(kind="short-caption", names=(), detail=_words_of(picture))
    if picture.num_words > high:
        yield Finding(kind="long-caption", names=(), detail=_words_of(picture))


def _about_sizes(pictures: Sequence[Picture], resolution: int) -> Iterator[Finding]:
    for picture in pictures:
        width, height = picture.size or (resolution, resolution)
        ratio = max(width, height) / min(width, height)
        if min(width, height) < resolution:
            detail = f"{width}×{height}; the base draws {resolution}×{resolution}"
            yield Finding(kind="small", names=(picture.name,), detail=detail)
        if ratio > ELONGATED:
            kind = "extreme-shape" if ratio > MAX_RATIO else "elongated"
            yield Finding(kind=kind, names=(picture.name,), detail=f"{width}×{height}, {ratio:.1f} to 1")


def _about_numbers(pictures: Sequence[Picture]) -> Iterator[Finding]:
    low, high = NUM_PICTURES
    if len(pictures) < low:
        yield Finding(kind="few", names=(), detail=f"{len(pictures)}")
    if len(pictures) > high:
        yield Finding(kind="many", names=(), detail=f"{len(pictures)}")


def _words_of(picture: Picture) -> str:
    return "1 word" if picture.num_words == 1 else f"{picture.num_words} words"


def _names(pictures: Iterable[Picture]) -> tuple[str, ...]:
    return tuple(picture.name for picture in pictures)


# What captions share


def shared_phrase(captions: Sequence[str]) -> str:
    """The part between commas, or the words in a row, that most captions contain; empty if none do.

    "Most" is SHARED or more. A whole part, such as `outline cartoon style`, goes before words of it that a
    few captions more contain.
    """
    captions = [caption.lower() for caption in captions if caption]
    enough = max(2, SHARED * len(captions))
    (part, num_parts), (phrase, num_phrases) = (_most_used(captions, find) for find in (_parts, _phrases))
    if num_parts >= enough and (num_parts >= num_phrases or phrase in part):
        return part
    return phrase if num_phrases >= enough else ""


def _most_used(captions: Sequence[str], find: Callable[[str], set[str]]) -> tuple[str, int]:
    """Of what is found in captions, and in how many of them; the longest of those in as many."""
    counts = Counter(phrase for caption in captions for phrase in find(caption))
    return max(counts.items(), key=lambda item: (item[1], len(item[0]), item[0]), default=("", 0))


def _parts(caption: str) -> set[str]:
    """Those of captions that have several."""
    parts = {" ".join(_words(part)) for part in COMMA.split(caption)}
    return parts - {""} if len(parts) > 1 else set()


def _phrases(caption: str) -> set[str]:
    """Up to MAX_PHRASE words in a row that neither begin nor end with a function word."""
    words = _words(caption)
    spans = (
        (start, start + size) for size in range(1, MAX_PHRASE + 1) for start in range(len(words) - size + 1)
    )
    return {
        " ".join(words[start:end])
        for start, end in spans
        if not {words[start], words[end - 1]} & FUNCTION_WORDS
    }


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def _contains(caption: str, phrase: str) -> bool:
    return f" {phrase} " in f" {' '.join(_words(caption))} "
