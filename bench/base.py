"""BaseModel: a frozen diffusion pipeline on a device, and what training and scoring ask of it."""

import copy
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.blocks import quicken
from bench.buckets import Schedule
from bench.chunks import Chunks
from bench.config import TrialConfig
from bench.errors import UsageError
from bench.families import FAMILIES
from bench.families.family import Prediction
from bench.sources import find_source
from bench.vae import find_vae
from bench.variants import AS_THEY_ARE, Variants

ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Fastest first."""
CHUNK = 32
"""Prompts, or small images, that are encoded or decoded at once."""
CHUNK_PIXELS = 4 * 1024**2
"""Pixels of the images that are encoded or decoded at once: larger images go in smaller chunks."""
SMALL = 2**28
"""Bytes of the largest UNet that is drawn through in lanes: the operations of a larger one fill all cores,
and every lane holds a copy of its weights with an adapter merged."""

_loading = Lock()
"""Twins share what is loaded."""


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """Conditioning of n prompts: `hidden` (n, tokens, width) and `pooled` (n, width).

    A family that has no `pooled` has it of width 0.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor

    def __getitem__(self, index: Any) -> "TextEmbedding":
        return TextEmbedding(self.hidden[index], self.pooled[index])

    def __len__(self) -> int:
        return len(self.hidden)


