"""A VAE that stands in for a base's own: found on this machine, checked, fingerprinted and loaded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError
from bench.families.family import MODELS
from bench.files import read_json
from bench.pipeline import loading, vae_scale
from bench.sources import hub_folder
from bench.weights import digest, read_header, refuse_incomplete

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, slots=True)
class Vae:
    """A folder with a VAE in diffusers' format."""

    path: Path
    name: str
    """As the user gave it; errors name it."""

    def check(self, scale: int) -> None:
        """Look at it without reading any weights; raises UsageError if it fits no base of that scale."""
        import diffusers

        where = f"vae_name {self.name}"
        try:
            with torch.device("meta"):
                kind: Any = getattr(diffusers, MODELS["vae"])
                blank = kind.from_config(read_json(self.path / "config.json"))
            held = read_header(self.path / WEIGHTS).count()
        except Exception as error:  # configurations that make no sense raise every kind
            raise UsageError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None
        refuse_incomplete(where, held, sum(parameter.numel() for parameter in blank.parameters()))
        found = vae_scale(blank), blank.config.latent_channels
        if found != (scale, 4):
            raise UsageError(
                f"{where}: its latents have {found[1]} channels, each of {found[0]} pixels; the model's have "
                f"4, each of {scale}"
            )

    def load(self, dtype: torch.dtype) -> torch.nn.Module:
        """On the CPU. Raises UsageError."""
        import diffusers

        with loading(self.name):
            vae: torch.nn.Module = getattr(diffusers, MODELS["vae"]).from_pretrained(
                self.path, torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
        return vae

    def fingerprint(self) -> str:
        """sha256 over its weights and its configuration."""
        parts = [digest(self.path / name) for name in ("config.json", WEIGHTS)]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def find_vae(name: str) -> Vae:
    """A folder that holds a VAE, or a pipeline with one, or a Hub model already on this machine.

    Downloads nothing. Raises MissingError, UsageError.
    """
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise UsageError(f"vae_name {name}: no such folder; give a folder or a Hub id owner/name")
    folder = Path(name) if Path(name).is_dir() else hub_folder(f"vae_name {name}", name, None)
    inside = folder / "vae"
    return Vae(inside if (inside / "config.json").exists() else folder, name)
