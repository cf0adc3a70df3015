"""The emoji data set as rows, and the selections of rows that each training may see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.builtin.recipe.splits import read_splits
from bench.builtin.recipe.targets import pixel16

PIXEL_SET = "pixel16"
PIXEL_STYLE = "pixel art style"
PEOPLE_GROUPS = ("people-body", "smiley-people", "people")


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Rows of equal length: `images` is uint8 [N, 64, 64, 3]; the rest are strings or booleans [N]."""

    images: NDArray[np.uint8]
    set: NDArray[np.str_]
    role: NDArray[np.str_]
    split: NDArray[np.str_]
    name: NDArray[np.str_]
    caption: NDArray[np.str_]
    style: NDArray[np.str_]
    codepoint: NDArray[np.str_]
    group: NDArray[np.str_]
    flip_ok: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)

    def where(self, keep: NDArray[Any]) -> Examples:
        """The rows that a mask or an array of indices picks."""
        return Examples(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


def read_examples(path: Path) -> Examples:
    """Read the .npz that the data half of the recipe writes."""
    with np.load(path, allow_pickle=False) as arrays:
        return Examples(**{field.name: arrays[field.name] for field in fields(Examples)})


def concept_of(codepoint: str, name: str) -> str:
    """What a picture shows, the same for all vendors: its code points, else its name.

    The variation selector fe0f only asks for colour, and not all vendors write it.
    """
    parts = [part for part in codepoint.split("-") if part not in ("", "fe0f")]
    return "-".join(parts) if parts else name


def concept_ids(examples: Examples) -> NDArray[np.int64]:
    """One number a concept, int64 [N]."""
    concepts = [concept_of(c, n) for c, n in zip(examples.codepoint, examples.name, strict=True)]
    return np.unique(concepts, return_inverse=True)[1].astype(np.int64)


def withheld_concepts(examples: Examples) -> frozenset[str]:
    """Concepts of the targets' development and test prompts, and the names of the rows that show them."""
    splits = read_splits()
    return _with_names(examples, (*splits.dev, *splits.test))


def target_concepts(examples: Examples) -> frozenset[str]:
    """The same with the concepts that the targets' training pictures show: all that a LoRA is judged by."""
    splits = read_splits()
    trained = [codepoint for codepoints in splits.train.values() for codepoint in codepoints]
    return _with_names(examples, (*splits.dev, *splits.test, *trained))


def _with_names(examples: Examples, codepoints: Iterable[str]) -> frozenset[str]:
    """Names are included because some rows have no code point to be matched by."""
    concepts = {concept_of(codepoint, "") for codepoint in codepoints}
    rows = zip(examples.codepoint, examples.name, strict=True)
    return frozenset(concepts | {str(name) for code, name in rows if concept_of(code, name) in concepts})


def is_withheld(examples: Examples, withheld: Iterable[str]) -> NDArray[np.bool_]:
    """Mask [N] of the rows whose concept, or name, is withheld."""
    names = frozenset(withheld)
    rows = zip(examples.codepoint, examples.name, strict=True)
    return np.array([concept_of(c, n) in names or str(n) in names for c, n in rows], dtype=bool)


def base_rows(examples: Examples) -> Examples:
    """What the base model trains on: base vendors, without the validation concepts."""
    return examples.where((examples.role == "base") & (examples.split != "val"))


def scorer_rows(examples: Examples, withheld: frozenset[str]) -> Examples:
    """What the scorer trains on: all vendors and pixelated Noto, but no picture that a result is judged by.

    Withheld concepts stay in the base vendors' style only, so the scorer knows what they are without
    having seen a development or test picture of a target.
    """
    held = is_withheld(examples, withheld)
    rows = examples.where((examples.split != "val") & ~((examples.role == "target") & held))
    noto = examples.where((examples.set == "noto") & (examples.split != "val") & ~held)
    return joined(rows, pixel_art(noto))


def judge_rows(examples: Examples) -> Examples:
    """What the judge trains on: all vendors and pixelated Noto, but no concept of a target or of validation.

    Not in any vendor's style, so that it has seen neither what a LoRA trains on nor what it is measured by.
    """
    held = is_withheld(examples, target_concepts(examples))
    rows = examples.where((examples.split != "val") & ~held)
    return joined(rows, pixel_art(rows.where(rows.set == "noto")))


def pixel_art(examples: Examples) -> Examples:
    """The rows redrawn as the pixel art target is, with its style phrase."""
    images = np.stack([pixel16(image) for image in examples.images])
    return replace(
        examples,
        images=images,
        set=np.full(len(examples), PIXEL_SET),
        role=np.full(len(examples), "target"),
        style=np.full(len(examples), PIXEL_STYLE),
    )


def joined(first: Examples, second: Examples) -> Examples:
    """The rows of both."""
    pairs = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in fields(Examples)}
    return Examples(**{name: np.concatenate(pair) for name, pair in pairs.items()})


def draw_pool(examples: Examples) -> NDArray[np.int64]:
    """Row numbers to draw from uniformly: people once, all others twice.

    People are a fifth of three vendors' pictures, and look alike.
    """
    rows = np.arange(len(examples), dtype=np.int64)
    return np.repeat(rows, np.where(np.isin(examples.group, PEOPLE_GROUPS), 1, 2))


def styled(caption: str, style: str) -> str:
    """The full caption of a picture."""
    return f"{caption}, {style}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variants:
    """K wordings of every row's caption: `texts` [N][K], and whether each names the style, bool [N, K]."""

    texts: list[list[str]]
    names_style: NDArray[np.bool_]


def caption_variants(
    examples: Examples, num: int, *, keep_all: float, keep_style: float, seed: int
) -> Variants:
    """Reword captions: the name stays, tags are dropped at random, the style phrase is kept at a rate."""
    rng = np.random.default_rng(seed)
    has_style = rng.random((len(examples), num)) < keep_style
    texts = []
    for caption, style, flags in zip(examples.caption, examples.style, has_style, strict=True):
        shorter = [_shortened(str(caption), keep_all, rng) for _ in range(num)]
        pairs = zip(shorter, flags, strict=True)
        texts.append([styled(text, str(style)) if flag else text for text, flag in pairs])
    return Variants(texts=texts, names_style=has_style)


def distinct(texts: Sequence[Sequence[str]]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts, and where in that list each of [N][K] is, int64 [N, K]."""
    unique, inverse = np.unique(np.array(texts), return_inverse=True)
    return [str(text) for text in unique], inverse.reshape(len(texts), -1).astype(np.int64)


def _shortened(caption: str, keep_all: float, rng: np.random.Generator) -> str:
    name, *tags = caption.split(", ")
    if rng.random() >= keep_all:
        tags = [tag for tag in tags if rng.random() < 0.5]
    return ", ".join([name, *tags])
