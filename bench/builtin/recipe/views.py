"""Two ways to change a picture for the judge: what leaves it the same picture, and what damages it.

Pictures are ink, float [B, 3, 64, 64] from 0 (white) to 1, so what moves in from outside is white.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_DAMAGES = 4


def viewed(ink: Tensor, flip_ok: Tensor) -> Tensor:
    """Crop 60 % to 100 % of each picture, shift, mirror where that is allowed, and tint it a little."""
    return _tinted(_cropped(ink, flip_ok)).clamp(0, 1)


def _uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(like.shape[0], *shape, device=like.device).uniform_(low, high)


def _cropped(ink: Tensor, flip_ok: Tensor) -> Tensor:
    still = _uniform(ink, 0, 1) < 0.25
    zoom = _uniform(ink, 0.6, 1).sqrt().masked_fill(still, 1)
    room = (1 - zoom)[:, None] + 0.06
    shift = (_uniform(ink, -1, 1, 2) * room).masked_fill(still[:, None], 0)
    mirror = torch.where(flip_ok & (_uniform(ink, 0, 1) < 0.5), -1.0, 1.0)
    nothing = torch.zeros_like(zoom)
    across = torch.stack([zoom * mirror, nothing, shift[:, 0]], 1)
    down = torch.stack([nothing, zoom, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid, mode="bicubic", align_corners=False)  # bilinear would blur


def _tinted(ink: Tensor) -> Tensor:
    grey = ink.mean(1, keepdim=True)
    colour = torch.lerp(grey, ink, _uniform(ink, 0.8, 1.2, 1, 1, 1))
    return colour * _uniform(ink, 0.85, 1.1, 1, 1, 1) * _uniform(ink, 0.94, 1.06, 3, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Damages:
    """One kind of damage a picture, the same for all its views; the noise itself is drawn anew."""

    kind: Tensor
    """int64 [B, 1, 1, 1], 0 to 3: noise, blur, bent lines, a piece of another picture."""
    strength: Tensor
    """float [B, 1, 1, 1], 0 (weakest) to 1."""
    bend: Tensor
    """Where each pixel is taken from, as an offset, float [B, 64, 64, 2]."""
    piece: Tensor
    """Which pixels come from another picture, bool [B, 1, 64, 64]."""


def damages(ink: Tensor) -> Damages:
    """Draw a damage for each picture."""
    kind = torch.randint(NUM_DAMAGES, (len(ink), 1, 1, 1), device=ink.device)
    return Damages(kind=kind, strength=_uniform(ink, 0, 1, 1, 1, 1), bend=_bends(ink), piece=_pieces(ink))


def _pieces(ink: Tensor) -> Tensor:
    """A box of 20 to 40 pixels a side, anywhere inside."""
    size, places = ink.shape[-1], torch.arange(ink.shape[-1], device=ink.device)
    side = _uniform(ink, 20, 40, 2)
    start = _uniform(ink, 0, 1, 2) * (size - side)
    inside = (places >= start[..., None]) & (places < (start + side)[..., None])
    return inside[:, 0, None, :, None] & inside[:, 1, None, None, :]


def damaged(ink: Tensor, harm: Damages) -> Tensor:
    """The pictures with their damages."""
    noisy = ink + torch.randn_like(ink) * (0.05 + 0.2 * harm.strength)
    blurred = box_blurred(ink)
    blurred = torch.lerp(blurred, box_blurred(box_blurred(blurred)), harm.strength)
    pieced = torch.where(harm.piece, ink.roll(1, 0), ink)
    kinds = (noisy, blurred, _bent(ink, harm.bend * (0.04 + 0.08 * harm.strength)), pieced)
    result = ink
    for number, kind in enumerate(kinds):
        result = torch.where(harm.kind == number, kind, result)
    return result.clamp(0, 1)


def box_blurred(ink: Tensor) -> Tensor:
    """Each pixel becomes the mean of the 3x3 around it."""
    return F.avg_pool2d(F.pad(ink, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def bent_pictures(ink: Tensor, size: float) -> Tensor:
    """Smoothly bent pictures; `size` is the typical offset, of which 1 is half the width."""
    return _bent(ink, size * _bends(ink))


def _bends(ink: Tensor) -> Tensor:
    coarse = torch.randn(len(ink), 2, 6, 6, device=ink.device)
    bend = F.interpolate(coarse, ink.shape[-2:], mode="bicubic", align_corners=False)
    return bend.permute(0, 2, 3, 1)


def _bent(ink: Tensor, offsets: Tensor) -> Tensor:
    identity = torch.eye(2, 3, device=ink.device).expand(len(ink), 2, 3)
    grid = F.affine_grid(identity, list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid + offsets, mode="bicubic", align_corners=False)
