"""The UNet: learns to remove noise from latents, given a caption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor

from bench.builtin.recipe.examples import Examples, caption_variants, distinct, draw_pool
from bench.builtin.recipe.loop import Machine, Outcome, Schedule, Snapshots, train
from bench.builtin.recipe.text_encoders import HIDDEN_SIZE, POOLED_SIZE, TextEncoders, save_half
from bench.builtin.recipe.vae import encode_moments

NUM_VARIANTS = 16
NUM_TIMESTEPS = 1000
TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)
MAX_SNR = 5.0
ZEROED, EMPTIED = 0.08, 0.02
"""Share of captions replaced by zeros (SDXL's negative prompt), and by the empty prompt's own embedding."""


def build_unet() -> Any:
    """An untrained UNet of 9.43 million weights."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 144),
        layers_per_block=2,
        cross_attention_dim=HIDDEN_SIZE,
        transformer_layers_per_block=1,
        attention_head_dim=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=POOLED_SIZE + 32 * len(TIME_IDS),
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """SDXL's noise levels, with a sampler that needs few steps."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        steps_offset=1,
        timestep_spacing="trailing",
    )


class LatentBatches:
    """Random batches of latents and of what conditions them, computed once and kept on the device."""

    def __init__(
        self, examples: Examples, encoders: TextEncoders, vae: Any, *, size: int, device: torch.device
    ) -> None:
        variants = caption_variants(examples, NUM_VARIANTS, keep_all=0.6, keep_style=0.7, seed=2)
        texts, wording = distinct([*variants.texts, [""] * NUM_VARIANTS])
        hidden, pooled = encoders.encode(texts)
        images = torch.from_numpy(examples.images).to(device).permute(0, 3, 1, 2).contiguous()
        both = [encode_moments(vae, images), encode_moments(vae, images.flip(-1))]
        self._size = size
        kept = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._hidden, self._pooled = hidden.to(kept), pooled.to(kept)
        self._wording = torch.from_numpy(wording[:-1]).to(device)
        self._empty = int(wording[-1, 0])
        self._means, self._stds = (torch.stack(pair) for pair in zip(*both, strict=True))
        self._flip_ok = torch.from_numpy(examples.flip_ok).to(device)
        self._pool = torch.from_numpy(draw_pool(examples)).to(device)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, 4, 16, 16], hidden states [B, 32, 192] and pooled embeddings [B, 256]."""
        size, device = self._size, self._pool.device
        rows = self._pool[torch.randint(len(self._pool), (size,), device=device)]
        flip = (self._flip_ok[rows] & (torch.rand(size, device=device) < 0.5)).long()
        means = self._means[flip, rows]
        latents = means + self._stds[flip, rows] * torch.randn_like(means)
        text = self._wording[rows, torch.randint(NUM_VARIANTS, (size,), device=device)]
        chance = torch.rand(size, device=device)
        text = text.masked_fill(chance > 1 - EMPTIED, self._empty)
        kept = (chance > ZEROED).to(self._hidden.dtype)
        return latents, self._hidden[text] * kept[:, None, None], self._pooled[text] * kept[:, None]


class NoiseLevels:
    """What a timestep means: how much picture and noise are mixed, and how its error is weighted."""

    def __init__(self, device: torch.device) -> None:
        kept = build_scheduler().alphas_cumprod.to(device)
        self.signal, self.noise = kept.sqrt(), (1 - kept).sqrt()
        snr = kept / (1 - kept)
        self.weight = snr.clamp(max=MAX_SNR) / snr
        """Min-SNR weighting of the noise error (Hang et al. 2023)."""


def train_unet(
    examples: Examples,
    encoders: TextEncoders,
    vae: Any,
    folder: Path,
    schedule: Schedule,
    machine: Machine,
    size: int,
) -> Outcome:
    """Train on the given rows and save a diffusers folder; a snapshot lies in `snapshot` meanwhile."""
    batches = LatentBatches(examples, encoders, vae, size=size, device=machine.device)
    levels = NoiseLevels(machine.device)
    unet = build_unet().to(machine.device, memory_format=torch.channels_last).train()
    denoise = machine.compiled(unet)
    ids = torch.tensor([TIME_IDS], device=machine.device).expand(size, -1)
    lowest = torch.arange(size, device=machine.device)

    def loss() -> Tensor:
        latents, hidden, pooled = batches.draw()
        # One timestep from each of B equal spans: the same distribution, with less variance.
        spread = (lowest + torch.rand(size, device=machine.device)) / size
        times = (spread * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)
        noise = torch.randn_like(latents)
        mixed = _by_row(levels.signal, times) * latents + _by_row(levels.noise, times) * noise
        mixed = mixed.contiguous(memory_format=torch.channels_last)
        with machine.mixed_precision():
            extra = {"text_embeds": pooled, "time_ids": ids}
            guessed: Tensor = denoise(mixed, times, hidden, added_cond_kwargs=extra, return_dict=False)[0]
        errors = (guessed.float() - noise).square().mean((1, 2, 3))
        return torch.mean(errors * levels.weight[times])

    snapshots = Snapshots(every_seconds=120, save=lambda: _snapshot(unet, folder / "snapshot"))
    outcome = train("unet", [unet], loss, schedule, machine, snapshots)
    shutil.rmtree(folder / "snapshot", ignore_errors=True)
    save_half(unet.to(memory_format=torch.contiguous_format), folder)
    return outcome


def _snapshot(unet: Any, folder: Path) -> None:
    copy = build_unet()
    copy.load_state_dict({name: w.detach().cpu() for name, w in unet.state_dict().items()})
    partial = folder.with_suffix(".partial")
    save_half(copy, partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _by_row(values: Tensor, rows: Tensor) -> Tensor:
    return values[rows][:, None, None, None]
