"""SDXL: Podell et al. 2023, arXiv 2307.01952."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bench.families.clip import CLIP_L, END
from bench.families.family import LDM, Family, Layout


def _encode(pipe: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of both text encoders the last layer but one, and the second's projection."""
    hidden, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    return hidden, pooled


def _read(encoders: Sequence[nn.Module], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = zip(encoders, tokens.unbind(1), strict=True)
    outputs = [encoder(of_it, output_hidden_states=True) for encoder, of_it in pairs]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1][0]


def _conditions(hidden: torch.Tensor, pooled: torch.Tensor, time_ids: torch.Tensor) -> dict[str, Any]:
    added = {"text_embeds": pooled, "time_ids": time_ids}
    return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}


def _time_ids(height: int, width: int) -> tuple[int, ...]:
    """Of an image that was this large from the start and is not cropped (section 2.2)."""
    return (height, width, 0, 0, height, width)


def _pooled_width(config: Any) -> int:
    width: int = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return width


UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

BASE = Layout(
    name="SDXL",
    key="conditioner.embedders.1.model.positional_embedding",
    prefixes={
        **LDM,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    configs={"unet": UNET, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    pads={"tokenizer": END, "tokenizer_2": "!"},
    prediction="epsilon",
    pixels={"epsilon": 1024, "v_prediction": 1024},
    index={"force_zeros_for_empty_prompt": True},
)

FAMILY = Family(
    pipeline="StableDiffusionXLPipeline",
    text_encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    encode=_encode,
    read=_read,
    conditions=_conditions,
    pooled_width=_pooled_width,
    time_ids=_time_ids,
    options={"add_watermarker": False},
    layouts=(BASE,),
)
