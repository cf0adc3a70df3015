"""Variants: views of a picture (mirrored, cropped elsewhere) and wordings of its caption (tags shuffled).

All are encoded once, and training draws among them. Which ones there are follows from the pixels and the text
alone: a trial gives the same wherever and beside whatever it trains.
"""

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

NUM_SHUFFLES = 8
"""Of a caption: fixed, so that text encoders are needed no more once training begins."""
CENTRE = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variants:
    """What is encoded of each picture and of its caption: both as they are, and what is asked for here."""

    flip: bool = False
    """Mirrored too."""
    crops: int = 1
    """The first is the centre's."""
    keep_tags: tuple[int, ...] = ()
    """Numbers of tags that stay in front while the others are shuffled; nothing is shuffled without one."""
    trigger: str | None = None
    """Stays in front of shuffled tags where it is in the first."""

    @property
    def any(self) -> bool:
        """Whether anything but pictures and captions as they are."""
        return len(self.views) + self.num_wordings > 2

    @property
    def views(self) -> list[tuple[int, bool]]:
        """(crop, mirrored) of each view, the picture as it is first."""
        mirrored = (False, True) if self.flip else (False,)
        return [(crop, flipped) for flipped in mirrored for crop in range(self.crops)]

    @property
    def num_wordings(self) -> int:
        return 1 + NUM_SHUFFLES * len(self.keep_tags)

    def first_shuffle(self, keep_tags: int) -> int:
        """The wording from which on NUM_SHUFFLES keep so many tags; raises ValueError if none does."""
        return 1 + NUM_SHUFFLES * self.keep_tags.index(keep_tags)

    def wordings(self, caption: str) -> list[str]:
        """Of a caption, itself first."""
        numbered = [(keep, number) for keep in self.keep_tags for number in range(NUM_SHUFFLES)]
        return [caption, *(shuffled(caption, keep, number, self.trigger) for keep, number in numbered)]


AS_THEY_ARE = Variants()


def all_variants(
    flip: Iterable[bool],
    crops: Iterable[int],
    shuffle_caption: Iterable[bool],
    keep_tags: Iterable[int],
    trigger: str | None = None,
) -> Variants:
    """What trials need whose fields may have any of these values."""
    kept = tuple(sorted(set(keep_tags))) if any(shuffle_caption) else ()
    return Variants(flip=any(flip), crops=max(crops), keep_tags=kept, trigger=trigger)


def place_of(digest: str, crop: int) -> tuple[float, float]:
    """Where a crop of the picture of that digest lies: from left (0) to right (1), and from top to bottom."""
    return CENTRE if crop == 0 else _numbers(f"{digest}/crop/{crop}")


def shuffled(caption: str, keep_tags: int, number: int, trigger: str | None = None) -> str:
    """The caption with its tags, which commas separate, in another order; the first ones stay in front.

    The first stays too if it has the trigger in it. `number` tells shuffles of a caption apart.
    """
    tags = [tag for part in caption.split(",") if (tag := part.strip())]
    keep = max(keep_tags, 1 if tags and mentions(tags[0], trigger) else 0)
    rest = tags[keep:]
    if len(rest) < 2:
        return caption
    random.Random(f"{caption}/{number}").shuffle(rest)
    return ", ".join([*tags[:keep], *rest])


def mentions(text: str, trigger: str | None) -> bool:
    """Whether a trigger stands in a text as a word of its own."""
    if not (trigger := (trigger or "").strip()):
        return False
    return bool(re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.IGNORECASE))


def _numbers(text: str) -> tuple[float, float]:
    """Two of [0, 1)."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32, int.from_bytes(digest[4:8], "big") / 2**32
