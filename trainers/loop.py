"""One optimisation loop that trains a pack of trials side by side.

Each trial draws its data order, noise, timesteps and dropout masks from (its seed, the step): it gives
what it would have given alone, whatever its neighbours.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench.base import BaseModel, TextEmbedding, TrainingData, concatenate
from bench.config import TrialConfig
from bench.denoising import NUM_TIMESTEPS, Batch, DenoisingLoss
from trainers.lora import Adapter, Slots, save_adapter

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's


class Rung:
    """The pack standing still at an epoch, to be scored; its adapters are attached to the base's UNet."""

    def __init__(self, epoch: int, alive: Sequence[int], slots: Slots, losses: Sequence[list[float]]) -> None:
        self.epoch = epoch
        self.alive = list(alive)
        """Index of the config in each slot."""
        self.losses = losses
        """Training loss of every step so far, by config; the last is not finite if the trial diverged."""
        self.stopped: set[int] = set()
        self._slots = slots

    def stop(self, index: int) -> None:
        """The trial of config `index` does not go on."""
        self.stopped.add(index)

    def adapter(self, index: int) -> Adapter:
        """A copy of the adapter of config `index`."""
        return self._slots.adapter(self.alive.index(index))

    def save_adapter(self, index: int, path: Path) -> None:
        """Write the adapter of config `index` so that diffusers loads it."""
        save_adapter(path, self.adapter(index), self._slots.configs[self.alive.index(index)])


def train(
    base: BaseModel,
    data: TrainingData,
    configs: Sequence[TrialConfig],
    rungs: Sequence[int],
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> Iterator[Rung]:
    """Train all configs in one pack; yields at every epoch of `rungs` at which some trial is still alive.

    Every config's `epochs` must be one of `rungs`, and all must share `batch_size`. A trial leaves the
    pack after the rung at its `epochs`, or when its loss is no longer finite. `on_step` gets the steps done
    and their total.
    """
    batch_size = configs[0].batch_size
    ends = [math.ceil(epoch * len(data) / batch_size) for epoch in rungs]
    total = max(
        end for end, epoch in zip(ends, rungs, strict=True) if epoch <= max(c.epochs for c in configs)
    )
    losses: list[list[float]] = [[] for _ in configs]
    alive, done = list(range(len(configs))), 0
    with Slots(base.unet, configs) as slots:
        optimizer = AdamW(slots)
        objective = DenoisingLoss(base)
        for epoch, end in zip(rungs, ends, strict=True):
            if not alive:
                return
            history = []
            for step in range(done, end):
                history.append(_step(base, data, slots, optimizer, objective, step))
                on_step(step + 1, total)
            done = end
            if history:  # none where two epochs of very few images end at the same step
                _append(losses, alive, history)
            alive = _keep(slots, optimizer, alive, {i for i in alive if math.isfinite(losses[i][-1])})
            slots.eval()
            rung = Rung(epoch, alive, slots, losses)
            yield rung
            going_on = {i for i in alive if configs[i].epochs > epoch} - rung.stopped
            alive = _keep(slots, optimizer, alive, going_on)


def _step(
    base: BaseModel,
    data: TrainingData,
    slots: Slots,
    optimizer: "AdamW",
    objective: DenoisingLoss,
    step: int,
) -> torch.Tensor:
    """One update of all slots; returns their losses (K,), not yet synchronised with the host."""
    slots.train([_generator(base.device, c.seed, "dropout", step) for c in slots.configs])
    batches = [_batch(data, config, step) for config in slots.configs]
    batch = Batch(
        latents=torch.cat([batch.latents for batch in batches]),
        noise=torch.cat([batch.noise for batch in batches]),
        timesteps=torch.cat([batch.timesteps for batch in batches]),
        text=concatenate([batch.text for batch in batches]),
    )
    losses = objective(batch).view(len(slots), -1).mean(dim=1)
    optimizer.update(slots.gradient(losses.sum()), step)
    return losses.detach()


def _batch(data: TrainingData, config: TrialConfig, step: int) -> Batch:
    """The samples of one trial; its own permutations show every image equally often."""
    device, size = data.mean.device, config.batch_size
    generator = _generator(torch.device("cpu"), config.seed, "step", step)
    shape = (size, *data.mean.shape[1:])
    index = torch.tensor(_indices(len(data), config.seed, step * size, size), device=device)
    posterior = torch.randn(shape, generator=generator).to(device)
    noise = torch.randn(shape, generator=generator).to(device)
    timesteps = torch.randint(NUM_TIMESTEPS, (size,), generator=generator).to(device)
    dropped = (torch.rand(size, generator=generator) < config.caption_dropout).to(device)
    text = TextEmbedding(
        torch.where(dropped.view(-1, 1, 1), data.empty.hidden, data.text.hidden[index]),
        torch.where(dropped.view(-1, 1), data.empty.pooled, data.text.pooled[index]),
    )
    return Batch(data.mean[index] + data.std[index] * posterior, noise, timesteps, text)


def _indices(num_images: int, seed: int, start: int, count: int) -> list[int]:
    """Positions start … start + count of an endless row of permutations of the images."""
    orders: dict[int, list[int]] = {}
    result = []
    for position in range(start, start + count):
        number, place = divmod(position, num_images)
        if number not in orders:
            generator = _generator(torch.device("cpu"), seed, "order", number)
            orders[number] = torch.randperm(num_images, generator=generator).tolist()
        result.append(orders[number][place])
    return result


def _generator(device: torch.device, seed: int, purpose: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def _append(losses: list[list[float]], alive: Sequence[int], history: Sequence[torch.Tensor]) -> None:
    for index, values in zip(alive, torch.stack(list(history)).T.tolist(), strict=True):
        losses[index].extend(values)


def _keep(slots: Slots, optimizer: "AdamW", alive: Sequence[int], staying: set[int]) -> list[int]:
    """Drop the slots of the trials that do not stay; returns the indices that do."""
    kept = [slot for slot, index in enumerate(alive) if index in staying]
    if 0 < len(kept) < len(alive):
        slots.keep(kept)
        optimizer.keep(kept)
    return [alive[slot] for slot in kept]


class AdamW:
    """torch.optim.AdamW on the rows of `slots.weights`: each row its own learning rate, decay and clipping.

    Loshchilov & Hutter 2019 (arXiv 1711.05101). AdamW is elementwise, so K rows are K optimizers.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._mean = torch.zeros_like(slots.weights)
        self._square = torch.zeros_like(slots.weights)

    def keep(self, kept: Sequence[int]) -> None:
        self._mean, self._square = self._mean[list(kept)], self._square[list(kept)]

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, step: int) -> None:
        """One update from d loss / d weights (K, P); `step` counts from 0."""
        configs = self._slots.configs
        limit = self._column([config.max_grad_norm for config in configs])
        rate = self._column([_learning_rate(config, step) for config in configs])
        decay = self._column([config.weight_decay for config in configs])
        gradient = gradient * (limit / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        denominator = (self._square / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPSILON)
        self._slots.weights.mul_(1 - rate * decay)
        self._slots.weights.sub_(self._mean / denominator * (rate / (1 - BETAS[0] ** (step + 1))))

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=self._slots.weights.device).unsqueeze(1)


def _learning_rate(config: TrialConfig, step: int) -> float:
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps if config.warmup_steps else 1.0)
