"""AdamW, in 32 or 8 bits, or Prodigy on rows: each row its own learning rate, decay and clipping."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.optim.adamw import adamw

from bench.config import TrialConfig
from trainers.eight_bits import PARTS, EightBits
from trainers.lora import is_text
from trainers.prodigy import Prodigy

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's


class RowOptimizer:
    """torch.optim.AdamW on the rows of weights (K, P), or another on some; moments (K, P) in float32.

    Loshchilov & Hutter 2019 (arXiv 1711.05101). AdamW is elementwise, so K rows are K optimizers. Moments in
    8 bits are kept by tensor; where all rows have such, there are no others.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        begin_B: int,
        factor: torch.Tensor,
        configs: Sequence[TrialConfig] = (),
        num_text: tuple[int, int] = (0, 0),
        tensors: Callable[[torch.Tensor, int], dict[str, torch.Tensor]] = lambda row, number: {"row": row},
    ) -> None:
        """Gradients are of a row's weights before `begin_B`, and of `factor` (K, 1) times the others.

        Of the A's that end there, and of the B's after them, the last `num_text` are the text encoders'.
        `tensors` are the views of a row (P) of that number, by name: see `Slots.tensors`.
        """
        self._begin_B, self._factor, self._tensors = begin_B, factor, tensors
        self._ends = (begin_B - num_text[0], begin_B, weights.shape[1] - num_text[1], weights.shape[1])
        """Of what is before B of the UNet, and of text encoders; of B's of both."""
        self._eight_bits: dict[int, EightBits] = {}
        """By row, once it has made an update."""
        only = configs and all(config.optimizer == "adamw8bit" for config in configs)
        like = weights[:, :0] if only else weights
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)
        self._prodigy = Prodigy(weights) if any(c.optimizer == "prodigy" for c in configs) else None

    def fits(self, config: TrialConfig) -> bool:
        """Can a row take this config?"""
        match config.optimizer:
            case "adamw":
                return self._mean.shape[1] > 0
            case "prodigy":
                return self._prodigy is not None
            case "adamw8bit":
                return True

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """What is of the shape of the weights, by name."""
        more = {"start": self._prodigy.start, "sum": self._prodigy.sum} if self._prodigy else {}
        return {"mean": self._mean, "square": self._square, **more} if self._mean.shape[1] else {}

    @property
    def numbers(self) -> dict[str, torch.Tensor]:
        """A few numbers of each row (K, n), by name."""
        return {"prodigy": self._prodigy.numbers} if self._prodigy else {}

    def state(self, row: int) -> dict[str, dict[str, torch.Tensor]]:
        """What is kept of a row by tensor, copied to the CPU, in place of what is in `rows`."""
        kept = self._eight_bits[row].state if row in self._eight_bits else {}
        return {
            part: {key: tensor.to("cpu", copy=True) for key, tensor in of_part.items()}
            for part, of_part in kept.items()
        }

    def go_on(self, row: int, weights: torch.Tensor, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """With what `state` was of a row of these weights (P)."""
        if state.keys() >= set(PARTS):
            self._eight_bits[row] = EightBits(self._tensors(weights, row))
            self._eight_bits[row].load(state)

    def forget(self, row: int, weights: torch.Tensor) -> None:
        """The row begins anew with these weights (P)."""
        self._mean[row] = 0
        self._square[row] = 0
        self._eight_bits.pop(row, None)
        if self._prodigy:
            self._prodigy.forget(row, weights)

    def give_back(self) -> None:
        """The memory of all rows."""
        self._mean = self._square = torch.empty(0)
        self._eight_bits = {}
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
        scaled = gradient, self._ends, self._factor, norms
        if self._mean.shape[1]:
            kernels.adamw(weights, self._mean, self._square, *scaled, numbers, BETAS, EPSILON)
        for row, (config, rate, step) in enumerate(zip(configs, rates, steps, strict=True)):
            if config.optimizer != "adamw":
                whole = gradient[row].float()
                whole[self._begin_B :] *= self._factor[row]
                whole *= (config.max_grad_norm / (norms[row] + 1e-6)).clamp(max=1)
                self._update_otherwise(weights[row], whole, row, config, rate, step)

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
        if config.optimizer != "adamw":
            self._update_otherwise(weights, gradient, row, config, rate, step)
            return
        for part, part_rate in self._parts(config, rate):
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

    def _parts(self, config: TrialConfig, rate: float) -> list[tuple[slice, float]]:
        """Weights of a row that share a learning rate, and what it is if that of the UNet's A is `rate`."""
        has_text = self._ends[0] < self._ends[1]
        if config.lora_plus == 1 and not has_text:
            return [(slice(None), rate)]
        given = zip((0, *self._ends), self._ends, _rates(config, rate), strict=False)
        return [(slice(start, end), part_rate) for start, end, part_rate in given if start < end]

    def _update_otherwise(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        row: int,
        config: TrialConfig,
        rate: float,
        step: int,
    ) -> None:
        """By Prodigy, or in 8 bits."""
        if config.optimizer == "prodigy":
            assert self._prodigy
            moments = self._mean[row], self._square[row]
            given = {"rate": rate, "decay": config.weight_decay, "epsilon": EPSILON}
            self._prodigy.update(row, weights, gradient, moments, **given, step=step, betas=BETAS)
            return
        parts, gradients = self._tensors(weights, row), self._tensors(gradient, row)
        if row not in self._eight_bits:
            self._eight_bits[row] = EightBits(parts)
        rates = _rates(config, rate)
        self._eight_bits[row].update(
            parts,
            gradients,
            rate=lambda key: rates[2 * (".lora_B." in key) + is_text(key)],
            decay=config.weight_decay,
            step=step,
            betas=BETAS,
            epsilon=EPSILON,
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


def _rates(config: TrialConfig, rate: float) -> tuple[float, float, float, float]:
    """Of A's of the UNet, A's of text encoders, B's of both; a schedule is the same for all."""
    of_text = rate * config.text_encoder_learning_rate / config.learning_rate
    return rate, of_text, rate * config.lora_plus, of_text * config.lora_plus


def _numbers(config: TrialConfig, rate: float, step: int) -> tuple[float, ...]:
    """Of a row: largest norm, 1 − β₂ᵗ; of each of its parts: rate / (1 − β₁ᵗ), 1 − rate · decay.

    The norm is negative for a row that AdamW leaves alone.
    """
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    most = config.max_grad_norm if config.optimizer == "adamw" else -1.0
    numbers = [most, corrections[1]]
    for each in _rates(config, rate):
        numbers += [each / corrections[0], 1 - each * config.weight_decay]
    return tuple(numbers)
