"""A folder of tensors kept by content: what was computed once from the same inputs is read back."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from bench.files import replacing


def cache_folder() -> Path:
    """`$BENCH_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("BENCH_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"


def cached(
    inputs: list[str], compute: Callable[[], dict[str, torch.Tensor]], device: torch.device
) -> dict[str, torch.Tensor]:
    """`compute()`, or what it returned before for the same `inputs` (fingerprints of all that matters).

    A file that cannot be read or written is computed again, or not kept: the cache only saves time.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    file = cache_folder() / f"{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()}.safetensors"
    try:
        # A clone lies where the allocator puts it: products of tensors aligned otherwise round otherwise.
        return {name: tensor.clone() for name, tensor in load_file(file, device=str(device)).items()}
    except (OSError, SafetensorError):
        # Contiguous as those that are read back: convolutions on another layout round otherwise.
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
    try:
        with replacing(file) as temporary:
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, temporary)
    except (OSError, SafetensorError):
        pass
    return tensors
