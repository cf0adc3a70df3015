"""Where a base's weights lie: found on this machine, whatever form they have."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.checkpoint import open_checkpoint
from bench.errors import MissingError, UsageError
from bench.families.family import Family, Prediction
from bench.pipeline import open_folder

BUNDLED = {"emoji-xl": "builtin/emoji-xl"}
"""Folders of this package."""
PICKLES = {".ckpt", ".pt", ".pth", ".bin"}


class Source(Protocol):
    """A pipeline on disk, whose parts are loaded when they are needed."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def family(self) -> Family:
        """What it is."""

    def check(self) -> int:
        """Look at all parts without reading any weights; returns the VAE's scale in pixels per latent.

        Raises UsageError for what is missing, damaged or incomplete: found now, not when a run has begun.
        """

    def resolution(self) -> int:
        """Pixels of a side that it draws by default. Raises UsageError if it does not say."""

    def blank(self, part: str) -> Any:
        """The UNet, the VAE or a text encoder without weights."""

    def load(self, *parts: str) -> Any:
        """A pipeline on the CPU that has only these of its family's parts. Raises UsageError."""

    def fingerprint(self) -> str:
        """sha256 over all that decides what it computes."""


def find_source(
    name: str,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    prediction: Prediction | None = None,
) -> Source:
    """The bundled base, a diffusers folder, a checkpoint, or a Hub model already on this machine.

    Downloads nothing. `prediction` is what the UNet predicts, for a checkpoint that does not say it. Raises
    MissingError if it is not on this machine, UsageError if it is nothing that can be a base.
    """
    suffix = Path(name).suffix
    if name in BUNDLED:
        return open_folder(Path(str(files("bench") / BUNDLED[name])), name, dtype)
    if Path(name).is_dir():
        return open_folder(Path(name), name, dtype)
    if suffix in PICKLES:
        raise UsageError(f"base {name}: {suffix} is a pickle, and may run any code; give a .safetensors file")
    if suffix == ".safetensors" or Path(name).is_file():
        return open_checkpoint(Path(name), name, dtype, prediction)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"base {name}: no such folder; give emoji-xl, a diffusers folder, a .safetensors checkpoint or a "
            "Hub id owner/name"
        )
    return open_folder(hub_folder(f"base {name}", name, revision), name, dtype)


def hub_folder(what: str, name: str, revision: str | None) -> Path:
    """Where the Hub model `name` lies on this machine; raises MissingError, which says `what` it is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        wanted = f"{name} --revision {revision}" if revision else name
        raise MissingError(f"{what}: not on this machine; get it with: hf download {wanted}") from None
