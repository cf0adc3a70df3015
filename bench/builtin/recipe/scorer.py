"""The scorer: a small CLIP in open_clip's format that says how well a picture fits a caption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bench.builtin.recipe.contrast import Batches, contrastive_loss
from bench.builtin.recipe.examples import Examples
from bench.builtin.recipe.loop import Machine, Outcome, Schedule, train
from bench.builtin.recipe.tokenizer import CONTEXT_LENGTH, VOCABULARY_SIZE, load_tokenizer

EMBED_DIM = 256
VISION: dict[str, Any] = {
    "image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64, "mlp_ratio": 3.0,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY_SIZE,
    "width": 128, "heads": 2, "layers": 4, "mlp_ratio": 3.0,
}  # fmt: skip
PREPROCESS: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip


def build_clip() -> Any:
    """An untrained model of the scorer's shape."""
    return CLIP(embed_dim=EMBED_DIM, vision_cfg=CLIPVisionCfg(**VISION), text_cfg=CLIPTextCfg(**TEXT))


def train_scorer(
    examples: Examples, tokenizer_folder: Path, folder: Path, schedule: Schedule, machine: Machine, size: int
) -> Outcome:
    """Train on the given rows and write a folder for `open_clip`'s `local-dir:`."""
    batches = Batches(examples, load_tokenizer(tokenizer_folder), size=size, device=machine.device)
    model = build_clip().to(machine.device).train()
    visual = machine.compiled(model.visual)

    def loss() -> Tensor:
        images, tokens, matches = batches.draw()
        with machine.mixed_precision():
            pictures = F.normalize(visual(images).float(), dim=-1)
            texts = model.encode_text(tokens).float()
        return contrastive_loss(pictures, F.normalize(texts, dim=-1), matches, model.logit_scale)

    outcome = train("scorer", [model], loss, schedule, machine)
    _save(model, tokenizer_folder, folder)
    return outcome


def _save(model: Any, tokenizer_folder: Path, folder: Path) -> None:
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    weights = {name: w.detach().cpu().half().contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", {"format": "pt"})
    text = {**TEXT, "hf_tokenizer_name": "local"}  # any name: the folder's own tokenizer is what is loaded
    config = {
        "model_cfg": {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": text},
        "preprocess_cfg": PREPROCESS,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_scorer(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer, through open_clip's public functions."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}", device=device).eval()
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")
