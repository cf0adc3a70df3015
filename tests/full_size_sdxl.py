"""A full-size SDXL with random weights, in memory or written: `python tests/full_size_sdxl.py FOLDER`.

For measuring speed and memory, and for running the real path, where the real weights are not at hand.
A folder needs about 7 GB of disk; takes seconds on a GPU.
"""

import sys
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bench.base import BaseModel
from bench.families.clip import CLIP_L
from bench.families.sdxl import CLIP_G, UNET, VAE

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(
        str(files("bench") / "builtin/emoji-xl/tokenizer"), model_max_length=77
    )


def part(name: str) -> torch.nn.Module:
    """One of PARTS with its own random weights, in bfloat16 on a GPU if there is one."""
    kind = torch.get_default_dtype()
    torch.manual_seed(PARTS.index(name))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return _made(name)
    finally:
        torch.set_default_dtype(kind)


def _made(name: str) -> torch.nn.Module:
    if name == "unet":
        return UNet2DConditionModel(sample_size=128, **UNET)
    if name == "vae":
        return AutoencoderKL(**VAE)
    known = tokenizer()
    special = {
        "bos_token_id": known.bos_token_id,
        "eos_token_id": known.eos_token_id,
        "pad_token_id": known.pad_token_id,
    }
    if name == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**CLIP_L, **special))
    return CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, **special))


def pipeline(*names: str) -> StableDiffusionXLPipeline:
    """With these PARTS, and without the others."""
    return StableDiffusionXLPipeline(
        **{name: part(name) if name in names else None for name in PARTS},
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )


def random_base(resolution: int) -> BaseModel:
    """In memory, without a folder; its encoders are made when they are used."""
    return BaseModel(
        pipeline("unet"),
        "random SDXL",
        "random",
        resolution,
        vae_scale=2 ** (len(VAE["block_out_channels"]) - 1),
        load_encoder=part,
    )


if __name__ == "__main__":
    pipeline(*PARTS).save_pretrained(Path(sys.argv[1]))
