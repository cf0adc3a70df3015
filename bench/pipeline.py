"""A pipeline in diffusers' folder format: checked, fingerprinted, and loaded part by part."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError
from bench.families import FAMILIES
from bench.families.family import Family
from bench.files import read_json
from bench.weights import digest, read_header, refuse_incomplete

INDEX = "model_index.json"
OTHERS = {
    "StableDiffusionXLImg2ImgPipeline": "a refiner, which only finishes images: give its base",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
}
"""Pipelines that are taken for bases, by their class, and what they are."""
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
"""That an index may take classes from; the last is a part of diffusers. It imports any that is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineFolder:
    """A folder whose model_index.json names the pipeline of a family; see `bench.sources.Source`."""

    path: Path
    name: str
    """As the user gave it; errors name it."""
    dtype: torch.dtype
    family: Family

    def check(self) -> int:
        """Look at all parts without reading any weights; returns the VAE's scale factor.

        Raises UsageError for a part that is missing, damaged or incomplete.
        """
        for part in ("unet", *self.family.encoders):
            self._check(part)
        refuse_channels(self.name, read_json(self.path / "unet" / "config.json").get("in_channels", 4))
        return vae_scale(self.blank("vae"))

    def resolution(self) -> int:
        """Pixels of a side that it draws by default; raises UsageError if its configurations do not say."""
        try:
            levels = len(read_json(self.path / "vae" / "config.json")["block_out_channels"])
            return int(read_json(self.path / "unet" / "config.json")["sample_size"]) << (levels - 1)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"base {self.name}: its resolution cannot be read: {error!r}") from None

    def load(self, *parts: str) -> Any:
        """A pipeline on the CPU that has only these parts of its family's.

        Raises UsageError for one that is missing, damaged or not of the family.
        """
        import diffusers

        with loading(self.name):
            return getattr(diffusers, self.family.pipeline).from_pretrained(
                self.path,
                dtype=self.dtype,
                use_safetensors=True,
                local_files_only=True,
                **self.family.options,
                **dict.fromkeys(set(self.family.parts) - set(parts)),
            )

    def fingerprint(self) -> str:
        """sha256 over the names and contents of all parts' weights and configurations."""
        hashes = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            mine = name.parts[0] in {INDEX, *self.family.parts}
            if mine and path.suffix in {".safetensors", ".json", ".txt"}:
                hashes.update(str(name).encode())
                hashes.update(digest(path))
        return hashes.hexdigest()

    def _check(self, part: str) -> None:
        where = f"base {self.name}: {part}"
        try:
            needed = sum(parameter.numel() for parameter in self.blank(part).parameters())
            held = sum(read_header(file).count() for file in _weight_files(self.path / part))
        except Exception as error:  # configurations that make no sense raise every kind
            raise UsageError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None
        refuse_incomplete(where, held, needed)

    def blank(self, part: str) -> Any:
        """The UNet, the VAE or a text encoder without weights."""
        return self.family.blank(part, read_json(self.path / part / "config.json"))


def open_folder(path: Path, name: str, dtype: torch.dtype) -> PipelineFolder:
    """Raises UsageError if it holds no pipeline of a supported family."""
    index = path / INDEX
    if not index.exists():
        raise UsageError(f"base {name}: not a diffusers folder (no {INDEX} in it)")
    named = read_json(index)
    kind = str(named.get("_class_name"))
    if kind in OTHERS:
        raise UsageError(f"base {name}: {OTHERS[kind]}")
    if kind not in FAMILIES:
        raise UsageError(f"base {name}: a {kind}; supported are {', '.join(FAMILIES)}")
    _refuse_code(name, named)
    return PipelineFolder(path=path, name=name, dtype=dtype, family=FAMILIES[kind])


def _refuse_code(name: str, index: dict[str, Any]) -> None:
    for part, named in index.items():
        if isinstance(named, list) and named and named[0] not in LIBRARIES:
            raise UsageError(
                f"base {name}: {INDEX}: {part} would run code of {named[0]!r}; classes of diffusers and "
                "transformers are allowed"
            )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """What libraries say of parts that are missing or damaged is one UsageError; else they say nothing."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # captions that are too long are counted and said once instead
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # damaged files raise every kind
        reason = " ".join(str(error).split())
        raise UsageError(f"base {name}: cannot be loaded as a pipeline: {reason}") from None


def refuse_channels(name: str, channels: int) -> None:
    """Of a UNet's input: latents have 4, and what is beyond is a picture to change."""
    if channels != 4:
        raise UsageError(
            f"base {name}: its UNet takes {channels} channels, as inpainting and editing models do; "
            "supported are 4: models that draw from text alone"
        )


def vae_scale(vae: Any) -> int:
    """Pixels per latent."""
    levels: int = len(vae.config.block_out_channels)
    return 1 << (levels - 1)


def _weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors of a part: one, or the shards that an index lists."""
    stem = "diffusion_pytorch_model" if folder.name in {"unet", "vae"} else "model"
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [folder / f"{stem}.safetensors"]
    return [folder / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
