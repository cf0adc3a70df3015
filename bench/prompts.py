"""Fixed prompts with their seeds: held-out captions, and probes of what else an adapter does.

The kinds follow the prompt types of LyCORIS' evaluation (Yeh et al. 2023, https://arxiv.org/abs/2309.14859).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from bench import yaml
from bench.dataset import BUILTIN, Dataset, Example, text_problem
from bench.errors import UsageError
from bench.run import Split
from bench.space import MIN_UNRELATED, Prompts
from bench.yaml import Spec

Kind = Literal["held-out", "training", "altered", "style", "unrelated"]
Item = TypeVar("Item")

MAIN_SHARE = 0.1
"""A word that is in more than this share of the captions is a main word of the data."""
FUNCTION_WORDS = frozenset("a an and are as at by for from in into is it its of on or the to with".split())
COMMA = re.compile(r"(?<!\d),|,(?!\d)")  # but not that of 1,000


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A text to draw, once with each seed."""

    text: str
    seeds: tuple[int, ...]
    kind: Kind = "held-out"
    example: Example | None = None
    """The true picture, if the text is the caption of one."""


def held_out_prompts(dataset: Dataset, split: Split, count: int, num_seeds: int) -> list[Prompt]:
    """At most `count` different captions, evenly spread over the split; the same in every run on it."""
    examples = _by_caption(dataset.dev if split == "dev" else dataset.test)
    return [
        Prompt(text=example.caption, seeds=_seeds(split, example.caption, num_seeds), example=example)
        for example in _spread(list(examples.values()), count)
    ]


def probe_prompts(dataset: Dataset, spec: Prompts, trigger: str | None) -> list[Prompt]:
    """Training, altered, style and unrelated prompts, in this order; the same in every run on the data.

    Raises UsageError if `spec.file` cannot be used.
    """
    trigger = (trigger or "").strip()
    given = yaml.read(Path(spec.file), ProbeTexts) if spec.file else ProbeTexts()
    made = _bundled(dataset, trigger) if dataset.name in BUILTIN else _composed(dataset, spec, trigger)
    examples = _training_examples(dataset, given, str(spec.file), trigger)
    prompts = [
        _probe("training", example.caption, spec, example) for example in _spread(examples, spec.training)
    ]
    texts: list[tuple[Kind, Sequence[str], int]] = [
        ("altered", given.altered or made["altered"], spec.altered),
        ("style", given.style or made["style"], spec.style),
        ("unrelated", given.unrelated or made["unrelated"], spec.unrelated),
    ]
    prompts += [_probe(kind, text, spec) for kind, listed, count in texts for text in _spread(listed, count)]
    return prompts


