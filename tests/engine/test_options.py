"""Each option of a training gives what the libraries that define it give: PEFT, diffusers, torch.optim."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from peft import LoraConfig
from prodigyopt import Prodigy

from bench.base import BaseModel, TrainingData
from bench.config import TrialConfig
from bench.denoising import Batch, DenoisingLoss
from trainers.loop import train
from trainers.lora import Adapter, Slots, initial_adapter, save_adapter
from trainers.optimizer import rate_at
from trainers.samples import batch, draw

PLAIN = TrialConfig(
    rank=4, alpha=8, learning_rate=1e-3, epochs=4, batch_size=2, target_modules=("to_q", "to_v"), seed=3
)
BLOCKS = {
    "rank_pattern": {"up_blocks.*": 7, "mid_block.*": 2},
    "alpha_pattern": {"up_blocks.*": 14, "mid_block.*": 4},
}
NUM_STEPS = 4 * 10 // 2


def assert_close(ours: Adapter, theirs: Adapter) -> None:
    """Relative norm of the difference, over the whole adapter: sums are made in another order.

    Of DoRA's magnitudes apart: they are much larger.
    """
    assert ours.keys() == theirs.keys()
    magnitudes = {key for key in ours if "magnitude" in key}
    for keys in (ours.keys() - magnitudes, magnitudes):
        difference = sum(float((ours[key] - theirs[key]).square().sum()) for key in keys) ** 0.5
        size = sum(float(theirs[key].square().sum()) for key in keys) ** 0.5
        assert difference <= 2e-4 * size


def trained(base: BaseModel, data: TrainingData, configs: list[TrialConfig]) -> list[Adapter]:
    rung = next(train(base, data, iter(configs), [configs[0].epochs], len(configs)))
    return [rung.adapter(index) for index in rung.alive]


def plainly_trained(base: BaseModel, data: TrainingData, config: TrialConfig, **lora: Any) -> Adapter:
    """By PEFT, torch.optim.AdamW, diffusers' schedules, and the papers' formulas."""
    plain = copy.deepcopy(base)
    unet = plain.unet
    with Slots(base.unet, [config]) as slots:
        start = initial_adapter(slots._shapes(0), config)
    names = sorted({key.rsplit(".lora_", 1)[0] for key in start})
    unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, **lora))
    parameters = {
        name.replace(".default", "").replace("vector.weight", "vector"): parameter
        for name, parameter in unet.named_parameters()
        if parameter.requires_grad
    }
    with torch.no_grad():
        for name, tensor in start.items():
            parameters[name].copy_(tensor)
    average = EMAModel(list(parameters.values()), decay=config.ema)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in parameters.items() if "lora_B" not in n]},
            {
                "params": [p for n, p in parameters.items() if "lora_B" in n],
                "lr": config.learning_rate * config.lora_plus,
            },
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    if config.optimizer == "prodigy":
        options = {"use_bias_correction": True, "safeguard_warmup": True, "weight_decay": config.weight_decay}
        optimizer = Prodigy(list(parameters.values()), **options)
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=NUM_STEPS)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        samples = batch(data.buckets[0], data.empty, draw(data, config, step).to(base.device))
        loss_of(plain, samples, config).backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        average.step(list(parameters.values()))
    if config.ema:
        average.copy_to(list(parameters.values()))
    return {name: parameter.detach().cpu() for name, parameter in parameters.items()}


def loss_of(base: BaseModel, samples: Batch, config: TrialConfig) -> torch.Tensor:
    objective = DenoisingLoss(base)
    losses = objective(Batch(samples.latents, samples.noise, samples.timesteps, samples.text))
    if not config.min_snr_gamma:
        return losses.mean()
    snr = compute_snr(objective._scheduler, samples.timesteps)
    most = torch.stack([snr, config.min_snr_gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    return (losses * most / snr).mean()


@pytest.mark.parametrize(
    ("fields", "lora"),
    [
        ({"lora_plus": 8}, {}),
        ({"rslora": True}, {"use_rslora": True}),
        ({"dora": True}, {"use_dora": True}),
        ({"dora": True, "target_modules": "all", "weight_decay": 1.0}, {"use_dora": True}),
        ({"dora": True, "lora_plus": 8, "ema": 0.9, "max_grad_norm": 0.01}, {"use_dora": True}),
        ({"dora": True, "rank_up": 7, "rank_mid": 2}, {"use_dora": True, **BLOCKS}),
        ({"dora": True, "optimizer": "prodigy", "learning_rate": 1}, {"use_dora": True}),
        ({"min_snr_gamma": 5}, {}),
        ({"noise_offset": 0.1}, {}),
        ({"lr_scheduler": "cosine"}, {}),
        ({"lr_scheduler": "linear"}, {}),
        ({"rank_up": 7, "rank_mid": 2}, BLOCKS),
        ({"ema": 0.9}, {}),
        ({"optimizer": "prodigy", "learning_rate": 1}, {}),
        ({"optimizer": "prodigy", "learning_rate": 1, "lr_scheduler": "cosine", "ema": 0.5}, {}),
    ],
    ids=str,
)
def test_an_option_gives_what_its_library_gives_beside_others(
    base: BaseModel, data: TrainingData, fields: dict[str, Any], lora: dict[str, Any]
) -> None:
    config = PLAIN.model_copy(update=fields)
    theirs = plainly_trained(base, data, config, **lora)
    packed = trained(base, data, [PLAIN, config, PLAIN.model_copy(update={"rank": 7, "seed": 8})])
    assert_close(packed[1], theirs)
    (plain,) = trained(base, data, [PLAIN])
    assert_close(packed[0], plain)
    with pytest.raises((AssertionError, RuntimeError)):  # of other values, or of other shapes
        assert_close(packed[1], plain)


def test_an_offset_is_the_same_all_over_a_channel(data: TrainingData) -> None:
    offset = PLAIN.model_copy(update={"noise_offset": 0.5})
    difference = draw(data, offset, 3).noise - draw(data, PLAIN, 3).noise
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-6)
    assert difference.std(dim=(0, 1)).mean() > 0.1


def test_weights_of_a_velocity_s_loss(base: BaseModel) -> None:
    velocity = copy.copy(base)
    velocity.scheduler_config = {**base.scheduler_config, "prediction_type": "v_prediction"}
    objective, timesteps = DenoisingLoss(velocity), torch.tensor([10, 500, 990], device=base.device)
    snr = compute_snr(objective._scheduler, timesteps)
    expected = snr.clamp(max=5) / (snr + 1)
    torch.testing.assert_close(
        objective._weights(timesteps, torch.full((3,), 5.0, device=base.device)), expected
    )
    assert objective._weights(timesteps, torch.zeros(3, device=base.device)).tolist() == [1, 1, 1]


def test_a_falling_rate_is_scored_at_its_end_alone(base: BaseModel, data: TrainingData) -> None:
    falling = PLAIN.model_copy(update={"lr_scheduler": "cosine"})
    standing = [
        [(index, rung.epoch(index)) for index in rung.alive]
        for rung in train(base, data, iter([PLAIN, falling]), [2, 4], 2)
    ]
    assert standing == [[(0, 2)], [(0, 4), (1, 4)]]


def test_rates_after_a_warm_up() -> None:
    config = PLAIN.model_copy(update={"lr_scheduler": "linear", "warmup_steps": 4, "learning_rate": 1.0})
    rates = [rate_at(config, step, 12) for step in (0, 3, 4, 8, 11)]
    assert rates == pytest.approx([0.25, 1, 1, 0.5, 0.125])


def test_diffusers_scales_every_block_as_it_was_trained(
    base: BaseModel, tiny_sdxl: Path, tmp_path: Path
) -> None:
    config = PLAIN.model_copy(update={"rank_up": 7, "rslora": True})
    with Slots(base.unet, [config]) as slots:
        save_adapter(tmp_path / "adapter.safetensors", slots.adapter(0), config)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipe.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    layers = {name: module for name, module in pipe.unet.named_modules() if name.endswith("to_q")}
    assert {layer.r["default_0"] for layer in layers.values()} == {4, 7}
    for name, layer in layers.items():
        assert layer.r["default_0"] == config.rank_of(name)
        assert layer.scaling["default_0"] == pytest.approx(config.scale)


@pytest.mark.parametrize("fields", [{"ema": 0.9}, {"dora": True}], ids=str)
def test_a_trial_with_more_weights_goes_on_in_other_slots(
    base: BaseModel, data: TrainingData, fields: dict[str, Any]
) -> None:
    """The first trial moves when the second leaves; the third needs rows that no slot has."""
    larger = PLAIN.model_copy(update=fields)
    configs = [PLAIN, PLAIN.model_copy(update={"epochs": 2, "seed": 5}), larger]
    adapters = {}
    for rung in train(base, data, iter(configs), [2, 4], 2):
        adapters |= {index: rung.adapter(index) for index in rung.alive}
    assert_close(adapters[0], trained(base, data, [PLAIN])[0])
    assert_close(adapters[2], trained(base, data, [larger])[0])
