"""Text encoders that are trained: what PEFT, torch and diffusers give, in a pack, in a file, after a kill."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData
from bench.config import TEXT_ATTENTION, TrialConfig
from bench.denoising import DenoisingLoss
from trainers.loop import train
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
    parts = [
        [key for key in ours if key.startswith(prefix)]
        for prefix in ("down", "text_encoder.", "text_encoder_2.")
    ]
    for keys in filter(None, parts):
        difference = torch.stack([(ours[key] - theirs[key]).norm() for key in keys]).norm()
        assert difference < 2e-4 * torch.stack([theirs[key].norm() for key in keys]).norm()


def trained(base: BaseModel, data: TrainingData, configs: Sequence[TrialConfig]) -> list[Adapter]:
    rung = next(train(base, data, iter(configs), [configs[0].epochs], len(configs)))
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
    assert {"text_encoder", "text_encoder_2"} <= moved
