"""Variants in training: drawn by each trial for itself, and encoded as what they are."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.base import BaseModel, TrainingData
from bench.buckets import fit
from bench.config import TrialConfig
from bench.dataset import Example
from bench.encoding import crops_note, encode
from bench.fit import data_bytes, find_fit
from bench.pictures import digest
from bench.prior import with_prior
from bench.rehearsal import random_data
from bench.space import SearchSpace
from bench.variants import NUM_SHUFFLES, Variants, place_of, shuffled
from trainers.loop import train
from trainers.lora import Adapter
from trainers.samples import Draw, batch, draw

VARIANTS = Variants(flip=True, crops=3, keep_tags=(0, 1))
PLAIN = TrialConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=2, batch_size=3, seed=1)
OPTIONS = [
    {},
    {"flip": True},
    {"crops": 3},
    {"shuffle_caption": True, "keep_tags": 1},
    {"flip": True, "crops": 2, "shuffle_caption": True, "caption_dropout": 0.3},
]
CONFIGS = [PLAIN.model_copy(update=options) for options in OPTIONS]


@pytest.fixture(scope="module")
def varied(base: BaseModel) -> TrainingData:
    """Ten images with all variants, which differ."""
    return random_data(base, 10, VARIANTS)


@pytest.fixture(scope="module")
def plain(varied: TrainingData) -> TrainingData:
    """The same images and captions as they are."""
    return replace(varied, buckets=(varied.buckets[0][:],))


def trained(base: BaseModel, data: TrainingData, configs: Sequence[TrialConfig]) -> list[Adapter]:
    rung = next(train(base, data, iter(configs), [2], len(configs)))
    return [rung.adapter(index) for index in rung.alive]


def steps(data: TrainingData, config: TrialConfig, number: int = 200) -> list[Draw]:
    return [draw(data, config, step) for step in range(number)]


def test_a_mixed_pack_gives_what_its_trials_give_alone(base: BaseModel, varied: TrainingData) -> None:
    packed = trained(base, varied, CONFIGS)
    for config, adapter in zip(CONFIGS, packed, strict=True):
        (alone,) = trained(base, varied, [config])
        for name, tensor in alone.items():
            # AdamW makes an update of a gradient's rounding where it is all but zero.
            assert (adapter[name] - tensor).norm() <= 5e-3 * tensor.norm(), name
    for adapter in packed[1:]:
        assert any(not torch.equal(adapter[name], packed[0][name]) for name in adapter)


def test_a_trial_without_variants_gives_the_same_bits_where_others_have_them(
    base: BaseModel, varied: TrainingData, plain: TrainingData
) -> None:
    (among,), (alone,) = trained(base, varied, [PLAIN]), trained(base, plain, [PLAIN])
    tolerance = 0 if base.device.type == "cpu" else 5e-4  # a GPU adds in another order each time
    for name, tensor in alone.items():
        assert (among[name] - tensor).norm() <= tolerance * tensor.norm(), name


@pytest.mark.parametrize("config", CONFIGS[1:4])
def test_a_variant_changes_no_other_number_of_a_trial(config: TrialConfig, varied: TrainingData) -> None:
    own = {"view"} if config.flip or config.crops > 1 else {"wording"}
    for one, other in zip(steps(varied, config, 5), steps(varied, PLAIN, 5), strict=True):
        for field in fields(Draw):
            if field.name not in own:
                assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_numbers_are_those_of_the_seed_and_the_step_alone(varied: TrainingData) -> None:
    """In this order from the stream of the step: a run of an earlier version goes on with the same ones."""
    drawn = draw(varied, PLAIN, 7)
    number = int.from_bytes(hashlib.sha256(b"1/step/7").digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    shape = (3, *varied.buckets[0].mean.shape[1:])
    assert torch.equal(drawn.posterior, torch.randn(shape, generator=generator))
    assert torch.equal(drawn.noise, torch.randn(shape, generator=generator))
    assert torch.equal(drawn.timesteps, torch.randint(1000, (3,), generator=generator))
    torch.rand(3, generator=generator)
    assert torch.equal(drawn.keys, torch.randint(-(2**31), 2**31, (3,), generator=generator).int())
    assert not drawn.view.any() and not drawn.wording.any() and not drawn.dropped.any()


def test_each_variant_is_drawn_about_equally_often(varied: TrainingData) -> None:
    views = [torch.cat([one.view for one in steps(varied, config)]) for config in CONFIGS]
    counts = [torch.bincount(view, minlength=6) / len(view) for view in views]
    expected = [[1], [1 / 2, 0, 0, 1 / 2], [1 / 3] * 3, [1], [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4]]
    for count, shares in zip(counts, expected, strict=True):
        torch.testing.assert_close(count[: len(shares)], torch.tensor(shares).float(), atol=0.06, rtol=0)
        assert not count[len(shares) :].any()
    wordings = torch.cat([one.wording for one in steps(varied, CONFIGS[3])])
    assert set(wordings.tolist()) == set(range(1 + NUM_SHUFFLES, 1 + 2 * NUM_SHUFFLES))  # that keep one
    wordings = torch.cat([one.wording for one in steps(varied, CONFIGS[4])])
    assert set(wordings.tolist()) == set(range(1, 1 + NUM_SHUFFLES))


def test_a_batch_holds_the_drawn_views_and_wordings(base: BaseModel, varied: TrainingData) -> None:
    (bucket,) = varied.buckets
    drawn = replace(
        draw(varied, PLAIN, 0),
        index=torch.tensor([4, 9, 0]),
        view=torch.tensor([0, 5, 2]),
        wording=torch.tensor([1, 0, 16]),
    ).to(base.device)
    samples = batch(bucket, varied.empty, drawn)
    mean, hidden = bucket.mean.view(6, 10, *base.latent_shape), bucket.text.hidden.unflatten(0, (17, 10))
    assert torch.equal(samples.latents, torch.stack([mean[0, 4], mean[5, 9], mean[2, 0]]))
    assert torch.equal(samples.text.hidden, torch.stack([hidden[1, 4], hidden[0, 9], hidden[16, 0]]))


def test_views_that_were_not_encoded_are_not_drawn(plain: TrainingData) -> None:
    for config in CONFIGS[1:]:
        with pytest.raises(ValueError):
            draw(plain, config, 0)


# Encoded


def picture(number: int, width: int, height: int) -> Example:
    image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))
    caption, sha = f"ohwx, {'abcdefgh'[number]}, red, round, large", digest(image)
    return Example(name=caption, caption=caption, digest=sha, size=image.size, load=lambda: image)


PICTURES = [picture(0, 40, 40), picture(1, 90, 60), picture(2, 60, 90), picture(3, 45, 30)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("mixed", [False, True])
def test_each_view_is_the_encoding_of_its_picture(base: BaseModel, mixed: bool) -> None:
    data = encode(base, PICTURES, mixed=mixed, variants=Variants(flip=True, crops=2))
    plain = encode(base, PICTURES, mixed=mixed)
    assert len(data) == len(plain) == len(PICTURES)
    texts = base.encode_prompts([example.caption for example in PICTURES]).hidden
    for bucket, as_it_is in zip(data.buckets, plain.buckets, strict=True):
        n, (height, width) = len(bucket), (side * base.vae_scale for side in bucket.mean.shape[2:])
        assert torch.equal(bucket[:].mean, as_it_is.mean)
        assert len(bucket.mean) == len(bucket.std) == 4 * n and len(bucket.text) == n
        for row in range(n):
            example = PICTURES[int((texts - bucket.text.hidden[row]).flatten(1).norm(dim=1).argmin())]
            centre = fit(example.image(), width, height)
            elsewhere = fit(example.image(), width, height, place=place_of(example.digest, 1))
            expected = [centre, elsewhere, centre[:, ::-1], elsewhere[:, ::-1]]
            for view, pixels in enumerate(expected):
                mean, std = base.encode_images(pixels[None].copy())
                torch.testing.assert_close(bucket.mean[view * n + row], mean[0], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(bucket.std[view * n + row], std[0], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("cache")
def test_slots_are_counted_beside_the_encoded_data(base: BaseModel) -> None:
    default = {"rank": 4, "alpha": 8, "learning_rate": 1e-3, "epochs": 1}
    parameters: dict[str, Any] = {
        "flip": {"choices": [False, True]},
        "crops": {"choices": [1, 3]},
        "shuffle_caption": {"choices": [False, True]},
        "keep_tags": {"choices": [0, 1]},
        "prior_weight": {"choices": [0, 1]},
    }
    given = {"base": "tiny", "default": default, "class_prompt": "a dog", "class_images": 2, "trials": 48}
    space = SearchSpace.model_validate(given | {"parameters": parameters})
    data = with_prior(base, encode(base, PICTURES, variants=space.variants), PICTURES, "a dog", None, 2)
    assert data.prior
    buckets = [*data.buckets, data.prior]
    parts = [(each.mean, each.std, each.text.hidden, each.text.pooled) for each in buckets]
    tensors = [tensor for part in parts for tensor in part]
    assert data_bytes(base, space, len(PICTURES)) == sum(tensor.nbytes for tensor in tensors)
    too_many = 10**12 // data_bytes(base, space, 1)
    if base.device.type == "cpu":
        assert find_fit(base, space, train).slots > find_fit(base, space, train, 1, too_many).slots == 1


def test_pictures_without_room_for_crops_are_said(base: BaseModel) -> None:
    assert crops_note(base, PICTURES, Variants(flip=True)) is None
    assert crops_note(base, PICTURES[1:], Variants(crops=2)) is None
    assert str(crops_note(base, PICTURES, Variants(crops=2))).startswith("1 of 4 pictures have the shape")


@pytest.mark.usefixtures("cache")
def test_each_wording_is_the_encoding_of_its_text(base: BaseModel) -> None:
    (bucket,) = encode(base, PICTURES, variants=Variants(keep_tags=(1,), trigger="ohwx")).buckets
    texts = [example.caption for example in PICTURES]
    texts += [shuffled(e.caption, 1, number) for number in range(NUM_SHUFFLES) for e in PICTURES]
    expected = base.encode_prompts(texts)
    torch.testing.assert_close(bucket.text.hidden, expected.hidden)
    torch.testing.assert_close(bucket.text.pooled, expected.pooled)
    assert len(bucket) == len(bucket.mean) == 4


def test_more_variants_cost_only_what_is_new(base: BaseModel, cache: Path) -> None:
    counts = []
    for variants in (
        Variants(),
        Variants(flip=True),
        Variants(flip=True, crops=2),
        Variants(crops=2),
        Variants(crops=2, keep_tags=(0,)),
    ):
        encode(base, PICTURES, variants=variants)
        counts.append(len(list(cache.iterdir())))
    assert counts == [1, 2, 4, 4, 5]


# Concepts


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("mixed", [False, True])
def test_an_epoch_shows_every_concept_equally_often(base: BaseModel, mixed: bool) -> None:
    named = [replace(example, concept="dog" if n else "cat") for n, example in enumerate(PICTURES)]
    data = encode(base, named, mixed=mixed, balance=True)
    assert (len(data), data.num_shown) == (4, 6)
    config = PLAIN.model_copy(update={"batch_size": 1})
    shown = {}
    for step in range(data.schedule(1).end(1)):
        place = data.schedule(1).place(step)
        row = int(draw(data, config, step).index)
        pixels = data.buckets[place.bucket].mean[row].cpu().numpy().tobytes()
        shown[pixels] = shown.get(pixels, 0) + 1
    assert sorted(shown.values()) == [1, 1, 1, 3]


@pytest.mark.usefixtures("cache")
def test_one_concept_is_drawn_as_without_balance(base: BaseModel) -> None:
    plain, same = (encode(base, PICTURES, balance=balance) for balance in (False, True))
    for one, other in zip(steps(plain, PLAIN, 9), steps(same, PLAIN, 9), strict=True):
        assert all(map(torch.equal, one.tensors, other.tensors))


@pytest.mark.usefixtures("cache")
def test_balanced_packs_give_what_their_trials_give_alone(base: BaseModel) -> None:
    named = [replace(example, concept="dog" if n else "cat") for n, example in enumerate(PICTURES)]
    data = encode(base, named, balance=True, variants=Variants(flip=True))
    configs = [PLAIN, PLAIN.model_copy(update={"flip": True, "rank": 2})]
    for config, adapter in zip(configs, trained(base, data, configs), strict=True):
        (alone,) = trained(base, data, [config])
        for name, tensor in alone.items():
            assert (adapter[name] - tensor).norm() <= 5e-4 * tensor.norm(), name
