"""Stable Diffusion 1.x and 2.x: Rombach et al. 2022, arXiv 2112.10752."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bench.families.clip import CLIP_L, END
from bench.families.family import LDM, Family, Layout


def _encode(pipe: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The text encoder's last layer; that of 2.x is configured to end one layer early."""
    hidden, _ = pipe.encode_prompt(prompts, pipe.text_encoder.device, 1, do_classifier_free_guidance=False)
    return hidden, hidden.new_zeros(len(prompts), 0)


def _read(encoders: Sequence[nn.Module], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden: torch.Tensor = encoders[0](tokens[:, 0])[0]
    return hidden, hidden.new_zeros(len(tokens), 0)


def _conditions(hidden: torch.Tensor, pooled: torch.Tensor, time_ids: torch.Tensor) -> dict[str, Any]:
    return {"encoder_hidden_states": hidden}


VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
UNET_1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_2 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
OPEN_CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
"""Without its last layer, which 2.x does not read."""

SD_1 = Layout(
    name="SD 1.x",
    key="cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    prefixes={
        **LDM,
        "text_encoder": "cond_stage_model.transformer.",
    },
    configs={"unet": UNET_1, "vae": VAE, "text_encoder": CLIP_L},
    pads={"tokenizer": END},
    prediction="epsilon",
    pixels={"epsilon": 512, "v_prediction": 512},
)
SD_2 = Layout(
    name="SD 2.x",
    key="cond_stage_model.model.token_embedding.weight",
    prefixes={
        **LDM,
        "text_encoder": "cond_stage_model.model.",
    },
    configs={"unet": UNET_2, "vae": VAE, "text_encoder": OPEN_CLIP_H},
    pads={"tokenizer": "!"},
    prediction=None,
    pixels={"epsilon": 512, "v_prediction": 768},
)

FAMILY = Family(
    pipeline="StableDiffusionPipeline",
    text_encoders={"text_encoder": "CLIPTextModel"},
    encode=_encode,
    read=_read,
    conditions=_conditions,
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    layouts=(SD_1, SD_2),
)
