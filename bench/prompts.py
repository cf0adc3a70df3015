"""Fixed prompts of a held-out split, with their seeds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.dataset import Dataset, Example
from bench.run import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A caption to draw, once with each seed."""

    text: str
    seeds: tuple[int, ...]
    example: Example | None = None
    """The true picture of this caption."""


def held_out_prompts(dataset: Dataset, split: Split, count: int, num_seeds: int) -> list[Prompt]:
    """At most `count` different captions, evenly spread over the split; the same in every run on it."""
    examples = dataset.dev if split == "dev" else dataset.test
    by_text: dict[str, Example] = {}
    for example in examples:
        by_text.setdefault(example.caption, example)
    distinct = list(by_text.values())
    count = min(count, len(distinct))
    chosen = [distinct[index * len(distinct) // count] for index in range(count)]
    return [
        Prompt(text=example.caption, seeds=_seeds(split, example.caption, num_seeds), example=example)
        for example in chosen
    ]


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """sha256 over texts and seeds, in order."""
    content = [(prompt.text, prompt.seeds) for prompt in prompts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _seeds(split: Split, text: str, count: int) -> tuple[int, ...]:
    """They depend on nothing that a search varies, and differ between dev and test."""
    keys = (json.dumps([split, text, index]).encode() for index in range(count))
    return tuple(int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 2**31 for key in keys)
