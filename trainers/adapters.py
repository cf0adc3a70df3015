"""Adapter files: read what diffusers and PEFT write, and attach several side by side to draw with."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import nn

from bench.base import BaseModel
from bench.config import MAX_RANK, TrialConfig
from bench.errors import UsageError
from bench.yaml import Spec, validate
from trainers.lora import METADATA, PREFIX, Adapter, Attached, Slots

PEFT_PREFIX = "base_model.model."
"""What PEFT's own `save_pretrained` writes, with its configuration in a file beside."""
PEFT_CONFIG = "adapter_config.json"
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight")
ALPHA = (".alpha",)
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Values of init_lora_weights whose adapters belong to a base that PEFT changes when it loads them."""

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Description(Spec):
    """What a LoraConfig says of the scale of an adapter."""

    model_config = ConfigDict(extra="ignore")

    lora_alpha: Positive
    alpha_pattern: dict[str, Positive] | None = None
    """By the end of a module's name, or a regular expression for it."""
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init_lora_weights: object = None

    @property
    def unsupported(self) -> list[str]:
        initial = str(self.init_lora_weights).lower()
        changing = [f"init_lora_weights={initial}"] if initial.startswith(BASE_CHANGING) else []
        return [name for name in ("use_rslora", "use_dora") if getattr(self, name)] + changing

    def alpha(self, name: str) -> float:
        """Of a module, found as PEFT finds it; raises re.error."""
        from peft.utils.other import get_pattern_key

        pattern = self.alpha_pattern or {}
        return pattern.get(get_pattern_key(list(pattern), name), self.lora_alpha)


