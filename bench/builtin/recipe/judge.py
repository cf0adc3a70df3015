"""The judge: a small convolutional network in timm's format, trained on pictures alone, without captions.

Every picture is a class of its own (SimCLR, Chen et al. 2020, arXiv:2002.05709): two views of it shall be
nearer to each other than to all other pictures of the batch. A damaged copy counts as another picture, so
that noise, blur and broken drawings move a feature as content and style do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bench.builtin.recipe.examples import Examples, draw_pool
from bench.builtin.recipe.loop import Machine, Outcome, Schedule, train
from bench.builtin.recipe.views import damaged, damages, viewed

ARCHITECTURE = "convnext_atto"
MODEL_ARGS: dict[str, Any] = {
    "patch_size": 2, "dims": [32, 64, 128, 224], "depths": [2, 2, 6, 2], "ls_init_value": 0.1,
}  # fmt: skip
DIM: int = MODEL_ARGS["dims"][-1]
PREPROCESS: dict[str, Any] = {
    "input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic", "crop_pct": 1.0,
}  # fmt: skip
TEMPERATURE = 0.2


def build_judge() -> nn.Module:
    """An untrained network: float [B, 3, 64, 64] in -1 to 1 -> features [B, DIM]."""
    model: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **MODEL_ARGS)
    return model


def train_judge(examples: Examples, folder: Path, schedule: Schedule, machine: Machine, size: int) -> Outcome:
    """Train on the given rows, `size` pictures a step, and write a folder for timm's `local-dir:`."""
    pairs = Pairs(examples, size=size, device=machine.device)
    model = build_judge().to(machine.device).to(memory_format=torch.channels_last).train()
    features = machine.compiled(model)

    def loss() -> Tensor:
        views, instances = pairs.draw()
        with machine.mixed_precision():
            # No layers between features and loss: with them, all features had a large part in common.
            vectors = features(views.contiguous(memory_format=torch.channels_last))
        return instance_loss(vectors, instances, TEMPERATURE)

    outcome = train("judge", [model], loss, schedule, machine)
    save_judge(model, folder)
    return outcome


class Pairs:
    """Random batches of two views of pictures and of damaged copies of them.

    `draw` reads the device's random generator only, so it can be part of a CUDA graph.
    """

    def __init__(self, examples: Examples, *, size: int, device: torch.device) -> None:
        self._size = size
        self._images = torch.from_numpy(examples.images).to(device).permute(0, 3, 1, 2).contiguous()
        self._flip_ok = torch.from_numpy(examples.flip_ok).to(device)
        self._pool = torch.from_numpy(draw_pool(examples)).to(device)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Views, float [4 B, 3, 64, 64] in -1 to 1, and what each shows, int64 [4 B].

        The first half is one view of everything, the second half the other view in the same order.
        """
        rows = self._pool[torch.randint(len(self._pool), (self._size,), device=self._pool.device)]
        ink, flip_ok = 1 - self._images[rows].float() / 255, self._flip_ok[rows]
        harm = damages(ink)
        whole = [viewed(ink, flip_ok) for _ in range(2)]
        broken = [damaged(viewed(ink, flip_ok), harm) for _ in range(2)]
        views = torch.cat([whole[0], broken[0], whole[1], broken[1]])
        return 1 - 2 * views, torch.cat([rows, rows + len(self._images)]).repeat(2)


def instance_loss(vectors: Tensor, instances: Tensor, temperature: float) -> Tensor:
    """NT-Xent of vectors [2 B, D], which need no unit length; row i and row i + B are views of one instance.

    Further rows of the same instance, int64 [2 B], count neither as a match nor as another.
    """
    unit = F.normalize(vectors.float(), dim=-1)
    partner = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    ignored = instances[:, None] == instances[None, :]
    ignored = ignored.scatter(1, partner[:, None], False)
    return F.cross_entropy((unit @ unit.T / temperature).masked_fill(ignored, -torch.inf), partner)


def save_judge(model: nn.Module, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` (float16), as repositories on the Hub have them."""
    weights = {name: w.detach().cpu().half().contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": DIM,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {**PREPROCESS, "num_classes": 0, "first_conv": "stem.0", "classifier": "head.fc"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
