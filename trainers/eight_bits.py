"""AdamW with moments in 8 bits, by bitsandbytes' own kernels."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from bench.config import refuse_missing_8bit

BLOCK = 256
"""Values that share a scale; bitsandbytes' own."""
MIN_SIZE = 4096
"""Values of a tensor below which its moments stay in 32 bits; bitsandbytes' own."""
Tensors = Mapping[str, torch.Tensor]
PARTS = ("mean", "square", "mean scales", "square scales")


class EightBits:
    """Moments of one adapter, tensor by tensor as bitsandbytes.optim.AdamW8bit keeps them.

    Dettmers et al. 2022 (arXiv 2110.02861): numbers of a dynamic map, uint8, and a scale for each BLOCK.
    """

    def __init__(self, tensors: Tensors) -> None:
        """Moments of 0 for tensors of these shapes; raises UsageError without bitsandbytes."""
        refuse_missing_8bit()
        self.state: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
        """By name of a part, then of a tensor; moments have its shape. Scales of one in 32 bits are empty."""
        for key, tensor in tensors.items():
            small = tensor.numel() < MIN_SIZE
            blocks = 0 if small else -(-tensor.numel() // BLOCK)
            dtype = torch.float32 if small else torch.uint8
            for moment in ("mean", "square"):
                self.state[moment][key] = torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
                self.state[f"{moment} scales"][key] = torch.zeros(blocks, device=tensor.device)

    def load(self, state: Mapping[str, Tensors]) -> None:
        """What `state` was."""
        for part, tensors in self.state.items():
            for key, tensor in tensors.items():
                tensor.copy_(state[part][key].reshape(tensor.shape))

    def update(
        self,
        weights: Tensors,
        gradients: Tensors,
        *,
        rate: Callable[[str], float],
        decay: float,
        step: int,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        """One update of weights in place; `rate` is the learning rate of a tensor, `step` counts from 0."""
        for key, weight in weights.items():
            dense = weight.contiguous()  # a copy where there is padding between
            given = "adam", gradients[key].contiguous(), dense
            mean, square, *scales = (self.state[part][key] for part in PARTS)
            if mean.dtype == torch.uint8:
                numbers = betas[0], betas[1], 0.0, 0.0, epsilon, step + 1, rate(key)
                _kernels().optimizer_update_8bit_blockwise(
                    *given, mean, square, *numbers, *_maps(weight.device), *scales, decay
                )
            else:
                first = betas[0], epsilon, step + 1, rate(key)
                _kernels().optimizer_update_32bit(*given, mean, *first, square, betas[1], 0.0, 0.0, decay)
            if dense is not weight:
                weight.copy_(dense)


def _kernels() -> Any:
    import bitsandbytes.functional

    return bitsandbytes.functional


@cache
def _maps(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers that codes stand for, of means and of squares."""
    signed, unsigned = (_kernels().create_dynamic_map(signed=sign).to(device) for sign in (True, False))
    return signed, unsigned
