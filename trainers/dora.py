"""DoRA on slots: each output's weights are scaled to a magnitude that is trained, and turned by A and B.

Liu et al. 2024 (arXiv 2402.09353), as PEFT does it: with a gain m / ‖W + B A‖ of each output, whose norm is a
constant to the gradient, y = gain · (W + B A) x + bias. Dropout is of x in both products, beside which stays
what of W x it leaves out.
"""

from typing import Any

import torch


@torch.no_grad()
def norms(weight: torch.Tensor, squares: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """‖W + B A‖ of each output in each slot, (K, G · out), float32; no product B A is made.

    Shapes: weight (G · out, in, …), A (K, G · R, in), B (K, G, out, R); `squares` (G · out) are ‖W‖².
    """
    slots, modules, outputs, rank = B.shape
    A = torch.unflatten(A, 1, (modules, rank))
    stacked = A.transpose(0, 1).reshape(modules, slots * rank, -1)
    across = torch.bmm(weight.reshape(modules, outputs, -1), stacked.mT)
    across = torch.unflatten(across, 2, (slots, rank)).permute(2, 0, 1, 3)
    inner, B = (A @ A.mT).float(), B.float()
    added = ((2 * across.float() + B @ inner) * B).sum(dim=-1).flatten(1)
    found: torch.Tensor = (squares + added).clamp(min=0).sqrt()
    return found


def frozen_norms(weight: torch.Tensor) -> torch.Tensor:
    """‖W‖ of each output, where magnitudes begin."""
    found: torch.Tensor = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1, dtype=torch.float32)
    return found


class Gain(torch.autograd.Function):
    """y · gain, rounded once: a bfloat16 cannot hold a gain near 1.

    Shapes: y (K, n, …), gain with as many axes, float32, of size 1 where it is the same.
    """

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y, gain)
        return torch.mul(y, gain, out=torch.empty_like(y))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, gain = ctx.saved_tensors
        same = [axis for axis, size in enumerate(gain.shape) if size == 1]
        of_gain = (gradient * y).sum(dim=same, keepdim=True, dtype=torch.float32)
        return torch.mul(gradient, gain, out=torch.empty_like(y)), of_gain
