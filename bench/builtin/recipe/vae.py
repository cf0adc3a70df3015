"""The VAE: 64x64 pixels to 4 x 16 x 16 latents of zero mean and unit variance, and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bench.builtin.recipe.examples import Examples, draw_pool
from bench.builtin.recipe.loop import Machine, Outcome, Schedule, train
from bench.builtin.recipe.text_encoders import load_vision_tower, save_half

FEATURE_WEIGHT = 0.1
DIVERGENCE_WEIGHT = 5e-4
FEATURE_LAYERS = [0, 2]


def build_vae() -> Any:
    """An untrained VAE of 1.24 million weights; `scaling_factor` is 1, see `whiten`."""
    return AutoencoderKL(
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 80),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )


def train_vae(
    examples: Examples, features_folder: Path, folder: Path, schedule: Schedule, machine: Machine, size: int
) -> Outcome:
    """Train on the given rows and save a diffusers folder."""
    # Features come from the text encoders' own picture tower. The scorer's would teach the VAE to please
    # the scorer, and carry what it knows of the target styles into the base.
    tower = load_vision_tower(features_folder, machine.device)
    images = torch.from_numpy(examples.images).to(machine.device).permute(0, 3, 1, 2).contiguous()
    pool = torch.from_numpy(draw_pool(examples)).to(machine.device)
    vae = build_vae().to(machine.device, memory_format=torch.channels_last).train()
    encode, decode = machine.compiled(vae.encoder), machine.compiled(vae.decoder)
    distance = machine.compiled(_FeatureDistance(tower))

    def loss() -> Tensor:
        batch = images[pool[torch.randint(len(pool), (size,), device=machine.device)]]
        mirror = torch.rand(size, 1, 1, 1, device=machine.device) < 0.5
        pixels = to_unit(torch.where(mirror, batch.flip(-1), batch))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with machine.mixed_precision():
            moments = vae.quant_conv(encode(pixels)).float()
            latents, divergence = _sample(moments)
            drawn = decode(vae.post_quant_conv(latents)).float()
            features = distance(drawn, pixels)
        pixel_loss = F.l1_loss(drawn, pixels) + F.mse_loss(drawn, pixels)
        total: Tensor = pixel_loss + FEATURE_WEIGHT * features + DIVERGENCE_WEIGHT * divergence
        return total

    outcome = train("vae", [vae], loss, schedule, machine)
    whiten(vae, *_latent_moments(vae, images))
    save_half(vae.to(memory_format=torch.contiguous_format), folder)
    return outcome


def load_vae(folder: Path, device: torch.device) -> Any:
    """The VAE of a folder, in float32."""
    return AutoencoderKL.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def to_unit(images: Tensor) -> Tensor:
    """uint8 to float, 0..255 to -1..1."""
    return images.float() / 127.5 - 1


def whiten(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Fold a shift and a scale per latent channel [4] into the 1x1 convolutions around the latents.

    Exact, and better than one `scaling_factor`: noise then starts from the mean of the latents.
    """
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        into.weight[:channels] /= std[:, None, None, None]
        into.bias[:channels] = (into.bias[:channels] - mean) / std
        into.bias[channels:] -= 2 * std.log()
        out.bias += out.weight[:, :, 0, 0] @ mean
        out.weight *= std[None, :, None, None]


@torch.no_grad()
def encode_moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents [N, 4, 16, 16] of uint8 pictures [N, 3, 64, 64]."""
    posteriors = [vae.encode(to_unit(part)).latent_dist for part in torch.split(images, 512)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


@torch.no_grad()
def reconstruction_psnr(vae: Any, images: NDArray[np.uint8]) -> float:
    """Peak signal to noise of pictures [N, 64, 64, 3] after encoding and decoding, in dB, over all pixels."""
    device = next(vae.parameters()).device
    errors = []
    for part in torch.split(torch.from_numpy(images).permute(0, 3, 1, 2), 128):
        pixels = to_unit(part.to(device))
        drawn = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((drawn - pixels) / 2).square().mean((1, 2, 3)))
    return -10 * math.log10(torch.cat(errors).mean().item())


def _sample(moments: Tensor) -> tuple[Tensor, Tensor]:
    """A draw from the posterior, and its divergence from a unit Gaussian, nats per value."""
    mean, log_variance = moments.chunk(2, 1)
    log_variance = log_variance.clamp(-30, 20)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean), divergence


class _FeatureDistance(nn.Module):
    """Squared distance of the tower's tokens for two batches, relative to their size, mean over layers."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self._tower = tower

    def forward(self, drawn: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._features(real)
        pairs = zip(self._features(drawn), wanted, strict=True)
        ratios = [(a - b).square().mean() / b.square().mean() for a, b in pairs]
        return torch.mean(torch.stack(ratios))

    def _features(self, pixels: Tensor) -> list[Tensor]:
        options = {"indices": FEATURE_LAYERS, "stop_early": True, "intermediates_only": True}
        found = self._tower.forward_intermediates(pixels.contiguous(), output_fmt="NLC", **options)
        return [tokens.float() for tokens in found["image_intermediates"]]


def _latent_moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    means, stds = encode_moments(vae, images)
    mean = means.mean((0, 2, 3))
    variance = (means - mean[None, :, None, None]).square().mean((0, 2, 3)) + stds.square().mean((0, 2, 3))
    return mean, variance.sqrt()
