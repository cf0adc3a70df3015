"""Blocks that compute with fewer operations give what diffusers' own give."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from bench.base import find_device
from bench.blocks import quicken


def test_a_quick_vae_is_the_plain_one(tiny_sdxl: Path) -> None:
    plain, quick = (AutoencoderKL.from_pretrained(tiny_sdxl / "vae").to(find_device()) for _ in range(2))
    quicken(quick.to(memory_format=torch.channels_last))
    device, generator = find_device(), torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator).to(device)
    latents = torch.randn(2, 4, 16, 16, generator=generator).to(device)
    with torch.no_grad():
        torch.testing.assert_close(quick.decode(latents).sample, plain.decode(latents).sample)
        torch.testing.assert_close(quick.encode(image).latent_dist.mean, plain.encode(image).latent_dist.mean)
