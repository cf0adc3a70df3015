"""What a trial trains on at a step: drawn from (its seed, the step) alone, whatever its neighbours."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from bench.base import Bucket, TextEmbedding, TrainingData
from bench.buckets import Place
from bench.config import TrialConfig
from bench.denoising import NUM_TIMESTEPS, Batch
from bench.variants import NUM_SHUFFLES, Variants


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
    view: torch.Tensor
    """Of the image, (n)."""
    wording: torch.Tensor
    """Of its caption, (n)."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(self, each.name) for each in fields(self))

    def to(self, device: torch.device) -> "Draw":
        return Draw(*(tensor.to(device) for tensor in self.tensors))

    def split(self, number: int) -> "list[Draw]":
        """In `number` parts, which must divide the samples."""
        return [
            Draw(*parts) for parts in zip(*(tensor.chunk(number) for tensor in self.tensors), strict=True)
        ]


def draw(data: TrainingData, config: TrialConfig, step: int) -> Draw:
    """Of one trial's batch; its own permutations show the images of a bucket as often as an epoch does."""
    size, generator = config.batch_size, stream(config.seed, "step", step)
    place = data.schedule(size).place(step)
    images = data.buckets[place.bucket]
    rows = _indices(len(images.epoch), config.seed, place, size)
    shape = (size, *images.mean.shape[1:])
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    if config.noise_offset:
        offset = torch.randn(*shape[:2], 1, 1, generator=stream(config.seed, "noise offset", step))
        noise += config.noise_offset * offset
    return Draw(
        index=torch.tensor([images.epoch[row] for row in rows]),
        posterior=posterior,
        noise=noise,
        timesteps=torch.randint(NUM_TIMESTEPS, (size,), generator=generator),
        dropped=torch.rand(size, generator=generator) < config.caption_dropout,
        keys=torch.randint(-(2**31), 2**31, (size,), generator=generator).int(),
        gamma=torch.full((size,), config.min_snr_gamma),
        view=_views(images.variants, config, step),
        wording=_wordings(images.variants, config, step),
    )


def together(draws: Sequence[Draw]) -> Draw:
    """Of several trials, one after the other."""
    return Draw(*(torch.cat(parts) for parts in zip(*(one.tensors for one in draws), strict=True)))


def batch(images: Bucket, empty: TextEmbedding, drawn: Draw) -> Batch:
    """What the drawn numbers mean, on the device where all of them lie."""
    view, wording = (number * len(images) + drawn.index for number in (drawn.view, drawn.wording))
    text = TextEmbedding(
        torch.where(drawn.dropped.view(-1, 1, 1), empty.hidden, images.text.hidden[wording]),
        torch.where(drawn.dropped.view(-1, 1), empty.pooled, images.text.pooled[wording]),
    )
    latents = images.mean[view] + images.std[view] * drawn.posterior
    return Batch(latents, drawn.noise, drawn.timesteps, text, drawn.gamma)


# Each kind of variant has a stream of its own: what a trial does not use changes none of its numbers.


def _views(variants: Variants, config: TrialConfig, step: int) -> torch.Tensor:
    """Views of a batch, which must be among `variants`."""
    size, seed = config.batch_size, config.seed
    if config.crops > variants.crops or (config.flip and not variants.flip):
        raise ValueError(f"views that the config needs were not encoded: {variants}")
    crop, mirrored = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    if config.crops > 1:
        crop = torch.randint(config.crops, (size,), generator=stream(seed, "crop", step))
    if config.flip:
        mirrored = torch.randint(2, (size,), generator=stream(seed, "flip", step))
    return mirrored * variants.crops + crop


def _wordings(variants: Variants, config: TrialConfig, step: int) -> torch.Tensor:
    """Wordings of a batch, which must be among `variants`."""
    if not config.shuffle_caption:
        return torch.zeros(config.batch_size, dtype=torch.int64)
    generator = stream(config.seed, "wording", step)
    number = torch.randint(NUM_SHUFFLES, (config.batch_size,), generator=generator)
    return variants.first_shuffle(config.keep_tags) + number


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
