"""Easel: one prompt drawn by a base and through one adapter, side by side, at any weight."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.base import BaseModel, find_device, load_base
from bench.errors import MismatchError, UsageError
from bench.exported import winner_of
from bench.loaded import base_of
from bench.packs import Attach
from bench.run import Run
from bench.scoring.generate import generate
from bench.space import Sampler

MAX_SEED = 2**63 - 1
Image = NDArray[np.uint8]
"""(height, width, 3)."""


@dataclass(eq=False, slots=True)
class Easel:
    """A base, and the adapter that is compared with it."""

    base: BaseModel
    file: Path
    name: str
    """Of the adapter."""
    attach: Attach
    sampler: Sampler
    prompt: str = "a red apple"
    """To begin with."""
    seed: int = 0
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _drawn: tuple[object, Image] | None = None
    """What the base drew last: a change of weight does not change it."""

    def draw(self, prompt: str, seed: int, weight: float) -> tuple[Image, Image]:
        """Of the base, and through the adapter, from the same noise; at weight 0 both are the same.

        Raises UsageError for a seed or weight that cannot be drawn, or a file that does not fit.
        """
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"seed: must be a whole number from 0 to {MAX_SEED}, got {seed}")
        with self._busy:
            plain = self._plain(prompt, seed)
            if weight == 0:
                return plain, plain
            with self.attach(self.base, [self.file], weight):
                return plain, self._drawing(prompt, seed)

    def _plain(self, prompt: str, seed: int) -> Image:
        if self._drawn is None or self._drawn[0] != (prompt, seed):
            self._drawn = (prompt, seed), self._drawing(prompt, seed)
        return self._drawn[1]

    def _drawing(self, prompt: str, seed: int) -> Image:
        base = self.base
        own = base.own_readings([prompt])
        asked = (base.encode_prompts([prompt]), base.encode_empty(), [seed], self.sampler)
        image: Image = generate(base, *asked, own=own)[0, 0]
        return image


def easel_of(run: Run, attach: Attach) -> Easel:
    """The winner of a search; raises MissingError while there is none, MismatchError for another base."""
    space, winner = run.space, winner_of(run)
    base = base_of(space, find_device())
    if base.fingerprint != run.metadata.base_fingerprint:
        raise MismatchError(f"{space.base}: is not the base that {run.path} was made with")
    first = run.metadata.prompts["test"][0]
    title = f"{run.metadata.name}: {winner.name}"
    return _checked(
        Easel(base, winner.adapter, title, attach, space.sampler, prompt=first.text, seed=first.seeds[0])
    )


def easel_with(file: Path, base: str, attach: Attach) -> Easel:
    """An adapter file of any trainer; raises a BenchError if it does not fit the base."""
    device = find_device()
    loaded = load_base(base, device, dtype="bfloat16" if device.type == "cuda" else "float32")
    return _checked(Easel(loaded, file, file.name, attach, Sampler()))


def _checked(easel: Easel) -> Easel:
    """Fails now, not when the page asks for the first image."""
    with easel.attach(easel.base, [easel.file]):
        return easel
