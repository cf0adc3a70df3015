"""Dropout masks that a trial draws alone: from its seed, the step and the module, whatever its neighbours."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import SFC64

GOLDEN, FIRST, SECOND = -1640531527, 0x7FEB352D, -2073254261
"""2³² / φ, and the multipliers of the hash, as signed 32-bit numbers."""

Mask = Callable[[torch.Tensor], torch.Tensor]
"""Zeroes what dropout leaves out of x, samples ordered by slot, the same at every call; the caller scales."""


class Masks:
    """Which elements of each module's input are kept at one step, in each of K slots.

    On a GPU an element's fate is a hash of its place, so that a backward pass finds it again without
    remembering it; elsewhere it is drawn once, which costs less. So the two draw different masks, and on a
    CPU those of a batch trained in parts are not those of the whole.
    """

    def __init__(self, num_slots: int, num_samples: int, num_modules: int, device: torch.device) -> None:
        self._thresholds = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self._keys = torch.zeros(num_modules, num_slots, num_samples, dtype=torch.int32, device=device)
        self._numbers = torch.arange(num_modules, dtype=torch.int32, device=device).view(-1, 1, 1)
        self._rates: tuple[float, ...] = (0.0,) * num_slots

    def set_rates(self, rates: Sequence[float]) -> None:
        """Probability of zeroing an element, by slot."""
        self._rates = tuple(rates)
        self._thresholds.copy_(torch.tensor([int(rate * 2**31) for rate in rates], dtype=torch.int32))

    def set_keys(self, keys: torch.Tensor) -> None:
        """`keys` (K, samples), int32: a number of each sample's trial, step and place in the batch."""
        if any(self._rates):
            self._keys.copy_(mixed(keys ^ (self._numbers * GOLDEN)))

    def mask(self, module: int) -> Mask | None:
        """Of one module's input at this step; None if no slot drops anything."""
        if not any(self._rates):
            return None
        keys = self._keys[module]
        if keys.is_cuda:
            from bench import kernels

            return lambda x: kernels.keep(x, keys, self._thresholds)
        return _Drawn(keys[:, 0].tolist(), self._rates)


class Masked(torch.autograd.Function):
    """A mask as autograd sees it, to which the kernel of a mask says nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        ctx.mask, ctx.strides = mask, x.stride()
        return mask(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # An element's fate is that of its place in memory: it must lie where it lay in x.
        laid = torch.empty_strided(gradient.shape, ctx.strides, dtype=gradient.dtype, device=gradient.device)
        return ctx.mask(laid.copy_(gradient)), None


class _Drawn:
    """A mask that is drawn at its first call."""

    def __init__(self, keys: Sequence[int], rates: Sequence[float]) -> None:
        self._keys, self._rates = keys, rates
        self._mask: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._mask is None:
            mask = torch.ones_like(x, dtype=torch.float32)
            parts = mask.chunk(len(self._rates))
            for part, rate, key in zip(parts, self._rates, self._keys, strict=True):
                if rate:
                    _draw(part, rate, key)
            self._mask = mask.to(x.dtype)
        return x * self._mask


def _draw(mask: torch.Tensor, rate: float, key: int) -> None:
    """1 for what is kept, else 0. NumPy draws 16 bits an element many times faster than torch a number."""
    bits = SFC64(key & 0xFFFFFFFF).random_raw(-(-mask.numel() // 4)).view(np.uint16)[: mask.numel()]
    threshold = round(rate * (1 << 16))
    np.greater_equal(bits.reshape(mask.shape), threshold, out=mask.numpy(), casting="unsafe")


def mixed(x: torch.Tensor) -> torch.Tensor:
    """A hash of 32-bit numbers that spreads every bit: Wellons 2018, "lowbias32"."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * FIRST
    x = (x ^ ((x >> 15) & 0x1FFFF)) * SECOND
    return x ^ ((x >> 16) & 0xFFFF)
