"""The parts put together as a folder for `StableDiffusionXLPipeline.from_pretrained`, and drawing with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray

from bench.builtin.recipe.unet import build_scheduler


def assemble(folder: Path, *, tokenizer: Path, text_encoders: Path, vae: Path, unet: Path) -> None:
    """Copy each stage's output to where the pipeline looks for it."""
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(tokenizer, folder / "tokenizer_2", dirs_exist_ok=True)
    for part in ("text_encoder", "text_encoder_2"):
        shutil.copytree(text_encoders / part, folder / part, dirs_exist_ok=True)
    shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
    shutil.copytree(unet, folder / "unet", dirs_exist_ok=True)
    build_scheduler().save_pretrained(folder / "scheduler")
    index = json.dumps(_index(), indent=2) + "\n"
    (folder / "model_index.json").write_text(index, encoding="utf-8")


def load_pipeline(folder: Path, device: torch.device) -> Any:
    """The pipeline in float32, quiet."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Any, prompts: Sequence[str], *, guidance: float = 4.0, steps: int = 20, seed: int = 0
) -> NDArray[np.uint8]:
    """One picture a prompt, uint8 [N, 64, 64, 3]."""
    pictures = []
    for start in range(0, len(prompts), 160):
        part = list(prompts[start : start + 160])
        generator = torch.Generator().manual_seed(seed + start)
        drawn = pipeline(
            part, guidance_scale=guidance, num_inference_steps=steps, generator=generator, output_type="np"
        )
        pictures.append((drawn.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def _index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "add_watermarker": False,
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
