"""Text encoders that are trained: what PEFT, torch and diffusers give, in a pack, in a file, after a kill."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from latents import random_latents
from numpy.typing import NDArray
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData
from bench.config import TEXT_ATTENTION, TrialConfig
from bench.denoising import DenoisingLoss
from bench.scoring.generate import generate
from bench.scoring.losses import FixedLosses
from bench.space import Sampler
from trainers.adapters import attach
from trainers.loop import Pack, Trial, train
from trainers.lora import Adapter, Slots, initial_adapter, is_text, of_unet
from trainers.samples import Draw, batch, draw, draw_prior

FROZEN = TrialConfig(
    rank=4, alpha=8, learning_rate=1e-3, epochs=4, batch_size=2, target_modules=("to_q", "to_k"), seed=3
)
TEXT = FROZEN.model_copy(update={"text_encoder_learning_rate": 5e-3})
NUM_STEPS = 4 * 10 // 2


def assert_close(ours: Adapter, theirs: Adapter) -> None:
    """Relative norm of the difference of each network: sums are made in another order."""
    assert ours.keys() == theirs.keys()
    parts: dict[str, list[str]] = {}
    for key in ours:
        parts.setdefault(key.partition(".")[0] if is_text(key) else "unet", []).append(key)
    for keys in parts.values():
        difference = torch.stack([(ours[key] - theirs[key]).norm() for key in keys]).norm()
        assert difference < 2e-4 * torch.stack([theirs[key].norm() for key in keys]).norm()


def trained(base: BaseModel, data: TrainingData, configs: Sequence[TrialConfig]) -> list[Adapter]:
    rungs = train(base, data, iter(configs), [configs[0].epochs], len(configs))
    rung = next(rungs)  # as long as `rungs` is there
    return [rung.adapter(index) for index in rung.alive]


def start_of(base: BaseModel, config: TrialConfig) -> Adapter:
    with Slots(base.unet, [config], encoders=base.text_twins()) as slots:
        return initial_adapter(slots._shapes(0), config)


def adapted(base: BaseModel, start: Adapter, config: TrialConfig) -> dict[str, torch.nn.Parameter]:
    """Give the base PEFT's adapters; their parameters, by our names."""
    given = {"r": config.rank, "lora_alpha": config.alpha}
    names = sorted({key.rsplit(".lora_", 1)[0] for key in of_unet(start)})
    base.unet.add_adapter(LoraConfig(target_modules=names, **given))
    networks = {"": base.unet}
    for part in base.family.text_encoders:
        networks[f"{part}.text_model."] = base.encoder(part)
        base.encoder(part).add_adapter(LoraConfig(target_modules=list(TEXT_ATTENTION), **given))
    parameters = {
        prefix + name.removeprefix("text_model.").replace(".default", ""): parameter
        for prefix, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    assert parameters.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    return parameters


def loss_of(base: BaseModel, images: Bucket, empty: TextEmbedding, drawn: Draw) -> torch.Tensor:
    """Captions are read by diffusers' pipeline."""
    pairs = zip(drawn.dropped, drawn.index, strict=True)
    hidden, pooled = base.family.encode(base._pipe, ["" if d else images.captions[i] for d, i in pairs])
    if base.empty_is_zero:
        kept = ~drawn.dropped.view(-1, 1)
        hidden, pooled = hidden * kept[:, None], pooled * kept
    samples = replace(batch(images, empty, drawn), text=TextEmbedding(hidden, pooled))
    return (DenoisingLoss(base)(samples) * drawn.weight).mean()


def plainly_trained(base: BaseModel, data: TrainingData, config: TrialConfig) -> Adapter:
    """By PEFT, torch.optim.AdamW and diffusers' schedules."""
    plain = copy.deepcopy(base)
    parameters = adapted(plain, start_of(base, config), config)
    of_text = [parameter for name, parameter in parameters.items() if is_text(name)]
    of_others = [parameter for name, parameter in parameters.items() if not is_text(name)]
    groups = [{"params": of_others}, {"params": of_text, "lr": config.text_encoder_learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=NUM_STEPS)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss_of(plain, data.buckets[0], data.empty, draw(data, config, step).to(base.device)).backward()
        if config.prior_weight and data.prior:
            loss_of(plain, data.prior, data.empty, draw_prior(data, config, step).to(base.device)).backward()
        for parameter in parameters.values():
            if parameter.grad is None:  # SDXL does not read the last layer of its first text encoder
                parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
        optimizer.step()
        schedule.step()
    return {name: parameter.detach().cpu() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lr_scheduler": "cosine", "max_grad_norm": 0.01},
        {"caption_dropout": 0.5},
        {"prior_weight": 0.5},
        {"target_modules": "all"},
    ],
    ids=str,
)
def test_it_trains_as_peft_does_beside_others(
    base: BaseModel, data: TrainingData, fields: dict[str, Any]
) -> None:
    as_peft_does(base, data, fields)


def test_the_empty_prompt_is_read_too_where_no_zeros_stand_for_it(
    sd: BaseModel, sd_data: TrainingData
) -> None:
    assert not sd.empty_is_zero
    as_peft_does(sd, sd_data, {"caption_dropout": 0.5})


def as_peft_does(base: BaseModel, data: TrainingData, fields: dict[str, Any]) -> None:
    config = TEXT.model_copy(update=fields)
    data = replace(data, prior=data.buckets[0][:4])
    theirs = plainly_trained(base, data, config)
    frozen = FROZEN.model_copy(update={"rank": 7, "seed": 8})
    packed = trained(base, data, [FROZEN, config, frozen])
    assert_close(packed[1], theirs)
    for ours, alone in ((packed[0], FROZEN), (packed[2], frozen)):
        (plain,) = trained(base, data, [alone])
        assert_close(ours, plain)
    start = start_of(base, config)
    moved = {
        key.partition(".")[0] for key, tensor in packed[1].items() if (tensor - start[key]).norm() > 1e-3
    }
    assert set(base.family.text_encoders) <= moved


OPTIONS = TEXT.model_copy(update={"dropout": 0.2, "ema": 0.9, "lora_plus": 4, "rslora": True})
OTHER = TEXT.model_copy(update={"rank": 2, "text_encoder_learning_rate": 1e-3, "seed": 5, "epochs": 2})


def test_trials_come_and_go_beside_others(base: BaseModel, data: TrainingData) -> None:
    """The first that trains text encoders comes to slots that cannot; they stay when it has left."""
    configs = [FROZEN, FROZEN.model_copy(update={"epochs": 2, "seed": 7}), OTHER, OPTIONS]
    adapters = {}
    for rung in train(base, data, iter(configs), [2, 4], 2):
        adapters |= {index: rung.adapter(index) for index in rung.alive}
    for index, config in enumerate(configs):
        assert_close(adapters[index], trained(base, data, [config])[0])


def test_parts_of_a_batch_with_activations_computed_again_are_the_whole(
    base: BaseModel, data: TrainingData
) -> None:
    adapters = []
    for thrifty in (False, True):
        with Pack(base, data, [Trial(0, TEXT, [(4, NUM_STEPS)])]) as pack:
            while thrifty and pack._thriftier():
                pack._attach_again(pack.trials)
            pack.advance(lambda number: None, 5)
            adapters.append(pack.slots.adapter(0))
    assert_close(*adapters)


def test_lanes_train_and_draw_the_same(wide: BaseModel, base: BaseModel) -> None:
    data = random_latents(wide)
    configs = [TEXT, OTHER.model_copy(update={"epochs": 4}), FROZEN]
    for ours, one in zip(trained(wide, data, configs), trained(base, data, configs), strict=True):
        assert_close(ours, one)


PROMPTS = ["a red apple", "a blue car"]


def test_trials_draw_and_lose_as_their_files_do(base: BaseModel, data: TrainingData, tmp_path: Path) -> None:
    """Captions of fixed losses are read through the adapter too."""
    draws_and_loses_as_its_files(base, data, tmp_path)


def test_lanes_draw_and_lose_as_their_files_do(wide: BaseModel, tmp_path: Path) -> None:
    draws_and_loses_as_its_files(wide, random_latents(wide), tmp_path)


def draws_and_loses_as_its_files(base: BaseModel, data: TrainingData, folder: Path) -> None:
    asked = (base.encode_prompts(PROMPTS), base.encode_empty(), [1, 2], Sampler(steps=2, guidance=3))
    fixed, files = FixedLosses(base, data.buckets[0]), [folder / f"{index}.safetensors" for index in (0, 1)]

    def seen() -> list[NDArray[Any]]:
        own = base.own_readings(PROMPTS)
        assert set(own) == {1}
        return [generate(base, *asked, 2, own=own).astype(int), fixed.losses(2)]

    rungs = train(base, data, iter([FROZEN, TEXT]), [4], 2)
    rung = next(rungs)
    images, losses = seen()
    for index, file in enumerate(files):
        rung.save_adapter(index, file)
    rungs.close()
    with attach(base, files):
        images_again, losses_again = seen()
    assert np.abs(images - images_again).max() <= 1
    np.testing.assert_allclose(losses, losses_again, rtol=1e-3)
    save_file({k: t for k, t in load_file(files[1]).items() if k.startswith("unet.")}, files[0])
    with attach(base, [files[0]], weight=TEXT.scale):
        assert (np.abs(fixed.losses(1)[0] / losses[1] - 1) > 1e-3).any()


def test_data_without_captions_are_refused(base: BaseModel, data: TrainingData) -> None:
    without = replace(data, buckets=(replace(data.buckets[0], captions=()),))
    trained(base, without, [FROZEN.model_copy(update={"epochs": 1})])
    with pytest.raises(ValueError, match="need their captions"):
        trained(base, without, [TEXT])
