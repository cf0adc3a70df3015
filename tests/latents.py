"""Random latents with captions, to train on."""

import string

import torch

from bench.base import BaseModel, Bucket, TrainingData


def random_latents(base: BaseModel) -> TrainingData:
    generator = torch.Generator().manual_seed(1)
    shape = (10, *base.latent_shape)
    captions = [f"{letter} red apple" for letter in string.ascii_lowercase[:10]]
    images = Bucket(
        mean=torch.randn(shape, generator=generator).to(base.device),
        std=torch.rand(shape, generator=generator).to(base.device) / 10,
        text=base.encode_prompts(captions),
        captions=tuple(captions),
    )
    return TrainingData(buckets=(images,), empty=base.encode_empty())
