"""Adapter files: read what diffusers and PEFT write, and attach several side by side to draw with."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bench.base import BaseModel
from bench.config import TrialConfig
from bench.errors import UsageError
from trainers.lora import Adapter, Slots

PREFIX = "unet."
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight")
ALPHA = (".alpha",)
METADATA = "lora_adapter_metadata"


@contextmanager
def attach(base: BaseModel, paths: Sequence[Path]) -> Iterator[None]:
    """Attach the adapters of these files, in order, to the base's UNet, one a slot.

    Raises UsageError naming the file that cannot be read or does not fit the base.
    """
    adapters = [read_adapter(path) for path in paths]
    configs = [_slot_config(adapter) for adapter in adapters]
    for path, config in zip(paths, configs, strict=True):
        _check_modules(base, config, path)
    with Slots(base.unet, configs) as slots:
        for slot, (adapter, path) in enumerate(zip(adapters, paths, strict=True)):
            try:
                slots.load(slot, _padded(adapter, configs[slot].rank))
            except (UsageError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UsageError(f"{path}: does not fit {base.name}: {reason}") from None
        slots.eval()
        yield


def read_adapter(path: Path) -> Adapter:
    """A, and B times alpha / rank, of every module of a UNet adapter in diffusers' or PEFT's layout.

    Raises UsageError for a file that is damaged, not finite, or holds anything else: weights that are
    left out without a word would be scored as an adapter that does less.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a readable adapter: {error}") from None
    _check_tensors(tensors, path)
    downs, ups, alphas = (_ending(tensors, endings) for endings in (DOWN, UP, ALPHA))
    if not downs or set(downs) != set(ups):
        raise UsageError(f"{path}: {len(downs)} modules have a lora_A and {len(ups)} a lora_B")
    described = _described(metadata, path)
    adapter = {}
    for name, down in downs.items():
        alpha = float(alphas[name]) if name in alphas else described(name, len(down))
        adapter[f"{name}.lora_A.weight"] = down
        adapter[f"{name}.lora_B.weight"] = ups[name] * (alpha / len(down))
    return adapter


def _check_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    strange = [key for key in tensors if not (key.startswith(PREFIX) and key.endswith(DOWN + UP + ALPHA))]
    if strange:
        raise UsageError(
            f"{path}: {len(strange)} of {len(tensors)} keys are not of a UNet adapter of diffusers or PEFT "
            f"({PREFIX}<module>{DOWN[0]}), such as {strange[0]}"
        )
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UsageError(f"{path}: {broken[0]} holds values that are not finite")


def _ending(tensors: Mapping[str, torch.Tensor], endings: tuple[str, ...]) -> Adapter:
    """Tensors by module."""
    return {
        key.removeprefix(PREFIX).removesuffix(ending): tensor
        for key, tensor in tensors.items()
        for ending in endings
        if key.endswith(ending)
    }


def _described(metadata: Mapping[str, str], path: Path) -> Callable[[str, int], float]:
    """Alpha of a module of some rank, from the metadata that diffusers and `save_adapter` write.

    Without any, alpha is the rank, as diffusers takes it.
    """
    if METADATA not in metadata:
        return lambda name, rank: float(rank)
    try:
        described = {key.removeprefix(PREFIX): value for key, value in json.loads(metadata[METADATA]).items()}
        alpha, pattern = float(described["lora_alpha"]), described.get("alpha_pattern") or {}
        unlike = [name for name in ("use_rslora", "use_dora") if described.get(name)]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(f"{path}: its metadata has no lora_alpha that can be read") from None
    if unlike:
        raise UsageError(f"{path}: made with {', '.join(unlike)}, which is not supported")
    return lambda name, rank: float(pattern.get(name, alpha))


def _slot_config(adapter: Adapter) -> TrialConfig:
    """A slot that holds the adapter: B is scaled already, so alpha equals the rank."""
    downs = {key: tensor for key, tensor in adapter.items() if key.endswith(".lora_A.weight")}
    rank = max(len(tensor) for tensor in downs.values())
    modules = tuple(key.removesuffix(".lora_A.weight") for key in downs)
    return TrialConfig(rank=rank, alpha=rank, learning_rate=1e-4, epochs=1, target_modules=modules)


def _check_modules(base: BaseModel, config: TrialConfig, path: Path) -> None:
    known = {name for name, _ in base.unet.named_modules()}
    unknown = [name for name in config.module_endings if name not in known]
    if unknown:
        raise UsageError(
            f"{path}: {len(unknown)} of its {len(config.module_endings)} modules are not in {base.name}, "
            f"such as {unknown[0]}"
        )


def _padded(adapter: Adapter, rank: int) -> Adapter:
    """Modules of a lower rank filled up with zeros, which change nothing."""
    padded = {}
    for key, tensor in adapter.items():
        axis = 0 if key.endswith(".lora_A.weight") else 1
        shape = list(tensor.shape)
        shape[axis] = rank - shape[axis]
        padded[key] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
    return padded
