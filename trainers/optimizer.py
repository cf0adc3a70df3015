"""AdamW on rows: each row its own learning rate, decay and clipping."""

import math
from collections.abc import Sequence

import torch
from torch.optim.adamw import adamw

from bench.config import TrialConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's


class AdamW:
    """torch.optim.AdamW on the rows of weights (K, P); moments (K, P) in float32.

    Loshchilov & Hutter 2019 (arXiv 1711.05101). AdamW is elementwise, so K rows are K optimizers.
    """

    def __init__(self, weights: torch.Tensor, num_A: int, factor: torch.Tensor) -> None:
        """Gradients are of the first `num_A` weights of a row, and of `factor` (K, 1) times the others."""
        self._num_A, self._factor = num_A, factor
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)

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
        rates: Sequence[float],
        steps: Sequence[int],
    ) -> None:
        """One update from a gradient (K, P), which may be overwritten.

        By row: the config, the learning rate of A, and the number of updates before.
        """
        if not weights.is_cuda:
            gradient[:, self._num_A :] *= self._factor
            for row, (config, rate, step) in enumerate(zip(configs, rates, steps, strict=True)):
                self._update_row(weights[row], gradient[row], row, config, rate, step)
            return
        from bench import kernels

        given = zip(configs, rates, steps, strict=True)
        rows = [_numbers(config, rate, step) for config, rate, step in given]
        numbers = torch.tensor(rows).pin_memory().to(weights.device, non_blocking=True)
        parts = gradient[:, : self._num_A], gradient[:, self._num_A :]
        of_A, of_B = (torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts)
        norms = torch.hypot(of_A, of_B * self._factor[:, 0])
        scaled = gradient, self._num_A, self._factor, norms
        kernels.adamw(weights, self.mean, self.square, *scaled, numbers, BETAS, EPSILON)

    def _update_row(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        row: int,
        config: TrialConfig,
        rate: float,
        step: int,
    ) -> None:
        norm = float(gradient.norm()) + 1e-6  # as torch.nn.utils.clip_grad_norm_
        if norm > config.max_grad_norm:
            gradient = gradient * (config.max_grad_norm / norm)
        of_A, of_B = slice(self._num_A), slice(self._num_A, None)
        same = config.lora_plus == 1
        parts = [(slice(None), rate)] if same else [(of_A, rate), (of_B, rate * config.lora_plus)]
        for part, part_rate in parts:
            adamw(
                [weights[part]],
                [gradient[part]],
                [self.mean[row, part]],
                [self.square[row, part]],
                [],
                [torch.tensor(float(step))],
                fused=weights.device.type == "cpu",
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=part_rate,
                weight_decay=config.weight_decay,
                eps=EPSILON,
                maximize=False,
            )


def rate_at(config: TrialConfig, step: int, num_steps: int) -> float:
    """The learning rate of a step, counted from 0, of so many."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    match config.lr_scheduler:
        case "constant":
            return config.learning_rate
        case "linear":
            return config.learning_rate * (1 - progress)
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _numbers(config: TrialConfig, rate: float, step: int) -> tuple[float, ...]:
    """Of a row: largest norm, 1 − β₂ᵗ; of A, then of B: rate / (1 − β₁ᵗ), 1 − rate · decay."""
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    rates = rate, rate * config.lora_plus
    of_parts = [(each / corrections[0], 1 - each * config.weight_decay) for each in rates]
    return config.max_grad_norm, corrections[1], *of_parts[0], *of_parts[1]
