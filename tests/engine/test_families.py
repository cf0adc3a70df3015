"""SD 1.x and 2.x: what plain diffusers, PEFT and torch give, through the same engine as SDXL."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import constants
from peft import LoraConfig

from bench.base import BaseModel, TrainingData, load_base
from bench.conditioning import conditioning, empty_conditioning
from bench.config import TrialConfig
from bench.denoising import DenoisingLoss
from bench.errors import MissingError, UsageError
from bench.flops import image_flops, sample_flops
from bench.rehearsal import random_data
from bench.scoring.generate import generate
from bench.scoring.losses import HeldOutLoss
from bench.space import Sampler
from trainers.loop import train
from trainers.lora import Adapter, Slots, initial_adapter, save_adapter
from trainers.samples import batch, draw

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "b, c", ""]
SEEDS = [11, 12, 13]
SAMPLER = Sampler(steps=5, guidance=4)
CONFIGS = [
    TrialConfig(rank=4, alpha=16, learning_rate=2e-3, epochs=2, target_modules="all", seed=1),
    TrialConfig(rank=2, alpha=2, learning_rate=2e-3, epochs=2, target_modules="attention", seed=2),
]


def plain_unet(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def plain_loss(unet: Any, folder: Path, data: TrainingData, config: TrialConfig, step: int) -> torch.Tensor:
    """As diffusers' training script for SD computes it."""
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    samples = batch(data.buckets[0], data.empty, draw(data, config, step))
    noisy = scheduler.add_noise(samples.latents, samples.noise, samples.timesteps)
    target = samples.noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(samples.latents, samples.noise, samples.timesteps)
    output = unet(noisy, samples.timesteps, samples.text.hidden, return_dict=False)[0]
    return torch.nn.functional.mse_loss(output, target)


# Conditioning


def test_prompts_are_encoded_as_the_pipeline_does(sd_folder: Path, sd: BaseModel) -> None:
    plain = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    hidden, empty = plain.encode_prompt(PROMPTS, CPU, 1, True)
    assert torch.equal(sd.encode_prompts(PROMPTS).hidden, hidden)
    assert torch.allclose(sd.encode_empty().hidden, empty[:1], atol=1e-6)
    assert sd.encode_prompts(PROMPTS).pooled.shape == (3, 0)


def test_conditioning_is_kept_without_pooled(
    sd: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    for _ in range(2):
        text, empty = conditioning(sd, PROMPTS), empty_conditioning(sd)
        assert torch.equal(text.hidden, sd.encode_prompts(PROMPTS).hidden)
        assert text.pooled.shape == (3, 0) and empty.pooled.shape == (1, 0)


def test_random_data_has_the_shapes_of_real_data(sd: BaseModel) -> None:
    data, real = random_data(sd, 3), sd.encode_prompts(PROMPTS)
    assert data.buckets[0].text.hidden.shape == real.hidden.shape
    assert data.buckets[0].text.pooled.shape == real.pooled.shape


# Predictions


def test_predictions_and_gradients_are_those_of_diffusers(
    sd_folder: Path, sd: BaseModel, sd_data: TrainingData
) -> None:
    plain, data = plain_unet(sd_folder), sd_data.buckets[0]
    timesteps = torch.arange(10) * 100
    plain.enable_gradient_checkpointing()
    expected_latents, latents = (data.mean.clone().requires_grad_() for _ in range(2))
    expected = plain(expected_latents, timesteps, data.text.hidden, return_dict=False)[0]
    expected.square().sum().backward()
    sd.unet.enable_gradient_checkpointing()
    try:
        ours = sd.predict(latents, timesteps, data.text)
        ours.square().sum().backward()
    finally:
        sd.unet.disable_gradient_checkpointing()
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.allclose(sd.predict(data.mean, timesteps, data.text), expected, atol=1e-5)
    assert torch.allclose(latents.grad, expected_latents.grad, atol=1e-4)  # type: ignore[arg-type]


def test_the_loss_is_that_of_diffusers(sd_folder: Path, sd: BaseModel, sd_data: TrainingData) -> None:
    samples = batch(sd_data.buckets[0], sd_data.empty, draw(sd_data, CONFIGS[0], 3))
    with torch.no_grad():
        expected = plain_loss(plain_unet(sd_folder), sd_folder, sd_data, CONFIGS[0], 3)
        assert torch.allclose(DenoisingLoss(sd)(samples).mean(), expected, rtol=1e-5)


def test_velocity_is_what_its_paper_says(tiny_sd2: Path) -> None:
    """Salimans & Ho 2022: v = α ε - σ x, which an exact UNet would meet with no loss."""
    base = load_base(str(tiny_sd2), CPU)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(dim=0)
    data = random_data(base, 4)
    samples = batch(data.buckets[0], data.empty, draw(data, CONFIGS[0], 0))
    alpha = kept[samples.timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - kept[samples.timesteps]).sqrt().view(-1, 1, 1, 1)
    velocity = (alpha * samples.noise - sigma * samples.latents).float()
    base.predict = lambda noisy, *_: velocity  # type: ignore[method-assign]
    assert DenoisingLoss(base)(samples).max() < 1e-10


# Training and drawing


def test_packed_training_equals_plain_peft_on_plain_diffusers(
    sd_folder: Path, sd: BaseModel, sd_data: TrainingData
) -> None:
    for rung in train(sd, sd_data, iter(CONFIGS), [2], 2):
        ours = [rung.adapter(index) for index in range(2)]
        num_steps = len(rung.losses[0])
    for adapter, config in zip(ours, CONFIGS, strict=True):
        with Slots(sd.unet, [config]) as slots:
            start = initial_adapter(slots._shapes(0), config)
        trained = in_peft(sd_folder, sd_data, config, start, num_steps)
        assert trained.keys() == adapter.keys()
        for name, parameter in trained.items():
            assert (adapter[name] - parameter).norm() <= 5e-4 * parameter.norm(), name


def in_peft(
    folder: Path, data: TrainingData, config: TrialConfig, start: Adapter, num_steps: int
) -> dict[str, torch.Tensor]:
    unet = plain_unet(folder)
    names = sorted({key.rsplit(".lora_", 1)[0] for key in start})
    unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names))
    trained = {n.replace(".default", ""): p for n, p in unet.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        parameter.data.copy_(start[name])
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    for step in range(num_steps):
        optimizer.zero_grad()
        plain_loss(unet, folder, data, config, step).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in trained.items()}


