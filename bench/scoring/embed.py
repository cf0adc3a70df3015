"""Networks that turn images into unit features, and Scorer: an open_clip model that reads texts too.

The only module that imports open_clip. Weights are read from safetensors and nothing else: open_clip itself
would fall back to pickled checkpoints, or to random weights, with no more than a log line.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from torch.nn.functional import interpolate, normalize, pad

from bench.errors import MissingError, UsageError

BATCH = 256
BUNDLED = "emoji-clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of torch-fidelity's release v0.2.0: the file is a pickle, and torch-fidelity reads it as one."""
HUB = "hf-hub:"
UNFIT = (
    AssertionError, AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError,
)  # fmt: skip
"""What the libraries raise for files that are damaged or of another model."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class FeatureNetwork:
    """A network that turns images into unit features: frozen, in evaluation mode, in float32."""

    name: str
    """Of a bundled network its own, else the folder's name or the id on the Hub."""
    fingerprint: str
    """SHA-256 of the weights, the configuration and, if there is one, the tokenizer."""
    dim: int
    """Length of a feature."""
    size: tuple[int, int]
    """Height and width that the network reads, in pixels."""
    mean: Tensor
    std: Tensor
    """Normalisation of the channels, shape (1, 3, 1, 1), on the network's device."""
    forward: Callable[[Tensor], Tensor]
    """Features (n, dim), of any length, of normalised images (n, 3, *size)."""

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit features, shape (n, dim), of images, shape (n, height, width, 3).

        Images that are not square are padded with white, so that nothing is cropped; images of another size
        are resized with an antialiased bicubic filter. A row does not depend on the other images.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (n, height, width, 3), got {images.dtype} {images.shape}")
        return _rows((self.encode(batch) for batch in _batches(images)), self.dim)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Unit features of uint8 images (n, 3, height, width), as a tensor on the network's device."""
        pictures = _fit(images.to(self.device).float() / 255, self.size)
        return normalize(self.forward((pictures - self.mean) / self.std).float(), dim=-1)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Scorer:
    """A contrastive image-text model, frozen, in evaluation mode, in float32."""

    tower: FeatureNetwork
    """The half that reads images; it carries the name and the fingerprint of the whole."""
    model: Any
    tokenize: Callable[..., Tensor]
    """Tokens (n, context) of a list of texts; `context_length` overrules the model's own."""

    @property
    def name(self) -> str:
        return self.tower.name

    @property
    def fingerprint(self) -> str:
        return self.tower.fingerprint

    @property
    def dim(self) -> int:
        return self.tower.dim

    @property
    def device(self) -> torch.device:
        return self.tower.device

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See FeatureNetwork.embed_images."""
        return self.tower.embed_images(images)

    def encode(self, images: Tensor) -> Tensor:
        """See FeatureNetwork.encode."""
        return self.tower.encode(images)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit features, shape (n, dim), of texts; what exceeds the tokenizer's context is cut off."""
        tokens = (self.tokenize(list(batch)).to(self.device) for batch in _chunks(texts))
        with torch.inference_mode():
            return _rows((self.model.encode_text(batch, normalize=True) for batch in tokens), self.dim)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts exceed the tokenizer's context, so that their ends are cut off."""
        if not texts:
            return 0
        short = self.tokenize([*texts, ""])
        context = short.shape[1]
        longer = self.tokenize([*texts, ""], context_length=context + 1)
        # One more place changes nothing for a text that fits: it is filled up as the empty text is.
        same = (longer[:, :context] == short).all(1) & (longer[:, context] == longer[-1, context])
        return int((~same).sum())


def _rows(batches: Iterator[Tensor], dim: int) -> NDArray[np.float32]:
    rows = [batch.float().cpu().numpy() for batch in batches]
    return np.concatenate([np.empty((0, dim), np.float32), *rows])


def _batches(images: NDArray[np.uint8]) -> Iterator[Tensor]:
    """Channels first, uint8 (n, 3, height, width)."""
    for batch in _chunks(images):
        yield torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2)


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
    folder = scorer_folder(name)
    _check_files(folder, f"scorer {name}")
    with one_line_error(f"scorer {name}", folder):
        return _load(folder, network_name(name, BUNDLED), device)


def load_tower(folder: Path, name: str, device: torch.device, what: str) -> FeatureNetwork:
    """The image tower alone of a folder in open_clip's format; `what` begins the messages of errors.

    Raises MissingError when a file is not there, UsageError when the files do not fit.
    """
    _check_files(folder, what)
    with one_line_error(what, folder):
        return _tower(_model(folder, device), folder, name, device)


def scorer_folder(name: str) -> Path:
    """Where a scorer's files are; raises MissingError for a Hub model that is not on this machine."""
    if name == "bundled":
        return Path(str(files("bench"))) / "builtin" / "scorer"
    if name.startswith(HUB):
        return hub_folder(name, f"scorer {name}", f"{CONFIG} and {WEIGHTS}")
    return Path(name)


