"""What a trial trains on at a step: drawn from (its seed, the step) alone, whatever its neighbours."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.base import Bucket, TextEmbedding, TrainingData
from bench.buckets import Place
from bench.config import TrialConfig
from bench.denoising import NUM_TIMESTEPS, Batch


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of a step, for n samples; on the host."""

    index: torch.Tensor
    """Of the image, (n)."""
    posterior: torch.Tensor
    """Standard normal, (n, channels, height, width): where in its posterior a latent lies."""
    noise: torch.Tensor
    timesteps: torch.Tensor
    dropped: torch.Tensor
    """Whether the sample trains with the empty prompt, (n)."""
    keys: torch.Tensor
    """int32, (n): of the dropout masks."""
    gamma: torch.Tensor
    """Float32, (n); see `Batch.gamma`."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.index, self.posterior, self.noise, self.timesteps, self.dropped, self.keys, self.gamma

    def to(self, device: torch.device) -> "Draw":
        return Draw(*(tensor.to(device) for tensor in self.tensors))

    def split(self, number: int) -> "list[Draw]":
        """In `number` parts, which must divide the samples."""
        return [
            Draw(*parts) for parts in zip(*(tensor.chunk(number) for tensor in self.tensors), strict=True)
        ]


def draw(data: TrainingData, config: TrialConfig, step: int) -> Draw:
    """Of one trial's batch; its own permutations show every image of a bucket equally often."""
    size, generator = config.batch_size, stream(config.seed, "step", step)
    place = data.schedule(size).place(step)
    images = data.buckets[place.bucket]
    shape = (size, *images.mean.shape[1:])
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    if config.noise_offset:
        offset = torch.randn(*shape[:2], 1, 1, generator=stream(config.seed, "noise offset", step))
        noise += config.noise_offset * offset
    return Draw(
        index=torch.tensor(_indices(len(images), config.seed, place, size)),
        posterior=posterior,
        noise=noise,
        timesteps=torch.randint(NUM_TIMESTEPS, (size,), generator=generator),
        dropped=torch.rand(size, generator=generator) < config.caption_dropout,
        keys=torch.randint(-(2**31), 2**31, (size,), generator=generator).int(),
        gamma=torch.full((size,), config.min_snr_gamma),
    )


def together(draws: Sequence[Draw]) -> Draw:
    """Of several trials, one after the other."""
    return Draw(*(torch.cat(parts) for parts in zip(*(one.tensors for one in draws), strict=True)))


def batch(images: Bucket, empty: TextEmbedding, drawn: Draw) -> Batch:
    """What the drawn numbers mean, on the device where all of them lie."""
    index, dropped = drawn.index, drawn.dropped
    text = TextEmbedding(
        torch.where(dropped.view(-1, 1, 1), empty.hidden, images.text.hidden[index]),
        torch.where(dropped.view(-1, 1), empty.pooled, images.text.pooled[index]),
    )
    latents = images.mean[index] + images.std[index] * drawn.posterior
    return Batch(latents, drawn.noise, drawn.timesteps, text, drawn.gamma)


def _indices(num_images: int, seed: int, place: Place, count: int) -> list[int]:
    """`count` positions, from the place on, of an endless row of permutations of a bucket's images."""
    row = f"order {place.bucket}" if place.bucket else "order"
    orders: dict[int, list[int]] = {}
    result = []
    for position in range(place.start, place.start + count):
        number, rank = divmod(position, num_images)
        if number not in orders:
            generator = stream(seed, row, number)
            orders[number] = torch.randperm(num_images, generator=generator).tolist()
        result.append(orders[number][rank])
    return result


def stream(seed: int, purpose: str, number: int) -> torch.Generator:
    """Random numbers of a trial for one purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
