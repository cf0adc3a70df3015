"""Prodigy on rows: each row finds its own step size."""

import math

import torch

D0 = 1e-6
"""Of a row that begins: the first guess of the distance to the solution."""


class Prodigy:
    """What Prodigy keeps beside Adam's moments, for the rows of weights (K, P).

    Mishchenko & Defazio 2023 (arXiv 2306.06101), as its authors' package does it with decoupled decay, bias
    correction and a safeguarded warm-up. No number is read by the host.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.start = weights.clone()
        self.sum = torch.zeros_like(weights)
        self.numbers = torch.tensor([0.0, D0, D0], device=weights.device).repeat(len(weights), 1)
        """Of each row: the numerator of its distance, the distance d, the largest so far."""

    def forget(self, row: int, weights: torch.Tensor) -> None:
        """The row begins anew with these weights (P)."""
        self.start[row] = weights
        self.sum[row] = 0
        self.numbers[row] = torch.tensor([0.0, D0, D0])

    def update(
        self,
        row: int,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        *,
        rate: float,
        decay: float,
        step: int,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        """One update of weights (P) and moments (P) in place; `rate` is 1 but for a schedule."""
        mean, square = moments
        numerator, d, largest = self.numbers[row].unbind()
        beta1, beta2 = betas
        beta3 = math.sqrt(beta2)
        size = d * rate * math.sqrt(1 - beta2 ** (step + 1)) / (1 - beta1 ** (step + 1))
        numerator = beta3 * numerator + d / D0 * size * torch.dot(gradient, self.start[row] - weights)
        mean.mul_(beta1).add_(gradient * (d * (1 - beta1)))
        square.mul_(beta2).add_((gradient * d).square() * (1 - beta2))
        self.sum[row] = beta3 * self.sum[row] + gradient * (d / D0 * d)
        denominator = self.sum[row].abs().sum()
        found = torch.where(denominator > 0, numerator / denominator, d)
        d = largest = torch.maximum(largest, found)
        weights.mul_(1 - decay * size).sub_(mean / (square.sqrt() + d * epsilon) * size)
        self.numbers[row] = torch.stack([numerator, d, largest])