@contextmanager
def attach(base: BaseModel, paths: Sequence[Path]) -> Iterator[None]:
    """Attach the adapters of these files, in order, to the base's UNet, one a slot.

    Raises UsageError naming the file that cannot be read or does not fit the base.
    """
    adapters = [read_adapter(path) for path in paths]
    configs = [_slot_config(adapter) for adapter in adapters]
    for path, adapter in zip(paths, adapters, strict=True):
        _check_fit(base, adapter, path)
    with Slots(base.unet, configs) as slots:
        for slot, (adapter, path) in enumerate(zip(adapters, paths, strict=True)):
            try:
                slots.load(slot, _padded(adapter, configs[slot].rank))
            except (UsageError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UsageError(f"{path}: does not fit {base.name}: {reason}") from None
        base.attached = Attached(slots, list(range(len(slots))))
        try:
            yield
        finally:
            base.attached = None


def read_adapter(path: Path) -> Adapter:
    """A, and B times alpha / rank, of every module of a UNet adapter in diffusers' or PEFT's layout.

    Raises UsageError for a file that is damaged, not finite, or holds anything else: weights that are
    left out without a word would be scored as an adapter that does less.
    """
    tensors, metadata = _read(path)
    prefix = PEFT_PREFIX if all(key.startswith(PEFT_PREFIX) for key in tensors) else PREFIX
    _check_tensors(tensors, prefix, path)
    downs, ups, alphas = (_ending(tensors, prefix, endings) for endings in (DOWN, UP, ALPHA))
    if not downs or set(downs) != set(ups):
        raise UsageError(f"{path}: {len(downs)} modules have a lora_A and {len(ups)} a lora_B")
    ranks = {name: _rank(f"{path}: {name}", down, ups[name]) for name, down in downs.items()}
    described = _described_alphas(metadata, prefix, path, ranks)
    adapter = {}
    for name, down in downs.items():
        alpha = alphas[name].item() if name in alphas else described[name]
        up = ups[name] * (alpha / ranks[name])
        if not torch.isfinite(up).all():
            raise UsageError(f"{path}: {name}: lora_B times alpha / rank is not finite: alpha is {alpha:g}")
        adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"] = down, up
    return adapter


def _read(path: Path) -> tuple[Adapter, dict[str, str]]:
    """All tensors in float32, and the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a readable adapter: {error}") from None


def _check_tensors(tensors: Mapping[str, torch.Tensor], prefix: str, path: Path) -> None:
    known = {key for key in tensors if key.startswith(prefix) and key.endswith(DOWN + UP + ALPHA)}
    strange = [key for key in tensors if key not in known or not key.isprintable()]
    if strange:
        raise UsageError(
            f"{path}: {len(strange)} of {len(tensors)} keys are not of a UNet adapter of diffusers or PEFT "
            f"({PREFIX}<module>{DOWN[0]}, or all {PEFT_PREFIX}<module>{DOWN[0]}), "
            f"such as {' '.join(strange[0].split())}"
        )
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{path}: {key} holds values that are not finite")
        if key.endswith(ALPHA):
            _check_alpha(f"{path}: {key}", tensor)
        elif tensor.ndim < 2:
            raise UsageError(
                f"{path}: {key} has shape {tuple(tensor.shape)}; two or more dimensions are allowed"
            )


def _check_alpha(source: str, tensor: torch.Tensor) -> None:
    if tensor.numel() != 1:
        raise UsageError(f"{source} has shape {tuple(tensor.shape)}; one number is allowed")
    if tensor.item() <= 0:
        raise UsageError(f"{source} is {tensor.item():g}; a number above 0 is allowed")


def _rank(source: str, down: torch.Tensor, up: torch.Tensor) -> int:
    rank = len(down)
    if rank != up.shape[1]:
        raise UsageError(
            f"{source}: lora_A has rank {rank} and lora_B {up.shape[1]}; only one rank is allowed"
        )
    if not 1 <= rank <= MAX_RANK:
        raise UsageError(f"{source}: rank {rank}; 1 to {MAX_RANK} are allowed")
    return rank


def _ending(tensors: Mapping[str, torch.Tensor], prefix: str, endings: tuple[str, ...]) -> Adapter:
    """Tensors by module."""
    return {
        key.removeprefix(prefix).removesuffix(ending): tensor
        for key, tensor in tensors.items()
        for ending in endings
        if key.endswith(ending)
    }


def _described_alphas(
    metadata: Mapping[str, str], prefix: str, path: Path, ranks: Mapping[str, int]
) -> dict[str, float]:
    """Alpha of each module: from PEFT's file, or the metadata that diffusers and `save_adapter` write.

    Without metadata, alpha is the rank, as diffusers takes it; without PEFT's file, it is not known.
    """
    if prefix == PEFT_PREFIX:
        source, text = str(path.parent / PEFT_CONFIG), _peft_config(path)
    elif METADATA in metadata:
        source, text = f"{path}: its metadata", metadata[METADATA]
    else:
        return {name: float(rank) for name, rank in ranks.items()}
    described = _description(text, source)
    try:
        return {name: described.alpha(name) for name in ranks}
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{source}: alpha_pattern: names of modules and regular expressions are allowed: {error}"
        ) from None


def _peft_config(path: Path) -> str:
    file = path.parent / PEFT_CONFIG
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: its alpha is not known: it needs {file}, which PEFT writes with it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None


def _description(text: str, source: str) -> Description:
    try:
        data = {key.removeprefix(PREFIX): value for key, value in json.loads(text).items()}
    except (AttributeError, ValueError, RecursionError):
        raise UsageError(f"{source} has no lora_alpha that can be read; a JSON object is allowed") from None
    described = validate(data, Description, source)
    if described.unsupported:
        raise UsageError(
            f"{source}: made with {', '.join(described.unsupported)}, which is not supported; "
            "plain LoRA is allowed"
        )
    return described


def _slot_config(adapter: Adapter) -> TrialConfig:
    """A slot that holds the adapter: B is scaled already, so alpha equals the rank."""
    downs = {key: tensor for key, tensor in adapter.items() if key.endswith(".lora_A.weight")}
    rank = max(len(tensor) for tensor in downs.values())
    modules = tuple(key.removesuffix(".lora_A.weight") for key in downs)
    return TrialConfig(rank=rank, alpha=rank, learning_rate=1e-4, epochs=1, target_modules=modules)


def _check_fit(base: BaseModel, adapter: Adapter, path: Path) -> None:
    """Sizes too: a side of 1 would be spread over the whole module when it is copied into a slot."""
    modules = dict(base.unet.named_modules())
    downs = [key for key in adapter if key.endswith(".lora_A.weight")]
    names = [key.removesuffix(".lora_A.weight") for key in downs]
    unknown = [name for name in names if not isinstance(modules.get(name), nn.Linear | nn.Conv2d)]
    if unknown:
        raise UsageError(
            f"{path}: {len(unknown)} of its {len(names)} linear or convolutional modules are not in "
            f"{base.name}, such as {unknown[0]}"
        )
    for name in names:
        weight, rank = modules[name].weight, len(adapter[f"{name}.lora_A.weight"])
        assert isinstance(weight, torch.Tensor)
        for side, size in (("lora_A", weight[0].numel()), ("lora_B", len(weight))):
            tensor = adapter[f"{name}.{side}.weight"]
            if tensor.numel() != rank * size:
                raise UsageError(
                    f"{path}: does not fit {base.name}: {name}.{side}.weight has shape "
                    f"{tuple(tensor.shape)}; {rank} × {size} numbers are allowed"
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
