"""A pipeline in diffusers' folder format: found, checked, fingerprinted, and loaded part by part."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from bench.cache import cached
from bench.errors import MissingError, UsageError
from bench.files import read_json

BUNDLED = {"emoji-xl": "builtin/emoji-xl"}
FAMILY = "StableDiffusionXLPipeline"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
ENCODERS = (*TEXT_ENCODERS, "vae")
"""Parts that are loaded when they are first used."""
LARGE = 64 * 1024**2
"""Bytes from which a file's hash is kept: an SDXL takes half a minute to hash, at every start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineFolder:
    """A folder whose model_index.json names an SDXL pipeline."""

    path: Path
    name: str
    """As the user gave it; errors name it."""
    dtype: torch.dtype

    def load(self, *parts: str) -> Any:
        """A StableDiffusionXLPipeline on the CPU that has only these parts.

        Raises UsageError for one that is missing, damaged or not of an SDXL.
        """
        from diffusers import StableDiffusionXLPipeline
        from safetensors import SafetensorError

        known = {"unet", "scheduler", "tokenizer", "tokenizer_2", *ENCODERS}
        try:
            return StableDiffusionXLPipeline.from_pretrained(
                self.path,
                dtype=self.dtype,
                use_safetensors=True,
                local_files_only=True,
                add_watermarker=False,
                **dict.fromkeys(known - set(parts)),
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{self.name}: cannot be loaded as a pipeline: {reason}") from None

    def load_encoder(self, part: str) -> torch.nn.Module:
        """One of ENCODERS, on the CPU."""
        module: torch.nn.Module = getattr(self.load(part), part)
        return module

    def tokenizer(self) -> Any:
        """The one that decides how much of a caption is read; raises UsageError if it cannot be loaded."""
        from transformers import CLIPTokenizer

        try:
            return CLIPTokenizer.from_pretrained(self.path / "tokenizer_2", local_files_only=True)
        except Exception as error:  # damaged files raise every kind
            reason = " ".join(str(error).split())
            raise UsageError(f"base {self.name}: tokenizer_2: cannot be loaded: {reason}") from None

    def resolution(self) -> int:
        """Pixels of a side that it draws by default; raises UsageError if its configurations do not say."""
        try:
            levels = len(read_json(self.path / "vae" / "config.json")["block_out_channels"])
            return int(read_json(self.path / "unet" / "config.json")["sample_size"]) << (levels - 1)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"base {self.name}: its resolution cannot be read: {error!r}") from None

    def check_encoders(self) -> int:
        """Look at what `load_encoder` will need without reading any weights; returns the VAE's scale factor.

        Raises UsageError for an encoder that is missing, damaged or incomplete: found now, not when a run
        has begun.
        """
        for part in ENCODERS:
            self._check(part)
        levels: int = len(_blank(self.path, "vae").config.block_out_channels)
        return 1 << (levels - 1)

    def _check(self, part: str) -> None:
        where = f"base {self.name}: {part}"
        try:
            needed = sum(parameter.numel() for parameter in _blank(self.path, part).parameters())
            held = sum(_count_numbers(file) for file in _weight_files(self.path / part))
        except Exception as error:  # configurations that make no sense raise every kind
            raise UsageError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None
        if held < needed:  # names differ between versions of transformers, numbers do not
            raise UsageError(
                f"{where}: incomplete: its weights are {held:,} numbers, its config.json needs {needed:,}"
            )

    def fingerprint(self) -> str:
        """sha256 over the names and contents of weights and configurations."""
        digest = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            if path.suffix in {".safetensors", ".json", ".txt"}:
                digest.update(str(path.relative_to(self.path)).encode())
                digest.update(_digest(path))
        return digest.hexdigest()


def find_pipeline(
    name: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> PipelineFolder:
    """The bundled base, a diffusers folder, or a Hub model already on this machine; downloads nothing.

    Raises MissingError if it is not on this machine, UsageError if it is no SDXL pipeline.
    """
    path = _path(name, revision)
    _check_family(path, name)
    return PipelineFolder(path=path, name=name, dtype=dtype)


def _path(name: str, revision: str | None) -> Path:
    if name in BUNDLED:
        return Path(str(files("bench") / BUNDLED[name]))
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"base {name}: no such folder; give emoji-xl, a diffusers folder or a Hub id owner/name"
        )
    return _hub_path(name, revision)


def _hub_path(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        wanted = f"{name} --revision {revision}" if revision else name
        raise MissingError(f"base {name}: not on this machine; get it with: hf download {wanted}") from None


def _check_family(path: Path, name: str) -> None:
    index = path / "model_index.json"
    if not index.exists():
        raise UsageError(f"base {name}: not a diffusers folder (no model_index.json in it)")
    family = read_json(index).get("_class_name")
    if family != FAMILY:
        raise UsageError(f"base {name}: a {family}; supported is {FAMILY}")


def _blank(path: Path, part: str) -> Any:
    """The module that config.json describes, without weights."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if not (path / part / "config.json").exists():
        raise FileNotFoundError(f"no {part}/config.json in {path}")
    with torch.device("meta"):
        if part == "vae":
            config = AutoencoderKL.load_config(path / part, local_files_only=True)
            return AutoencoderKL.from_config(config)
        family = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        return family(CLIPTextConfig.from_pretrained(path / part, local_files_only=True))


def _weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors of a part: one, or the shards that an index lists."""
    stem = "diffusion_pytorch_model" if folder.name == "vae" else "model"
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [folder / f"{stem}.safetensors"]
    return [folder / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]


def _count_numbers(file: Path) -> int:
    """Of all tensors in a file, from its header; raises SafetensorError if data is cut off."""
    return sum(torch.Size(shape).numel() for shape in _shapes(file))


def _shapes(file: Path) -> Iterator[list[int]]:
    from safetensors import safe_open

    if not file.exists():
        raise FileNotFoundError(f"no {file.parent.name}/{file.name} in {file.parent.parent}")
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            yield tensors.get_slice(name).get_shape()


def _digest(path: Path) -> bytes:
    """sha256 of a file; of a large one kept by its place, size and times, which a changed file changes."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return _hash(path)
    known_by = (path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    inputs = ["file digest 1", *map(str, known_by)]
    kept = cached(inputs, lambda: {"sha256": torch.tensor(list(_hash(path)))}, torch.device("cpu"))
    return bytes(kept["sha256"].tolist())


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
