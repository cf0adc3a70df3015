"""Pictures and captions -> what a base trains on, with all the variants that trials may draw."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData, concatenate
from bench.buckets import Size, bucket_of, bucket_sizes, fit, largest_crop, step_of
from bench.cache import cached
from bench.dataset import Example, balanced
from bench.variants import AS_THEY_ARE, Variants, place_of


def encode(
    base: BaseModel,
    examples: Sequence[Example],
    *,
    mixed: bool = False,
    variants: Variants = AS_THEY_ARE,
    balance: bool = False,
) -> TrainingData:
    """Latents and conditioning of images, cropped to squares or, `mixed`, each to the nearest aspect ratio.

    With `balance` an epoch shows all concepts equally often. What was encoded before comes from the cache.
    """
    sizes = _sizes(base, mixed)
    by_size: dict[Size, list[Example]] = {size: [] for size in sizes}
    shown: dict[Size, list[int]] = {size: [] for size in sizes}
    repeats = balanced(examples) if balance else [1] * len(examples)
    for example, times in zip(examples, repeats, strict=True):
        size = bucket_of(example.size, sizes)
        shown[size] += [len(by_size[size])] * times
        by_size[size].append(example)
    buckets = []
    for size, of_size in by_size.items():
        if of_size:
            bucket, empty = _encoded(base, of_size, size)
            if variants.any:
                bucket = _varied(base, bucket, of_size, size, variants)
            buckets.append(replace(bucket, shown=tuple(shown[size])))
    return TrainingData(buckets=tuple(buckets), empty=empty)


def crops_note(
    base: BaseModel, examples: Sequence[Example], variants: Variants, *, mixed: bool = False
) -> str | None:
    """What to know of pictures that have no other crop than the centre's, if crops are asked for."""
    sizes = _sizes(base, mixed)
    alike = [each for each in examples if largest_crop(each.size, bucket_of(each.size, sizes)) == each.size]
    if variants.crops == 1 or not alike:
        return None
    return (
        f"{len(alike)} of {len(examples)} pictures have the shape that they are trained in, and so no other "
        "crop than themselves"
    )


def _sizes(base: BaseModel, mixed: bool) -> tuple[Size, ...]:
    if mixed:
        return bucket_sizes(base.resolution, step_of(base.resolution, base.vae_scale))
    return (Size(base.resolution, base.resolution),)


def view(example: Example, size: Size, crop: int, mirrored: bool) -> NDArray[np.uint8]:
    """What is shown of a picture, (height, width, 3)."""
    pixels = fit(example.image(), *size, place=place_of(example.digest, crop))
    return pixels[:, ::-1] if mirrored else pixels


def _encoded(base: BaseModel, examples: Sequence[Example], size: Size) -> tuple[Bucket, TextEmbedding]:
    """As they are, with the conditioning of the empty prompt."""
    captions = [example.caption for example in examples]
    digests = [example.digest for example in examples]

    def compute() -> dict[str, torch.Tensor]:
        mean, std = base.encode_images(np.stack([fit(example.image(), *size) for example in examples]))
        text, empty = base.encode_prompts(captions), base.encode_empty()
        return {
            "mean": mean,
            "std": std,
            "hidden": text.hidden,
            "pooled": text.pooled,
            "empty_hidden": empty.hidden,
            "empty_pooled": empty.pooled,
        }

    inputs = ["latents 3", base.fingerprint, size, str(base.dtype), digests, captions]
    tensors = cached(inputs, compute, base.device)
    text = TextEmbedding(tensors["hidden"], tensors["pooled"])
    empty = TextEmbedding(tensors["empty_hidden"], tensors["empty_pooled"])
    bucket = Bucket(mean=tensors["mean"], std=tensors["std"], text=text, captions=tuple(captions))
    return bucket, empty


def _varied(
    base: BaseModel, plain: Bucket, examples: Sequence[Example], size: Size, variants: Variants
) -> Bucket:
    """`plain` with all other views and wordings; each view is kept by itself, so that more of them cost no
    more than what is new."""
    views = [_view(base, examples, size, *view) for view in variants.views[1:]]
    text, captions = plain.text, plain.captions
    if variants.keep_tags:
        by_caption = [variants.wordings(example.caption)[1:] for example in examples]
        others = [caption for wording in zip(*by_caption, strict=True) for caption in wording]
        text, captions = concatenate([text, _wordings(base, others)]), (*captions, *others)
    return Bucket(
        mean=torch.cat([plain.mean, *(mean for mean, _ in views)]),
        std=torch.cat([plain.std, *(std for _, std in views)]),
        text=text,
        captions=captions,
        variants=variants,
    )


def _view(
    base: BaseModel, examples: Sequence[Example], size: Size, crop: int, mirrored: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of one view of each picture."""

    def compute() -> dict[str, torch.Tensor]:
        pictures = [view(example, size, crop, mirrored) for example in examples]
        mean, std = base.encode_images(np.stack(pictures))
        return {"mean": mean, "std": std}

    digests = [example.digest for example in examples]
    inputs = ["view 1", base.fingerprint, size, str(base.dtype), digests, crop, mirrored]
    tensors = cached(inputs, compute, base.device)
    return tensors["mean"], tensors["std"]


def _wordings(base: BaseModel, captions: Sequence[str]) -> TextEmbedding:
    def compute() -> dict[str, torch.Tensor]:
        text = base.encode_prompts(captions)
        return {"hidden": text.hidden, "pooled": text.pooled}

    inputs = ["wordings 1", base.fingerprint, str(base.dtype), captions]
    tensors = cached(inputs, compute, base.device)
    return TextEmbedding(tensors["hidden"], tensors["pooled"])
