"""AdamW or Prodigy on rows: each row its own learning rate, decay and clipping."""

import math
from collections.abc import Sequence

import torch
from torch.optim.adamw import adamw

from bench.config import TrialConfig
from trainers.prodigy import Prodigy

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's


class RowOptimizer:
    """torch.optim.AdamW on the rows of weights (K, P), or Prodigy on some; moments (K, P) in float32.

    Loshchilov & Hutter 2019 (arXiv 1711.05101). AdamW is elementwise, so K rows are K optimizers.
    """

    def __init__(
        self, weights: torch.Tensor, begin_B: int, factor: torch.Tensor, configs: Sequence[TrialConfig] = ()
    ) -> None:
        """Gradients are of a row's weights before `begin_B`, and of `factor` (K, 1) times the others."""
        self._begin_B, self._factor = begin_B, factor
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._prodigy = Prodigy(weights) if any(c.optimizer == "prodigy" for c in configs) else None

    def fits(self, config: TrialConfig) -> bool:
        """Can a row take this config?"""
        return self._prodigy is not None or config.optimizer == "adamw"

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """What is of the shape of the weights, by name."""
        more = {"start": self._prodigy.start, "sum": self._prodigy.sum} if self._prodigy else {}
        return {"mean": self._mean, "square": self._square, **more}

    @property
    def numbers(self) -> dict[str, torch.Tensor]:
        """A few numbers of each row (K, n), by name."""
        return {"prodigy": self._prodigy.numbers} if self._prodigy else {}

    def forget(self, row: int, weights: torch.Tensor) -> None:
        """The row begins anew with these weights (P)."""
        self._mean[row] = 0
        self._square[row] = 0
        if self._prodigy:
            self._prodigy.forget(row, weights)

    def give_back(self) -> None:
        """The memory of all rows."""
        self._mean = self._square = torch.empty(0)
        self._prodigy = None

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

        By row: the config, the learning rate of all but B, and the number of updates before.
        """
        if not weights.is_cuda:
            gradient[:, self._begin_B :] *= self._factor
            for row, (config, rate, step) in enumerate(zip(configs, rates, steps, strict=True)):
                self._update_row(weights[row], gradient[row], row, config, rate, step)
            return
        from bench import kernels

        given = zip(configs, rates, steps, strict=True)
        rows = [_numbers(config, rate, step) for config, rate, step in given]
        numbers = torch.tensor(rows).pin_memory().to(weights.device, non_blocking=True)
        parts = gradient[:, : self._begin_B], gradient[:, self._begin_B :]
        before, of_B = (torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts)
        norms = torch.hypot(before, of_B * self._factor[:, 0])
        scaled = gradient, self._begin_B, self._factor, norms
        kernels.adamw(weights, self._mean, self._square, *scaled, numbers, BETAS, EPSILON)
        for row, (config, rate, step) in enumerate(zip(configs, rates, steps, strict=True)):
            if config.optimizer == "prodigy":
                whole = gradient[row].float()
                whole[self._begin_B :] *= self._factor[row]
                whole *= (config.max_grad_norm / (norms[row] + 1e-6)).clamp(max=1)
                self._find_size(weights[row], whole, row, config, rate, step)

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
        if config.optimizer == "prodigy":
            self._find_size(weights, gradient, row, config, rate, step)
            return
        before, of_B = slice(self._begin_B), slice(self._begin_B, None)
        same = config.lora_plus == 1
        parts = [(slice(None), rate)] if same else [(before, rate), (of_B, rate * config.lora_plus)]
        for part, part_rate in parts:
            adamw(
                [weights[part]],
                [gradient[part]],
                [self._mean[row, part]],
                [self._square[row, part]],
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

    def _find_size(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        row: int,
        config: TrialConfig,
        rate: float,
        step: int,
    ) -> None:
        assert self._prodigy
        moments = self._mean[row], self._square[row]
        given = {"rate": rate, "decay": config.weight_decay, "epsilon": EPSILON}
        self._prodigy.update(row, weights, gradient, moments, **given, step=step, betas=BETAS)


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
    """Of a row: largest norm, 1 − β₂ᵗ; of all but B, then of B: rate / (1 − β₁ᵗ), 1 − rate · decay.

    The norm is negative for a row that AdamW leaves alone.
    """
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    rates = rate, rate * config.lora_plus
    of_parts = [(each / corrections[0], 1 - each * config.weight_decay) for each in rates]
    most = config.max_grad_norm if config.optimizer == "adamw" else -1.0
    return most, corrections[1], *of_parts[0], *of_parts[1]
