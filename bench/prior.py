"""Prior: images that the base draws of a subject's class, for adapters that must not forget it.

DreamBooth's prior preservation: Ruiz et al. 2023 (arXiv 2208.12242), section 3.2.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData
from bench.cache import cached
from bench.dataset import Example
from bench.errors import UsageError
from bench.prompts import scored_text
from bench.scoring.generate import generate
from bench.space import Sampler

SAMPLER = Sampler(steps=20, guidance=5.0)
"""The same in a search and in a training of its winner alone."""


def with_prior(
    base: BaseModel,
    data: TrainingData,
    examples: Sequence[Example],
    class_prompt: str | None,
    trigger: str | None,
    count: int,
) -> TrainingData:
    """Data of these examples, with `count` images of the class beside them; see `class_texts`."""
    return replace(data, prior=draw_class(base, class_texts(examples, class_prompt, trigger, count)))


def class_texts(
    examples: Sequence[Example], class_prompt: str | None, trigger: str | None, count: int
) -> list[str]:
    """`count` prompts of the class: the given one, else the captions without the trigger, in turn.

    Raises UsageError if those say nothing.
    """
    if class_prompt:
        return [class_prompt] * count
    texts = [text for example in examples if (text := scored_text(example.caption, trigger))]
    if not texts:
        raise UsageError("prior_weight: captions say only the trigger; give class_prompt, as in: a dog")
    return [texts[index % len(texts)] for index in range(count)]


def draw_class(base: BaseModel, texts: Sequence[str]) -> Bucket:
    """An image of each text, drawn by the bare base and encoded; from the cache if it is there."""

    def compute() -> dict[str, torch.Tensor]:
        text = base.encode_prompts(texts)
        (images,) = generate(base, text, base.encode_empty(), range(len(texts)), SAMPLER)
        mean, std = base.encode_images(images)
        return {"mean": mean, "std": std, "hidden": text.hidden, "pooled": text.pooled}

    how = [SAMPLER.steps, SAMPLER.guidance]
    inputs = ["class 1", base.fingerprint, str(base.dtype), base.resolution, how, list(texts)]
    tensors = cached(inputs, compute, base.device)
    text = TextEmbedding(tensors["hidden"], tensors["pooled"])
    return Bucket(mean=tensors["mean"], std=tensors["std"], text=text, captions=tuple(texts))
