"""AdamW on rows: each row its own learning rate, decay and clipping."""

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
        steps: Sequence[int],
    ) -> None:
        """One update from a gradient (K, P), which may be overwritten; `steps` count from 0, by row."""
        if not weights.is_cuda:
            gradient[:, self._num_A :] *= self._factor
            for row, (config, step) in enumerate(zip(configs, steps, strict=True)):
                self._update_row(weights[row], gradient[row], row, config, step)
            return
        from bench import kernels

        rows = [_numbers(config, step) for config, step in zip(configs, steps, strict=True)]
        numbers = torch.tensor(rows).pin_memory().to(weights.device, non_blocking=True)
        parts = gradient[:, : self._num_A], gradient[:, self._num_A :]
        of_A, of_B = (torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts)
        norms = torch.hypot(of_A, of_B * self._factor[:, 0])
        scaled = gradient, self._num_A, self._factor, norms
        kernels.adamw(weights, self.mean, self.square, *scaled, numbers, BETAS, EPSILON)

    def _update_row(
        self, weights: torch.Tensor, gradient: torch.Tensor, row: int, config: TrialConfig, step: int
    ) -> None:
        norm = float(gradient.norm()) + 1e-6  # as torch.nn.utils.clip_grad_norm_
        if norm > config.max_grad_norm:
            gradient = gradient * (config.max_grad_norm / norm)
        adamw(
            [weights],
            [gradient],
            [self.mean[row]],
            [self.square[row]],
            [],
            [torch.tensor(float(step))],
            fused=weights.device.type == "cpu",
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate_at(config, step),
            weight_decay=config.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


def rate_at(config: TrialConfig, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps if config.warmup_steps else 1.0)


def _numbers(config: TrialConfig, step: int) -> tuple[float, ...]:
    """Of a row: largest norm, rate / (1 − β₁ᵗ), 1 − rate · decay, 1 − β₂ᵗ."""
    rate, corrections = rate_at(config, step), [1 - beta ** (step + 1) for beta in BETAS]
    return config.max_grad_norm, rate / corrections[0], 1 - rate * config.weight_decay, corrections[1]
