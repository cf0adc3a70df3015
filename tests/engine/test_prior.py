"""Prior preservation: images of the class, drawn by the base, count beside a batch with their weight."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from PIL import Image

from bench.base import BaseModel, TrainingData
from bench.config import TrainingConfig, TrialConfig
from bench.dataset import Example
from bench.denoising import DenoisingLoss
from bench.errors import UsageError
from bench.prior import SAMPLER, class_texts, draw_class
from bench.rehearsal import random_data
from bench.scoring.generate import generate
from bench.space import SearchSpace
from bench.yaml import validate
from trainers.loop import Pack, Trial, train
from trainers.lora import Adapter, Slots, initial_adapter
from trainers.samples import batch, draw, draw_prior

PLAIN = TrialConfig(rank=4, alpha=8, learning_rate=1e-3, epochs=2, batch_size=2, seed=1)
PRIOR = PLAIN.model_copy(update={"prior_weight": 0.5, "seed": 2})
CONFIGS = [PLAIN, PRIOR, PRIOR.model_copy(update={"prior_weight": 1.0, "rank": 2, "dropout": 0.2})]


@pytest.fixture(scope="module")
def plain(base: BaseModel) -> TrainingData:
    return random_data(base, 10)


@pytest.fixture(scope="module")
def data(base: BaseModel, plain: TrainingData) -> TrainingData:
    """With three images of the class, of their own."""
    generator = torch.Generator().manual_seed(9)
    mean = torch.randn(3, *base.latent_shape, generator=generator).to(base.device)
    bucket = plain.buckets[0][:3]
    return replace(plain, prior=replace(bucket, mean=mean, text=base.encode_prompts(["a", "b", "c"])))


def trained(base: BaseModel, data: TrainingData, configs: Sequence[TrialConfig]) -> list[Adapter]:
    rung = next(train(base, data, iter(configs), [2], len(configs)))
    return [rung.adapter(index) for index in rung.alive]


def assert_close(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (other[name] - tensor).norm() <= 5e-4 * tensor.norm(), name


def test_a_mixed_pack_gives_what_its_trials_give_alone(base: BaseModel, data: TrainingData) -> None:
    packed = trained(base, data, CONFIGS)
    for config, adapter in zip(CONFIGS, packed, strict=True):
        assert_close(trained(base, data, [config])[0], adapter)


def test_a_trial_without_it_gives_the_same_bits(
    base: BaseModel, data: TrainingData, plain: TrainingData
) -> None:
    (one,), (other,) = trained(base, data, [PLAIN]), trained(base, plain, [PLAIN])
    tolerance = 0 if base.device.type == "cpu" else 5e-4  # a GPU adds in another order each time
    for name, tensor in one.items():
        assert (other[name] - tensor).norm() <= tolerance * tensor.norm(), name


def test_it_trains_as_plain_peft_on_both_losses(base: BaseModel, data: TrainingData) -> None:
    (ours,) = trained(base, data, [PRIOR])
    plain = copy.deepcopy(base)
    names = sorted({key.rsplit(".lora_", 1)[0] for key in ours})
    plain.unet.add_adapter(LoraConfig(r=PRIOR.rank, lora_alpha=PRIOR.alpha, target_modules=names))
    with Slots(base.unet, [PRIOR]) as slots:
        start = initial_adapter(slots._shapes(0), PRIOR)
    weights = {
        name.replace(".default", ""): parameter
        for name, parameter in plain.unet.named_parameters()
        if parameter.requires_grad
    }
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.AdamW(
        list(weights.values()), lr=PRIOR.learning_rate, weight_decay=PRIOR.weight_decay
    )
    objective, prior = DenoisingLoss(plain), data.prior
    assert prior
    for step in range(10):
        optimizer.zero_grad()
        own = batch(data.buckets[0], data.empty, draw(data, PRIOR, step).to(base.device))
        other = batch(prior, data.empty, draw_prior(data, PRIOR, step).to(base.device))
        (objective(own).mean() + 0.5 * objective(other).mean()).backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), PRIOR.max_grad_norm)
        optimizer.step()
    assert_close(ours, {name: parameter.detach().cpu() for name, parameter in weights.items()})


def test_parts_of_a_batch_are_the_whole(base: BaseModel, data: TrainingData) -> None:
    adapters = []
    for num_parts in (1, 2):
        with Pack(base, data, [Trial(0, PRIOR, [(2, 10)])], num_parts=num_parts) as pack:
            pack.advance(lambda number: None, 5)
            adapters.append(pack.slots.adapter(0))
    assert_close(*adapters)


def test_images_of_the_class_that_are_not_there_are_said(base: BaseModel, plain: TrainingData) -> None:
    with pytest.raises(ValueError, match="no images of the class"):
        trained(base, plain, [PRIOR])


# The images


def example(caption: str) -> Example:
    return Example(name=caption, caption=caption, digest=caption, size=(9, 9), load=Image.Image)


def test_texts_are_the_class_prompt_or_captions_without_the_trigger() -> None:
    examples = [example("ohwx, a dog"), example("ohwx"), example("a dog of ohwx")]
    assert class_texts(examples, "a dog", "ohwx", 3) == ["a dog"] * 3
    assert class_texts(examples, None, "ohwx", 3) == ["a dog", "a dog of", "a dog"]
    with pytest.raises(UsageError, match="captions say only the trigger; give class_prompt"):
        class_texts(examples[1:2], None, "ohwx", 3)


def test_images_are_the_base_s_own_and_kept(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    texts = ["a dog", "a dog", "a cat"]
    found, again = draw_class(base, texts), draw_class(base, texts)
    assert len(list(tmp_path.iterdir())) == 1 and torch.equal(found.mean, again.mean)
    text = base.encode_prompts(texts)
    (images,) = generate(base, text, base.encode_empty(), range(3), SAMPLER)
    torch.testing.assert_close(found.mean, base.encode_images(images)[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.text.hidden, text.hidden, atol=1e-4, rtol=1e-4)
    assert not torch.equal(found.mean[0], found.mean[1])


def space(**changes: object) -> SearchSpace:
    default = {"rank": 8, "alpha": 16, "learning_rate": 1e-4, "epochs": 2}
    data = {"base": "emoji-xl", "parameters": {"prior_weight": {"choices": [0, 1]}}, "default": default}
    return validate({**data, **changes}, SearchSpace, "my.yaml")


def test_a_space_that_may_train_on_the_class_must_name_it() -> None:
    assert space(class_prompt="a dog").has_prior and space(trigger="ohwx").has_prior
    assert not space(parameters={"prior_weight": {"choices": [0]}}).has_prior
    assert not space(parameters={"rank": {"choices": [8]}}).has_prior
    with pytest.raises(UsageError, match=r"my\.yaml: prior_weight: needs class_prompt, as in: a dog"):
        space()
    data = {"rank": 8, "alpha": 8, "learning_rate": 1e-4, "epochs": 1, "prior_weight": 1}
    with pytest.raises(UsageError, match="x: prior_weight: needs class_prompt"):
        validate({**data, "model_name": "m", "dataset_name": "d"}, TrainingConfig, "x")