def scored_text(text: str, trigger: str | None) -> str:
    """The text without the trigger word, which CLIP has never seen; empty if nothing else was said."""
    trigger = (trigger or "").strip()
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    if not trigger or not word.search(text):
        return text
    parts = (" ".join(part.split()) for part in COMMA.split(word.sub(" ", text)))
    return ", ".join(part for part in parts if part)


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """sha256 over texts, seeds and kinds, in order; held-out prompts count without their kind."""
    content = [
        (prompt.text, prompt.seeds) if prompt.kind == "held-out" else (prompt.text, prompt.seeds, prompt.kind)
        for prompt in prompts
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _probe(kind: Kind, text: str, spec: Prompts, example: Example | None = None) -> Prompt:
    return Prompt(text=text, seeds=_seeds(kind, text, spec.probe_seeds), kind=kind, example=example)


def _seeds(group: Split | Kind, text: str, count: int) -> tuple[int, ...]:
    """They depend on nothing that a search varies, and differ between dev, test and every kind of probe."""
    keys = (json.dumps([group, text, index]).encode() for index in range(count))
    return tuple(int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 2**31 for key in keys)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _by_caption(examples: Iterable[Example]) -> dict[str, Example]:
    """The first picture of each caption."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.caption, example)
    return first


# Texts in files


def _checked(text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise ValueError("empty text")
    if problem := text_problem(text, "text"):
        raise ValueError(problem)
    return text


def _different(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text, uses in Counter(texts).items():
        if uses > 1:
            raise ValueError(f"lists a text twice: {text[:60]!r}")
    return texts


def _enough(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(texts) < MIN_UNRELATED:
        raise ValueError(f"at least {MIN_UNRELATED} texts are needed, got {len(texts)}")
    return texts


Text = Annotated[str, AfterValidator(_checked)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_different)]
Enough = Annotated[Texts, AfterValidator(_enough)]


class ProbeTexts(Spec):
    """A file of probes: texts by kind, drawn as they are written."""

    training: Texts | None = None
    """Captions of training pictures, with or without the trigger."""
    altered: Texts | None = None
    style: Texts | None = None
    unrelated: Enough | None = None


class BundledTexts(Spec):
    """builtin/emoji/prompts.yaml; altered and style texts are written without the style phrase of the set."""

    altered: dict[str, Texts]
    """By name of the data set."""
    style: Texts
    unrelated: Enough


def _training_examples(dataset: Dataset, given: ProbeTexts, source: str, trigger: str) -> Sequence[Example]:
    """One example a caption; raises UsageError for a listed text that is no training caption."""
    examples = _by_caption(dataset.train)
    if given.training is None:
        return list(examples.values())
    by_text = {scored_text(caption, trigger): example for caption, example in examples.items()} | examples
    for number, text in enumerate(given.training):
        if text not in by_text:
            raise UsageError(
                f"{source}: training.{number}: no training picture has the caption {text[:60]!r}"
            )
    return list(_by_caption(by_text[text] for text in given.training).values())


# Texts for data


def _bundled(dataset: Dataset, trigger: str) -> Mapping[Kind, Sequence[str]]:
    texts = yaml.parse(_builtin("emoji/prompts.yaml"), BundledTexts, "emoji/prompts.yaml")
    phrase = _shared_phrase(dataset, trigger)
    return {
        "altered": [_joined(trigger, text, phrase) for text in texts.altered[dataset.name]],
        "style": _style(texts.style, trigger, phrase),
        "unrelated": texts.unrelated,
    }


def _composed(dataset: Dataset, spec: Prompts, trigger: str) -> Mapping[Kind, Sequence[str]]:
    """Texts for a user's own data, from its captions and a general list."""
    texts = yaml.parse(_builtin("prompts.yaml"), ProbeTexts, "prompts.yaml")
    uses = Counter(word for example in _all(dataset) for word in _words(example.caption))
    fresh = [subject for subject in texts.style or () if not _words(subject) & uses.keys()]
    return {
        "altered": _altered(list(_by_caption(dataset.train)), texts.altered or (), spec.altered),
        "style": _style(fresh, trigger, _shared_phrase(dataset, trigger)),
        "unrelated": _unrelated(texts.unrelated or (), uses, len(_all(dataset))),
    }


def _altered(captions: Sequence[str], changes: Sequence[str], count: int) -> list[str]:
    """At most `count` different pairs of a caption and a change, spread over the captions."""
    captions = _spread(captions, count)
    num = len(captions)
    pairs = ((index % num, index % num + index // num) for index in range(min(count, num * len(changes))))
    return [
        changes[change % len(changes)].replace("{caption}", captions[caption].rstrip(" .,"))
        for caption, change in pairs
    ]


def _style(subjects: Sequence[str], trigger: str, phrase: str) -> list[str]:
    """What calls the style alone, if there is such a word or phrase, then the subjects with it."""
    alone = trigger or phrase
    return [*([alone] if alone else []), *(_joined(trigger, subject, phrase) for subject in subjects)]


def _unrelated(texts: Sequence[str], uses: Mapping[str, int], num_captions: int) -> list[str]:
    """The texts that share no main word with the data; MIN_UNRELATED at least, others last."""
    main = {word for word, count in uses.items() if count > max(1, MAIN_SHARE * num_captions)}
    ranked = sorted(texts, key=lambda text: bool(_words(text) & main))
    num_strange = sum(not _words(text) & main for text in texts)
    return ranked[: max(MIN_UNRELATED, num_strange)]


def _shared_phrase(dataset: Dataset, trigger: str) -> str:
    """The last part of the training captions if it is the same in all, such as `, pixel art style`."""
    parts = {scored_text(example.caption, trigger).rpartition(", ")[::2] for example in dataset.train}
    phrases = {phrase if rest else "" for rest, phrase in parts}
    return phrases.pop() if len(phrases) == 1 else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _words(text: str) -> set[str]:
    """Words that carry meaning; a plural counts as its singular."""
    words = set(re.findall(r"\w+", text.lower())) - FUNCTION_WORDS
    return {word.removesuffix("s") for word in words}


def _all(dataset: Dataset) -> tuple[Example, ...]:
    return dataset.train + dataset.dev + dataset.test


def _builtin(name: str) -> str:
    return (files("bench") / "builtin" / name).read_text(encoding="utf-8")
