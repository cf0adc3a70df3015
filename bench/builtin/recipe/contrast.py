"""Batches of pictures and captions for contrastive training, and its loss, all on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.builtin.recipe.augment import augmented
from bench.builtin.recipe.examples import Examples, caption_variants, concept_ids, distinct, draw_pool
from bench.builtin.recipe.tokenizer import encode

NUM_VARIANTS = 12


class Batches:
    """Random batches of augmented pictures with a wording of their captions.

    `draw` reads the device's random generator only, so it can be part of a CUDA graph.
    """

    def __init__(
        self, examples: Examples, tokenizer: object, *, size: int, device: torch.device, seed: int = 0
    ) -> None:
        variants = caption_variants(examples, NUM_VARIANTS, keep_all=0.6, keep_style=0.7, seed=seed)
        texts, wording = distinct(variants.texts)
        style_ids = np.unique(examples.style, return_inverse=True)[1]
        self._size = size
        self._images = torch.from_numpy(examples.images).to(device).permute(0, 3, 1, 2).contiguous()
        self._flip_ok = torch.from_numpy(examples.flip_ok).to(device)
        self._tokens = encode(tokenizer, texts).to(device)
        self._wording = torch.from_numpy(wording).to(device)
        self._names_style = torch.from_numpy(variants.names_style).to(device)
        self._concept = torch.from_numpy(concept_ids(examples)).to(device)
        self._style = torch.from_numpy(style_ids.astype(np.int64)).to(device)
        self._pool = torch.from_numpy(draw_pool(examples)).to(device)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, float [B, 3, 64, 64] in -1 to 1; tokens [B, 32]; matches, bool [captions, pictures]."""
        device = self._pool.device
        rows = self._pool[torch.randint(len(self._pool), (self._size,), device=device)]
        wording = torch.randint(NUM_VARIANTS, (self._size,), device=device)
        tokens = self._tokens[self._wording[rows, wording]]
        images = augmented(self._images[rows], self._flip_ok[rows])
        return images, tokens, self._matches(rows, self._names_style[rows, wording])

    def _matches(self, rows: Tensor, names_style: Tensor) -> Tensor:
        """A caption fits each picture of its concept, in its style if it names one."""
        concept, style = self._concept[rows], self._style[rows]
        same_style = style[:, None] == style[None, :]
        return (concept[:, None] == concept[None, :]) & (same_style | ~names_style[:, None])


def contrastive_loss(images: Tensor, texts: Tensor, matches: Tensor, log_scale: Tensor) -> Tensor:
    """Cross-entropy both ways between unit vectors [B, D], shared evenly among all that match.

    Several vendors' pictures of a concept are in one batch; without `matches` they would be pushed apart.
    """
    logits = (log_scale.clamp(max=np.log(50.0)).exp() * texts.float() @ images.float().T).float()
    return 0.5 * (_shared_entropy(logits, matches) + _shared_entropy(logits.T, matches.T))


def _shared_entropy(logits: Tensor, matches: Tensor) -> Tensor:
    targets = matches.float() / matches.sum(1, keepdim=True)
    return F.cross_entropy(logits, targets)
