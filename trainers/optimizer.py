"""AdamW on rows: each row its own learning rate, decay and clipping."""

from collections.abc import Sequence

import torch

from bench.config import TrialConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's


class AdamW:
    """torch.optim.AdamW on the rows of weights (K, P); moments (K, P) in float32.

    Loshchilov & Hutter 2019 (arXiv 1711.05101). AdamW is elementwise, so K rows are K optimizers.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on."""
        self.mean, self.square = self.mean[list(rows)], self.square[list(rows)]

    def forget(self, row: int) -> None:
        """The row begins anew."""
        self.mean[row] = 0
        self.square[row] = 0

    @torch.no_grad()
    def update(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        configs: Sequence[TrialConfig],
        steps: Sequence[int],
    ) -> None:
        """One update from d loss / d weights (K, P); `steps` count from 0, by row."""
        rows = [_numbers(config, step) for config, step in zip(configs, steps, strict=True)]
        numbers = torch.tensor(rows)
        if weights.is_cuda:
            from bench import kernels

            numbers = numbers.pin_memory().to(weights.device, non_blocking=True)
            kernels.adamw(weights, self.mean, self.square, gradient, numbers, BETAS, EPSILON)
        else:
            adamw(weights, self.mean, self.square, gradient, numbers)


def _numbers(config: TrialConfig, step: int) -> tuple[float, ...]:
    rate = config.learning_rate * min(1.0, (step + 1) / config.warmup_steps if config.warmup_steps else 1.0)
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    return config.max_grad_norm, rate / corrections[0], 1 - rate * config.weight_decay, corrections[1]


def adamw(
    weights: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    gradient: torch.Tensor,
    numbers: torch.Tensor,
) -> None:
    """In place; `numbers` (K, 4): largest norm, rate / (1 − β₁ᵗ), 1 − rate · decay, 1 − β₂ᵗ of each row."""
    limit, rate, kept, correction = numbers.split(1, dim=1)  # type: ignore[no-untyped-call]
    gradient = gradient * (limit / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = (square / correction).sqrt_().add_(EPSILON)
    weights.mul_(kept)
    weights.sub_(mean / denominator * rate)
