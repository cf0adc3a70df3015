"""One picture of the data set, with everything that is known of it."""

from dataclasses import dataclass

from bench.builtin.recipe.rasterise import Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One picture of the data set; `pixels` is uint8 [64, 64, 3]."""

    set: str
    role: str
    split: str
    name: str
    caption: str
    style: str
    codepoint: str
    group: str
    subgroup: str
    flip_ok: bool
    licence: str
    pixels: Pixels
