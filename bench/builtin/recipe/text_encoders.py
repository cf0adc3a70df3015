"""The base model's two text encoders, trained against pictures of the base vendors only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bench.builtin.recipe.contrast import Batches, contrastive_loss
from bench.builtin.recipe.examples import Examples
from bench.builtin.recipe.loop import Machine, Outcome, Schedule, train
from bench.builtin.recipe.scorer import EMBED_DIM, VISION
from bench.builtin.recipe.tokenizer import CONTEXT_LENGTH, END_ID, VOCABULARY_SIZE, encode, load_tokenizer

FIRST: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
}  # fmt: skip
SECOND: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "hidden_act": "gelu", "projection_dim": EMBED_DIM,
}  # fmt: skip
HIDDEN_SIZE: int = FIRST["hidden_size"] + SECOND["hidden_size"]
POOLED_SIZE = EMBED_DIM


def build_vision_tower() -> Any:
    """The picture side of the contrast, which also serves as the VAE's perceptual features."""
    return _build_vision_tower(EMBED_DIM, CLIPVisionCfg(**VISION))


def train_text_encoders(
    examples: Examples, tokenizer_folder: Path, folder: Path, schedule: Schedule, machine: Machine, size: int
) -> Outcome:
    """Write `text_encoder`, `text_encoder_2`, and the picture tower in `vision.safetensors`."""
    batches = Batches(examples, load_tokenizer(tokenizer_folder), size=size, device=machine.device, seed=1)
    first = CLIPTextModel(_config(FIRST)).to(machine.device).train()
    second = CLIPTextModelWithProjection(_config(SECOND)).to(machine.device).train()
    vision = build_vision_tower().to(machine.device).train()
    see, read_first, read_second = (machine.compiled(part) for part in (vision, first, second))
    head = _Head().to(machine.device)

    def loss() -> Tensor:
        images, tokens, matches = batches.draw()
        with machine.mixed_precision():
            pictures = F.normalize(see(images).float(), dim=-1)
            pooled = head.project(read_first(input_ids=tokens).pooler_output).float()
            embeds = read_second(input_ids=tokens).text_embeds.float()
        texts = (F.normalize(pooled, dim=-1), F.normalize(embeds, dim=-1))
        return sum((contrastive_loss(pictures, text, matches, head.log_scale) for text in texts), head.zero)

    outcome = train("text encoders", [first, second, vision, head], loss, schedule, machine)
    save_half(first, folder / "text_encoder")
    save_half(second, folder / "text_encoder_2")
    weights = {name: w.detach().cpu().contiguous() for name, w in vision.state_dict().items()}
    save_file(weights, folder / "vision.safetensors")
    return outcome


def load_vision_tower(folder: Path, device: torch.device) -> Any:
    """The picture tower that was trained with the text encoders, frozen."""
    vision = build_vision_tower()
    vision.load_state_dict(load_file(folder / "vision.safetensors"))
    return vision.to(device).eval().requires_grad_(False)


class TextEncoders:
    """Both encoders of a folder, to turn captions into what conditions the UNet."""

    def __init__(self, folder: Path, tokenizer_folder: Path, device: torch.device) -> None:
        self._tokenizer = load_tokenizer(tokenizer_folder)
        self._device = device
        first = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
        self._first, self._second = first.to(device).eval(), second.to(device).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Penultimate hidden states side by side [N, 32, 192], and the second's projection [N, 256]."""
        hidden, pooled = [], []
        for start in range(0, len(texts), 2048):
            tokens = encode(self._tokenizer, texts[start : start + 2048]).to(self._device)
            first = self._first(input_ids=tokens, output_hidden_states=True)
            second = self._second(input_ids=tokens, output_hidden_states=True)
            hidden.append(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1))
            pooled.append(second.text_embeds)
        return torch.cat(hidden), torch.cat(pooled)


class _Head(nn.Module):
    """What only the training needs: the first encoder's projection, and the temperature."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FIRST["hidden_size"], EMBED_DIM, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.register_buffer("zero", torch.zeros(()))


def save_half(model: Any, folder: Path) -> None:
    """Save as float16, but ask to be loaded as float32: transformers otherwise loads what is stored."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "dtype" in config:
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(shape: dict[str, Any]) -> Any:
    return CLIPTextConfig(
        **shape,
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=END_ID - 1,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
