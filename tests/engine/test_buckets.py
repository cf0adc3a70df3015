"""Pictures of several aspect ratios: encoded each to its own, trained side by side as alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from bench.base import BaseModel, Bucket, TrainingData
from bench.buckets import Place
from bench.config import TrialConfig
from bench.dataset import Example
from bench.encoding import encode
from bench.pictures import digest
from trainers.loop import train
from trainers.lora import Adapter
from trainers.samples import _indices, draw

CONFIGS = [
    TrialConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=1, batch_size=2, seed=1),
    TrialConfig(rank=2, alpha=2, learning_rate=3e-3, epochs=2, batch_size=2, seed=2),
    TrialConfig(rank=2, alpha=4, learning_rate=1e-2, epochs=2, batch_size=2, seed=3),
]


@pytest.fixture
def mixed(base: BaseModel, data: TrainingData) -> TrainingData:
    """The ten images, and five wide and three tall ones."""
    generator = torch.Generator().manual_seed(2)
    (square,) = data.buckets

    def bucket(count: int, height: int, width: int) -> Bucket:
        mean = torch.randn(count, base.latent_shape[0], height, width, generator=generator)
        std = torch.rand(mean.shape, generator=generator) / 10
        return Bucket(mean=mean.to(base.device), std=std.to(base.device), text=square.text[:count])

    return replace(data, buckets=(bucket(3, 20, 12), square, bucket(5, 12, 20)))


def trained(
    base: BaseModel, data: TrainingData, configs: Sequence[TrialConfig], num_slots: int | None = None
) -> list[Adapter]:
    adapters: dict[int, Adapter] = {}
    for rung in train(base, data, iter(configs), [1, 2], num_slots or len(configs)):
        for index in rung.alive:
            adapters[index] = rung.adapter(index)
    return [adapters[index] for index in range(len(configs))]


@pytest.mark.parametrize("num_slots", [3, 2])
def test_a_pack_on_mixed_sizes_gives_what_its_trials_give_alone(
    base: BaseModel, mixed: TrainingData, num_slots: int
) -> None:
    """With two slots the third trial begins when the first has ended, beside the second."""
    packed = trained(base, mixed, CONFIGS, num_slots)
    for config, adapter in zip(CONFIGS, packed, strict=True):
        (alone,) = trained(base, mixed, [config])
        for name, tensor in alone.items():
            assert (adapter[name] - tensor).norm() <= 5e-4 * tensor.norm(), name
            assert "lora_B" not in name or tensor.any()


def test_a_step_shows_one_size_and_an_epoch_all_images(base: BaseModel, mixed: TrainingData) -> None:
    config = CONFIGS[0]
    steps = range(mixed.schedule(config.batch_size).end(1))
    assert len(steps) == 2 + 5 + 3
    shapes = [tuple(draw(mixed, config, step).noise.shape[2:]) for step in steps]
    assert {shape: shapes.count(shape) for shape in set(shapes)} == {(20, 12): 2, (16, 16): 5, (12, 20): 3}


def test_every_bucket_has_its_own_permutations() -> None:
    rows = [_indices(10, 7, Place(bucket, 0), 20) for bucket in range(3)]
    assert all(sorted(row[:10]) == sorted(row[10:]) == list(range(10)) for row in rows)
    assert rows[0] != rows[1] != rows[2]


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (32, 8)])
def test_the_unet_is_told_the_size_as_the_pipeline_tells_it(
    tiny_sdxl: Path, base: BaseModel, shape: tuple[int, int]
) -> None:
    plain = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False).to(base.device)
    latents = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(0)).to(base.device)
    text, timesteps = base.encode_prompts(["a", "b"]), torch.tensor([100, 900], device=base.device)
    size = (shape[0] * base.vae_scale, shape[1] * base.vae_scale)
    ids = plain._get_add_time_ids(
        size, (0, 0), size, torch.float32, plain.text_encoder_2.config.projection_dim
    )
    conditions = {"text_embeds": text.pooled, "time_ids": ids.repeat(2, 1).to(base.device)}
    with torch.no_grad():
        expected = plain.unet(latents, timesteps, text.hidden, added_cond_kwargs=conditions).sample
        assert torch.allclose(base.predict(latents, timesteps, text), expected, atol=1e-5)


# From pictures


def picture(number: int, width: int, height: int) -> Example:
    image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))
    caption, sha = "abcdefgh"[number], digest(image)
    return Example(name=caption, caption=caption, digest=sha, size=image.size, load=lambda: image)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


PICTURES = [
    picture(0, 40, 40),
    picture(1, 90, 60),
    picture(2, 60, 90),
    picture(3, 45, 30),
    picture(4, 41, 40),
]


@pytest.mark.usefixtures("cache")
def test_pictures_go_to_buckets_with_their_captions(base: BaseModel) -> None:
    mixed = encode(base, PICTURES, mixed=True)
    tall, square, wide = mixed.buckets
    assert [tuple(bucket.mean.shape) for bucket in mixed.buckets] == [
        (1, 4, 20, 12),
        (2, 4, 16, 16),
        (2, 4, 12, 20),
    ]
    assert len(mixed) == len(PICTURES)
    for bucket, captions in ((tall, ["c"]), (square, ["a", "e"]), (wide, ["b", "d"])):
        expected = base.encode_prompts(captions)
        assert torch.equal(bucket.text.hidden, expected.hidden)
        assert torch.equal(bucket.text.pooled, expected.pooled)
    assert torch.equal(mixed.empty.hidden, base.encode_empty().hidden)


@pytest.mark.usefixtures("cache")
def test_squares_are_one_bucket_in_the_order_of_the_pictures(base: BaseModel) -> None:
    (bucket,) = encode(base, PICTURES).buckets
    assert tuple(bucket.mean.shape) == (5, *base.latent_shape)
    assert torch.equal(bucket.text.hidden, base.encode_prompts(list("abcde")).hidden)


def test_what_was_encoded_is_read_back(base: BaseModel, cache: Path) -> None:
    first = encode(base, PICTURES, mixed=True)
    again = encode(base, PICTURES, mixed=True)
    assert len(list(cache.iterdir())) == 3
    for one, other in zip(first.buckets, again.buckets, strict=True):
        assert torch.equal(one.mean, other.mean) and torch.equal(one.text.hidden, other.text.hidden)
    encode(base, PICTURES)
    assert len(list(cache.iterdir())) == 4
