"""Random changes to pictures that do not change what they show, on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augmented(images: Tensor, flip_ok: Tensor) -> Tensor:
    """Move, turn, mirror, soften and tint uint8 [B, 3, 64, 64]; gives float in -1 to 1.

    Softening matters most: drawn pictures come out of a lossy VAE, and a scorer that had only seen crisp
    vector art would judge their sharpness instead of what they show.
    """
    ink = 1 - images.float() / 255  # white is zero, so what moves in from outside is white
    ink = _softened(_moved(ink, flip_ok))
    return (1 - 2 * _tinted(ink)).clamp(-1, 1)


def _uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(like.shape[0], *shape, device=like.device).uniform_(low, high)


def _moved(ink: Tensor, flip_ok: Tensor) -> Tensor:
    still = _uniform(ink, 0, 1) < 0.3
    angle = _uniform(ink, -0.2, 0.2).masked_fill(still, 0)
    zoom = _uniform(ink, 0.9, 1.15).masked_fill(still, 1)
    shift = _uniform(ink, -0.1, 0.1, 2).masked_fill(still[:, None], 0)
    mirror = torch.where(flip_ok & (_uniform(ink, 0, 1) < 0.5), -1.0, 1.0)
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    across = torch.stack([cos * mirror, -sin, shift[:, 0]], 1)
    down = torch.stack([sin * mirror, cos, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False)


def _softened(ink: Tensor) -> Tensor:
    amount = (_uniform(ink, -1, 1, 1, 1, 1)).clamp(min=0)
    wide = F.avg_pool2d(F.pad(ink, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(ink, wide, amount)


def _tinted(ink: Tensor) -> Tensor:
    grey = ink.mean(1, keepdim=True)
    colour = torch.lerp(grey, ink, _uniform(ink, 0.8, 1.2, 1, 1, 1))
    colour = colour * _uniform(ink, 0.85, 1.1, 1, 1, 1)
    return colour + 0.03 * torch.randn_like(ink) * _uniform(ink, 0, 1, 1, 1, 1)