def test_images_are_those_of_the_pipeline_with_an_adapter_and_without(
    tmp_path: Path, sd_folder: Path, sd: BaseModel, sd_data: TrainingData
) -> None:
    text, empty = sd.encode_prompts(PROMPTS), sd.encode_empty()
    for rung in train(sd, sd_data, iter(CONFIGS), [2], 2):
        adapted = generate(sd, text, empty, SEEDS, SAMPLER, 2)
        save_adapter(tmp_path / "a.safetensors", rung.adapter(0), CONFIGS[0])
    bare = generate(sd, text, empty, SEEDS, SAMPLER)[0]
    plain = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    assert_same(bare, drawn(plain, sd))
    plain.load_lora_weights(tmp_path, weight_name="a.safetensors")
    assert_same(adapted[0], drawn(plain, sd))
    assert (adapted[0] != bare).any()


def drawn(pipeline: Any, base: BaseModel) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    noises = [torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(s)) for s in SEEDS]
    images = pipeline(
        PROMPTS,
        num_inference_steps=SAMPLER.steps,
        guidance_scale=SAMPLER.guidance,
        latents=torch.stack(noises),
        height=base.resolution,
        width=base.resolution,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


def assert_same(ours: Any, theirs: Any) -> None:
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_losses_and_operations_are_counted(sd: BaseModel, sd_data: TrainingData) -> None:
    assert np.isfinite(HeldOutLoss(sd, sd_data.buckets[0]).losses(1)).all()
    assert image_flops(sd, SAMPLER) > 0
    assert sample_flops(sd, CONFIGS[0]) > sample_flops(sd, CONFIGS[1]) > 0


# What is found, and what is refused


def test_a_hub_model_is_found_in_the_local_cache_by_its_revision(
    tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--sd"
    shutil.copytree(tiny_sd1, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text("a" * 40)
    base = load_base("someone/sd", CPU, revision="v1")
    assert base.fingerprint == load_base(str(tiny_sd1), CPU).fingerprint
    with pytest.raises(MissingError, match=r"hf download someone/sd --revision v2$"):
        load_base("someone/sd", CPU, revision="v2")


@pytest.fixture
def copy(tiny_sd1: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd1, tmp_path / "base"))


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def inpaint(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, in_channels=9).save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: edit(folder / "model_index.json", _class_name="FluxPipeline"),
            "a FluxPipeline; supported are StableDiffusionXLPipeline, StableDiffusionPipeline",
        ),
        (
            lambda folder: edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline"),
            "a refiner, which only finishes images: give its base",
        ),
        (inpaint, "its UNet takes 9 channels, as inpainting and editing models do"),
        (
            lambda folder: edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample"),
            "predicts sample; supported are epsilon and v_prediction over 1000 steps",
        ),
        (
            lambda folder: edit(
                folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]
            ),
            "its noise is that of a FlowMatchEulerDiscreteScheduler; supported are schedules of betas",
        ),
    ],
)
def test_a_base_that_is_not_supported_is_refused(
    copy: Path, change: Callable[[Path], None], message: str
) -> None:
    change(copy)
    with pytest.raises(UsageError, match=message) as caught:
        load_base(str(copy), CPU)
    assert "\n" not in str(caught.value)


def test_what_a_base_predicts_may_be_said(tiny_sd1: Path) -> None:
    plain, told = load_base(str(tiny_sd1), CPU), load_base(str(tiny_sd1), CPU, prediction="v_prediction")
    assert told.scheduler_config.prediction_type == "v_prediction"
    assert told.fingerprint != plain.fingerprint


def test_files_beside_the_pipeline_do_not_change_its_fingerprint(copy: Path) -> None:
    before = load_base(str(copy), CPU).fingerprint
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "config.json").write_text("{}")
    (copy / "v1-5-pruned.safetensors").write_bytes(b"large")
    assert load_base(str(copy), CPU).fingerprint == before


def test_a_safety_checker_is_neither_loaded_nor_needed(copy: Path) -> None:
    """As the published SD 1.5 names it, where it was left out of the download."""
    edit(
        copy / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    base = load_base(str(copy), CPU)
    assert base.encode_prompts(["a"]).hidden.shape == (1, 16, 16)
    assert base._pipe.safety_checker is None
