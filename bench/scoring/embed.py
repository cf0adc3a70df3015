"""Scorer: an open_clip model that turns images and texts into unit features.

The only module that imports open_clip. Weights are read from safetensors and nothing else: open_clip itself
would fall back to pickled checkpoints, or to random weights, with no more than a log line.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import interpolate, pad

from bench.errors import MissingError, UsageError

BATCH = 256
BUNDLED = "emoji-clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
HUB = "hf-hub:"

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Scorer:
    """A contrastive image-text model, frozen, in evaluation mode, in float32."""

    name: str
    """`emoji-clip` for the bundled model, else the folder's name or the id on the Hub."""
    fingerprint: str
    """SHA-256 of the weights, the configuration and the tokenizer."""
    dim: int
    """Length of a feature."""
    size: tuple[int, int]
    """Height and width that the image tower reads."""
    mean: Tensor
    std: Tensor
    """Normalisation of the channels, shape (1, 3, 1, 1), on the model's device."""
    model: Any
    tokenize: Callable[[list[str]], Tensor]

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit features, shape (n, dim), of images, shape (n, height, width, 3).

        Images that are not square are padded with white, so that nothing is cropped; images of another size
        are resized with an antialiased bicubic filter. A row does not depend on the other images.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (n, height, width, 3), got {images.dtype} {images.shape}")
        batches = (torch.from_numpy(np.ascontiguousarray(batch)) for batch in _chunks(images))
        return self._features(self.encode(batch.permute(0, 3, 1, 2)) for batch in batches)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit features, shape (n, dim), of texts; what exceeds the tokenizer's context is cut off."""
        tokens = (self.tokenize(list(batch)).to(self.mean.device) for batch in _chunks(texts))
        with torch.inference_mode():
            return self._features(self.model.encode_text(batch, normalize=True) for batch in tokens)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Unit features of uint8 images (n, 3, height, width), as a tensor on the model's device."""
        pictures = _fit(images.to(self.mean.device).float() / 255, self.size)
        features: Tensor = self.model.encode_image((pictures - self.mean) / self.std, normalize=True)
        return features

    def _features(self, batches: Iterator[Tensor]) -> NDArray[np.float32]:
        rows = [batch.float().cpu().numpy() for batch in batches]
        return np.concatenate([np.empty((0, self.dim), np.float32), *rows])


def _chunks(items: T) -> Iterator[T]:
    for start in range(0, len(items), BATCH):  # type: ignore[arg-type]
        yield items[start : start + BATCH]  # type: ignore[index]


def _fit(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad to a square with white, then resize; values stay in [0, 1]."""
    height, width = pictures.shape[-2:]
    down, right = max(width - height, 0), max(height - width, 0)
    if down or right:
        pictures = pad(pictures, (right // 2, right - right // 2, down // 2, down - down // 2), value=1.0)
    if pictures.shape[-2:] == size:
        return pictures
    return interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)


# Loading


def load_scorer(name: str, device: torch.device) -> Scorer:
    """`bundled`, a folder in open_clip's format, or `hf-hub:owner/name`, optionally `@revision`.

    Downloads nothing. Raises MissingError when the files are not here, UsageError when they do not fit.
    """
    folder = _folder(name)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingError(
                f"scorer {name}: no {file} in {folder}; put {CONFIG}, {WEIGHTS} (safetensors only) "
                "and the tokenizer's files there"
            )
    try:
        return _load(folder, _name(name), device)
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"scorer {name}: cannot be loaded from {folder}: {reason}") from error


def _name(name: str) -> str:
    if name == "bundled":
        return BUNDLED
    return name.removeprefix(HUB) if name.startswith(HUB) else Path(name).resolve().name


def _folder(name: str) -> Path:
    if name == "bundled":
        return Path(str(files("bench"))) / "builtin" / "scorer"
    return _hub_folder(name) if name.startswith(HUB) else Path(name)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as error:
        raise MissingError(
            f"scorer {name}: not on this machine; get it with: hf download {repository} "
            f"(or give a folder that holds {CONFIG} and {WEIGHTS})"
        ) from error


def _load(folder: Path, name: str, device: torch.device) -> Scorer:
    import open_clip

    source = f"local-dir:{folder}"
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    if "trust_remote_code" in config["text_cfg"].get("tokenizer_kwargs", {}):
        raise ValueError(f"{CONFIG} asks for trust_remote_code: a scorer must not run code")
    model = open_clip.create_model_from_pretrained(source, device=device, return_transform=False)
    preprocess = open_clip.get_model_preprocess_cfg(model)
    size = preprocess["size"]
    return Scorer(
        name=name,
        fingerprint=_fingerprint(folder),
        dim=int(config["embed_dim"]),
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=_channels(preprocess["mean"], device),
        std=_channels(preprocess["std"], device),
        model=model.eval().requires_grad_(False),
        tokenize=open_clip.get_tokenizer(source),
    )


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in (CONFIG, WEIGHTS, "tokenizer.json"):
        if (folder / file).is_file():
            with (folder / file).open("rb") as content:
                digest.update(f"{file}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


# torch-fidelity


def fidelity_extractor(scorer: Scorer) -> str:
    """Make `scorer` known to torch-fidelity and return its `feature_extractor` name there.

    torch_fidelity.calculate_metrics(fid=True, feature_extractor=name, …) then measures on the same unit
    features as `bench` does. The name holds the fingerprint: torch-fidelity's cache goes by name.
    """
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    name = f"bench-{scorer.fingerprint[:16]}"
    if name in FEATURE_EXTRACTORS_REGISTRY:
        return name

    class Extractor(FeatureExtractorBase):  # type: ignore[misc]
        """The image tower of one scorer; torch-fidelity creates it by class."""

        def __init__(self, name: str, features_list: Sequence[str], **_: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("unit",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "unit"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (scorer.encode(images).float(),)

    register_feature_extractor(name, Extractor)
    return name


def inception_features(images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Features of the FID that papers print (n, 2048), or None if its weights are not on this machine.

    Of uint8 images (n, height, width, 3), by torch-fidelity's `inception-v3-compat`. Nothing is downloaded:
    the weights, torch-fidelity's INCEPTION file, must lie in the checkpoint folder of torch hub. Images are
    first resized to 299 pixels with antialiasing, which torch-fidelity's own resizing lacks. The features
    are not unit vectors: they are for `distance.fid` alone. Raises UsageError for a damaged file.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not file.is_file():
        return None
    extractor = _inception(file)
    batches = (torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2) for batch in _chunks(images))
    resized = (_fit(batch.float() / 255, (299, 299)).mul(255).round().byte() for batch in batches)
    with torch.inference_mode():
        rows = [extractor(batch)[0].numpy() for batch in resized]
    return np.concatenate([np.empty((0, 2048), np.float32), *rows])


@lru_cache(maxsize=1)
def _inception(file: Path) -> Any:
    from torch_fidelity.utils import create_feature_extractor

    try:
        # torch-fidelity unpickles the file freely: let torch's restricted reader refuse it first.
        torch.load(file, weights_only=True, map_location="cpu")
        return create_feature_extractor(
            "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(file)
        )
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"{file}: not the Inception weights of torch-fidelity: {error}") from error