def concatenate(parts: Sequence[TextEmbedding]) -> TextEmbedding:
    return TextEmbedding(
        torch.cat([part.hidden for part in parts]), torch.cat([part.pooled for part in parts])
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """n encoded images of one size: mean and standard deviation of the latents (views · n, …), and their
    captions' conditioning (wordings · n), variant by variant: as they are first."""

    mean: torch.Tensor
    std: torch.Tensor
    text: TextEmbedding
    captions: tuple[str, ...] = ()
    """As `text` has read them; needed only where an adapter reads them otherwise."""
    variants: Variants = AS_THEY_ARE
    shown: tuple[int, ...] | None = None
    """The images that an epoch shows, some of them several times; None: each once."""

    @property
    def epoch(self) -> Sequence[int]:
        """The images that an epoch shows."""
        return range(len(self)) if self.shown is None else self.shown

    def __getitem__(self, index: slice) -> "Bucket":
        """Some of the images and captions as they are, each once."""
        n = len(self)
        return Bucket(
            mean=self.mean[:n][index],
            std=self.std[:n][index],
            text=self.text[:n][index],
            captions=self.captions[:n][index],
        )

    def __len__(self) -> int:
        return len(self.mean) // len(self.variants.views)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Encoded images with their captions, by size."""

    buckets: tuple[Bucket, ...]
    empty: TextEmbedding
    """Conditioning of the empty prompt (1), for caption dropout."""
    prior: Bucket | None = None
    """Images of the class, of one size, for trials with a `prior_weight`."""

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    @property
    def num_shown(self) -> int:
        """Images in an epoch."""
        return sum(len(bucket.epoch) for bucket in self.buckets)

    def schedule(self, batch_size: int) -> Schedule:
        """Which bucket every step trains on."""
        return Schedule(counts=tuple(len(bucket.epoch) for bucket in self.buckets), batch_size=batch_size)


Reader = Callable[[Sequence[str]], tuple[TextEmbedding, TextEmbedding]]
"""Conditioning of each of n prompts (n), and of the empty prompt (1)."""


class Attached(Protocol):
    """Adapters that are attached to a base; see `trainers.lora.Attached`."""

    def focus(self, numbers: Sequence[int]) -> None:
        """Predict through these, in this order: a batch is one equal part of samples for each."""

    @property
    def shape(self) -> Hashable:
        """What a graph over the base with the adapters in focus depends on."""

    @property
    def graphs(self) -> dict[Hashable, Any]:
        """Kept as long as the adapters' places."""

    @property
    def pool(self) -> object:
        """Memory that graphs share."""

    @property
    def readers(self) -> Mapping[int, Reader]:
        """By number, how prompts are read with those adapters that change the text encoders too."""

    def spare(self) -> None:
        """Give back memory that is not needed to draw."""

    def lend(self, unet: torch.nn.Module) -> AbstractContextManager["Attached"]:
        """The adapters as they are now, in their order, attached to another UNet with the same modules."""


class BaseModel:
    """A frozen pipeline. Latents are (n, channels, height, width), already scaled for the UNet.

    Its text encoders and its VAE are loaded when they are first used.
    """

    def __init__(
        self,
        pipe: Any,
        name: str,
        fingerprint: str,
        resolution: int | None,
        *,
        vae_scale: int,
        load_encoder: Callable[[str], torch.nn.Module],
    ) -> None:
        """`pipe` may lack any of its family's encoders: `load_encoder` gives them by name, on any device.

        `vae_scale` is in pixels per latent. Raises UsageError for a resolution that the base cannot draw.
        """
        self.name = name
        self.fingerprint = fingerprint
        self.family = FAMILIES[type(pipe).__name__]
        self.unet: torch.nn.Module = pipe.unet.requires_grad_(False).eval()
        self.scheduler_config = pipe.scheduler.config
        self.device: torch.device = pipe.unet.device
        self.dtype: torch.dtype = pipe.unet.dtype
        self.vae_scale = vae_scale
        self.resolution = resolution or pipe.unet.config.sample_size * vae_scale
        if self.resolution % (2 * vae_scale):
            raise UsageError(
                f"resolution {self.resolution}: must be a multiple of {2 * vae_scale} for {name}"
            )
        side = self.resolution // vae_scale
        self.latent_shape = (pipe.unet.config.in_channels, side, side)
        self.attached: Attached | None = None
        """Through what `predict` predicts; None for the bare base."""
        self.keeps_text_encoders = False
        """Whether they stay where they are, for trials that train them."""
        self._pipe = pipe
        self._load_encoder = load_encoder
        self._time_ids: dict[tuple[int, int], torch.Tensor] = {}
        self._chunks = Chunks(max(1, min(CHUNK, CHUNK_PIXELS // self.resolution**2)))
        quicken(self.unet)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            self.unet.to(memory_format=torch.channels_last)
        self.twins = [self.twin() for _ in range(self._num_lanes())]
        """Of the same weights, one a core, to be computed with at the same time.

        None where one computation fills all.
        """

    def _num_lanes(self) -> int:
        size = sum(parameter.nbytes for parameter in self.unet.parameters())
        return torch.get_num_threads() if self.device.type == "cpu" and size <= SMALL else 0

    def twin(self) -> "BaseModel":
        """Another UNet of the same weights, for other adapters at the same time; this one must be bare."""
        twin = copy.copy(self)
        twin.unet, twin.twins = _twin(self.unet), []
        return twin

    def text_twins(self) -> dict[str, torch.nn.Module]:
        """Other text encoders of the same weights, by part, for adapters of their own."""
        return {part: _twin(self.encoder(part)) for part in self.family.text_encoders}

    @property
    def text_shape(self) -> tuple[int, int, int]:
        """Tokens, width of `hidden` and width of `pooled` of a TextEmbedding for this base."""
        config: Any = self.unet.config
        tokens: int = self._pipe.tokenizer.model_max_length
        return tokens, config.cross_attention_dim, self.family.pooled_width(config)

    @property
    def vae(self) -> Any:
        return self.encoder("vae")

    def release_encoders(self) -> None:
        """Give back the memory of the text encoders; they are loaded again if they are used again."""
        if self.keeps_text_encoders:
            return
        for part in self.family.text_encoders:
            setattr(self._pipe, part, None)
        torch.cuda.empty_cache()  # does nothing where there is no such device

    def encoder(self, part: str) -> Any:
        """One of the family's encoders, loaded if need be."""
        with _loading:
            if getattr(self._pipe, part) is None:
                module = self._load_encoder(part).to(self.device)
                if part == "vae" and self.device.type in ("cuda", "cpu"):
                    module = module.to(memory_format=torch.channels_last)
                    if self.device.type == "cuda":
                        quicken(module)
                setattr(self._pipe, part, module.requires_grad_(False).eval())
            return getattr(self._pipe, part)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> TextEmbedding:
        """Conditioning of each prompt, as diffusers' pipeline computes it."""
        for part in self.family.text_encoders:
            self.encoder(part)
        parts = []
        for start in range(0, len(prompts), CHUNK):
            chunk = list(prompts[start : start + CHUNK])
            parts.append(TextEmbedding(*self.family.encode(self._pipe, chunk)))
        return concatenate(parts)

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """What each text encoder reads of each prompt, (n, encoders, length)."""
        read = []
        for part in self.family.tokenizers:
            tokenizer = getattr(self._pipe, part)
            given = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
            read.append(tokenizer(list(prompts), return_tensors="pt", **given).input_ids)
        return torch.stack(read, dim=1).to(self.device)

    def own_readings(self, prompts: Sequence[str]) -> dict[int, tuple[TextEmbedding, TextEmbedding]]:
        """Of attached adapters that read prompts otherwise, by number: conditioning of each prompt, and of
        the empty prompt."""
        readers = self.attached.readers if self.attached else {}
        return {number: reader(prompts) for number, reader in readers.items()}

    def count_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than the text encoders read: what exceeds them is cut off."""
        tokenizer = self._pipe.tokenizer
        return sum(len(tokenizer(prompt).input_ids) > tokenizer.model_max_length for prompt in prompts)

    def encode_empty(self) -> TextEmbedding:
        """Conditioning of the empty prompt (n = 1): zeros if the pipeline was trained so."""
        empty = self.encode_prompts([""])
        if self.empty_is_zero:
            return TextEmbedding(torch.zeros_like(empty.hidden), torch.zeros_like(empty.pooled))
        return empty

    @property
    def empty_is_zero(self) -> bool:
        """Whether zeros stand for the empty prompt, whatever text encoders read."""
        return bool(self._pipe.config.get("force_zeros_for_empty_prompt"))

    @torch.no_grad()
    def encode_images(self, images: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents of images (n, height, width, 3)."""
        parts = self._chunks.map(self._posterior, torch.from_numpy(images))
        mean, std = (torch.cat(of_all) for of_all in zip(*parts, strict=True))
        return mean, std

    def _posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = images.permute(0, 3, 1, 2).to(self.device, self.vae.dtype)
        posterior, scale = self.vae.encode(batch / 127.5 - 1).latent_dist, self.vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """Latents (n, …) -> images (n, height, width, 3). Non-finite pixels become black."""
        return self.send(latents).arrived()

    @torch.no_grad()
    def send(self, latents: torch.Tensor) -> "Leaving":
        """`decode`, without waiting for it."""
        return Leaving(torch.cat(self._chunks.map(self._pixels, latents)))

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.vae
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
        pixels = ((pixels.float() + 1) * 127.5).nan_to_num(0).clamp(0, 255).round()
        images: torch.Tensor = pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return images

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        """The UNet's output for noisy latents (n, …) of any size, timesteps (n,) and conditioning (n)."""
        time_ids = self._sized(latents.shape[-2], latents.shape[-1]).expand(len(latents), -1)
        conditions = self.family.conditions(text.hidden, text.pooled, time_ids)
        with sdpa_kernel(ATTENTION, set_priority=True):
            output = self.unet(latents.to(self.dtype), timesteps, return_dict=False, **conditions)
        result: torch.Tensor = output[0]
        return result.float()

    def _sized(self, height: int, width: int) -> torch.Tensor:
        """The family's time ids (k,) of latents of that size."""
        if (height, width) not in self._time_ids:  # made once: a captured graph cannot copy it from the host
            numbers = self.family.time_ids(height * self.vae_scale, width * self.vae_scale)
            self._time_ids[height, width] = torch.tensor(numbers, device=self.device, dtype=self.dtype)
        return self._time_ids[height, width]


def _twin(module: torch.nn.Module) -> torch.nn.Module:
    """Of the same weights."""
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, weights)


class Leaving:
    """Images on their way from the device: it goes on with other work meanwhile."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images.to("cpu", non_blocking=images.is_cuda)  # into pinned memory
        self._sent = torch.cuda.current_stream().record_event() if images.is_cuda else None

    def arrived(self) -> NDArray[np.uint8]:
        """Waits for them, and for nothing that the device was given later."""
        if self._sent:
            self._sent.synchronize()
        images: NDArray[np.uint8] = self._images.numpy()
        return images


def load_base(
    name: str,
    device: torch.device,
    *,
    revision: str | None = None,
    resolution: int | None = None,
    dtype: str = "float32",
    prediction: Prediction | None = None,
    vae: str | None = None,
) -> BaseModel:
    """The bundled base, a diffusers folder, a checkpoint, or a Hub model already on this machine.

    Downloads nothing. `prediction` is what the UNet predicts, if the base does not say it or is wrong. `vae`
    names another VAE than its own. Raises MissingError if it is not on this machine, UsageError if it is of
    no supported family, or if a part of it is missing or damaged.
    """
    source = find_source(name, revision, getattr(torch, dtype), prediction)
    scale = source.check()
    other_vae = find_vae(vae) if vae else None
    if other_vae:
        other_vae.check(scale)
    pipe = source.load("unet", "scheduler", *source.family.tokenizers)
    fingerprint = source.fingerprint()
    if prediction:
        pipe.scheduler.register_to_config(prediction_type=prediction)
        fingerprint = hashlib.sha256(f"{fingerprint} {prediction}".encode()).hexdigest()
    if other_vae:
        fingerprint = hashlib.sha256(f"{fingerprint} {other_vae.fingerprint()}".encode()).hexdigest()
    _check_schedule(name, pipe.scheduler)

    def load_encoder(part: str) -> torch.nn.Module:
        if part == "vae" and other_vae:
            return other_vae.load(pipe.unet.dtype)
        encoder: torch.nn.Module = getattr(source.load(part), part)
        return encoder

    return BaseModel(
        pipe.to(device),
        name,
        fingerprint,
        resolution,
        vae_scale=scale,
        load_encoder=load_encoder,
    )


def _check_schedule(name: str, scheduler: Any) -> None:
    """Raises UsageError for noise other than that of Ho et al. 2020 (arXiv 2006.11239) in 1000 steps."""
    config = scheduler.config
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in get_args(Prediction) or config.num_train_timesteps != 1000:
        raise UsageError(
            f"{name}: predicts {predicts}; supported are epsilon and v_prediction over 1000 steps"
        )
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(
            f"{name}: its noise is that of a {type(scheduler).__name__}; supported are schedules of betas"
        )


def adaptable_names(unet: torch.nn.Module) -> list[str]:
    """Full names of the modules that may get an adapter, in the UNet's order."""
    return [
        name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]


def target_names(names: Sequence[str], config: TrialConfig) -> list[str]:
    """Those of the UNet's adaptable names that a config adapts, in their order.

    Raises UsageError for a listed ending that matches nothing (a preset's may: bases differ).
    """
    for ending in config.module_endings:
        if not isinstance(config.target_modules, str) and not any(_matches(n, (ending,)) for n in names):
            raise UsageError(f"target_modules: {ending!r} matches no linear or convolution of the base")
    return [name for name in names if _matches(name, config.module_endings)]


def _matches(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def find_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
