"""Blocks that compute with fewer operations give what diffusers' own give."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from bench.base import find_device
from bench.blocks import linear, quicken


def test_a_quick_vae_is_the_plain_one(tiny_sdxl: Path) -> None:
    plain, quick = (AutoencoderKL.from_pretrained(tiny_sdxl / "vae").to(find_device()) for _ in range(2))
    quicken(quick.to(memory_format=torch.channels_last))
    device, generator = find_device(), torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator).to(device)
    latents = torch.randn(2, 4, 16, 16, generator=generator).to(device)
    with torch.no_grad():
        torch.testing.assert_close(quick.decode(latents).sample, plain.decode(latents).sample)
        torch.testing.assert_close(quick.encode(image).latent_dist.mean, plain.encode(image).latent_dist.mean)


@pytest.mark.parametrize("number", [1, 48])
@torch.no_grad()
def test_a_linear_layer_of_tokens_is_a_convolution_of_one_pixel(number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((number, 20, 48), (32, 48), (32,))
    )
    for given in (bias, None):
        found = linear(x, weight, given)
        torch.testing.assert_close(found, F.linear(x, weight, given), rtol=1e-5, atol=1e-5)
        assert found.is_contiguous()