def network_name(name: str, bundled: str) -> str:
    """What a network is called in results."""
    if name == "bundled":
        return bundled
    return name.removeprefix(HUB) if name.startswith(HUB) else Path(name).resolve().name


def hub_folder(name: str, what: str, needed: str) -> Path:
    """The snapshot of `hf-hub:owner/name[@revision]` on this machine; downloads nothing.

    Raises MissingError, whose message says how to get it, or which files a folder would have to hold.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as error:
        option = f" --revision {revision}" if revision else ""
        raise MissingError(
            f"{what}: not on this machine; get it with: hf download {repository}{option} "
            f"(or give a folder that holds {needed})"
        ) from error


@contextmanager
def one_line_error(what: str, folder: Path) -> Iterator[None]:
    """Turn whatever unfit files cause in a library into a UsageError of one line."""
    try:
        yield
    except UNFIT as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{what}: cannot be loaded from {folder}: {reason}") from error


def _check_files(folder: Path, what: str) -> None:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingError(
                f"{what}: no {file} in {folder}; put {CONFIG}, {WEIGHTS} (safetensors only) "
                "and the tokenizer's files there"
            )


def _load(folder: Path, name: str, device: torch.device) -> Scorer:
    import open_clip

    model = _model(folder, device)
    return Scorer(
        tower=_tower(model, folder, name, device),
        model=model,
        tokenize=open_clip.get_tokenizer(f"local-dir:{folder}"),
    )


def _model(folder: Path, device: torch.device) -> Any:
    import open_clip

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    if "trust_remote_code" in config["text_cfg"].get("tokenizer_kwargs", {}):
        raise ValueError(f"{CONFIG} asks for trust_remote_code: a scorer must not run code")
    model = open_clip.create_model_from_pretrained(
        f"local-dir:{folder}", device=device, return_transform=False
    )
    return model.eval().requires_grad_(False)


def _tower(model: Any, folder: Path, name: str, device: torch.device) -> FeatureNetwork:
    import open_clip

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    preprocess = open_clip.get_model_preprocess_cfg(model)
    size = preprocess["size"]
    return FeatureNetwork(
        name=name,
        fingerprint=fingerprint_of(folder, CONFIG, WEIGHTS, "tokenizer.json"),
        dim=int(config["embed_dim"]),
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=channels(preprocess["mean"], device),
        std=channels(preprocess["std"], device),
        forward=model.encode_image,
    )


def channels(values: Sequence[float], device: torch.device) -> Tensor:
    """One value a colour channel, shape (1, 3, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


def fingerprint_of(folder: Path, *names: str) -> str:
    """SHA-256 over those of the named files that are in the folder."""
    digest = hashlib.sha256()
    for file in names:
        if (folder / file).is_file():
            with (folder / file).open("rb") as content:
                digest.update(f"{file}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def scorer_fingerprint(name: str) -> str:
    """The fingerprint that `load_scorer(name)` would give, without loading the model."""
    return fingerprint_of(scorer_folder(name), CONFIG, WEIGHTS, "tokenizer.json")


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


def inception_features(
    images: NDArray[np.uint8], device: torch.device | None = None
) -> NDArray[np.float32] | None:
    """Features of the FID that papers print (n, 2048), or None if its weights are not on this machine.

    Of uint8 images (n, height, width, 3), by torch-fidelity's `inception-v3-compat`, on the CPU if no device
    is given. Nothing is downloaded: the weights, torch-fidelity's INCEPTION file, must lie in the checkpoint
    folder of torch hub. Images are first resized to 299 pixels with antialiasing, which torch-fidelity's own
    resizing lacks. The features are not unit vectors: they are for `distance.fid` alone. Raises UsageError
    for a file of another SHA-256.
    """
    file = _inception_file()
    if not file.is_file():
        return None
    device = device or torch.device("cpu")
    extractor = _inception(file, device)
    batches = (_fit(batch.to(device).float() / 255, (299, 299)) for batch in _batches(images))
    with torch.inference_mode():
        return _rows((extractor(batch.mul(255).round().byte())[0] for batch in batches), 2048)


def inception_fingerprint() -> str | None:
    """SHA-256 of the weights, or None if they are not on this machine."""
    file = _inception_file()
    return fingerprint_of(file.parent, file.name) if file.is_file() else None


def _inception_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION


@lru_cache(maxsize=1)
def _inception(file: Path, device: torch.device) -> Any:
    from torch_fidelity.utils import create_feature_extractor

    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != INCEPTION_SHA256:
        raise UsageError(
            f"{file}: not the Inception weights of torch-fidelity: its SHA-256 is {digest}, "
            f"theirs {INCEPTION_SHA256}; delete it"
        )
    extractor = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(file)
    )
    return extractor.to(device)
