"""Adapter files: read what trainers write, and attach several side by side to draw with."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import nn

from bench.base import BaseModel, TextEmbedding, adaptable_names
from bench.config import MAX_RANK, TrialConfig
from bench.errors import UsageError
from bench.naming import PEFT_PREFIX, Key, Part, Tensor, clip_spellings, other_kind, parse_key, unet_spellings
from bench.yaml import Spec, validate
from trainers.dora import frozen_norms
from trainers.lora import METADATA, PREFIX, Adapter, Attached, Slots

PEFT_CONFIG = "adapter_config.json"
"""What PEFT's own `save_pretrained` writes beside an adapter."""
TEXT_PARTS: tuple[Part, ...] = ("text_encoder", "text_encoder_2")
Parts = dict[Part, Adapter]
"""An adapter's modules, by the network that they belong to."""
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Values of init_lora_weights whose adapters belong to a base that PEFT changes when it loads them."""

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
"""Endings of keys as they are read here, which are PEFT's."""

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
        return ["use_rslora"] * bool(self.use_rslora) + changing

    def alpha(self, name: str) -> float:
        """Of a module, found as PEFT finds it; raises re.error."""
        from peft.utils.other import get_pattern_key

        pattern = self.alpha_pattern or {}
        return pattern.get(get_pattern_key(list(pattern), name), self.lora_alpha)


@contextmanager
def attach(base: BaseModel, paths: Sequence[Path], weight: float = 1.0) -> Iterator[None]:
    """Attach the adapters of these files, in order, to the base, one a slot, each times `weight`.

    Raises UsageError naming the file that cannot be read or does not fit the base.
    """
    adapters = [_fitted(base, read_adapter(path), path, weight) for path in paths]
    readers = {slot: Reader(base, adapter) for slot, adapter in enumerate(adapters) if len(adapter) > 1}
    configs = [_slot_config(adapter["unet"]) for adapter in adapters]
    with Slots(base.unet, configs) as slots:
        for slot, (adapter, path) in enumerate(zip(adapters, paths, strict=True)):
            try:
                slots.load(slot, _padded(adapter["unet"], configs[slot].rank))
            except (UsageError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UsageError(f"{path}: does not fit {base.name}: {reason}") from None
        base.attached = Attached(slots, list(range(len(slots))), readers=readers)
        try:
            yield
        finally:
            base.attached = None


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """Reads prompts as the text encoders do with an adapter in them."""

    base: BaseModel
    parts: Parts

    def __call__(self, prompts: Sequence[str]) -> tuple[TextEmbedding, TextEmbedding]:
        """Conditioning of each prompt, and of the empty prompt."""
        with ExitStack() as worn:
            for part, adapter in self.parts.items():
                if part != "unet":
                    worn.enter_context(_worn(self.base.encoder(part), adapter))
            read = self.base.encode_prompts(prompts), self.base.encode_empty()
        self.base.release_encoders()
        return read


def reader_of(base: BaseModel, adapter: Adapter, config: TrialConfig) -> Reader:
    """How prompts are read with an adapter that has trained the text encoders."""
    parts: Parts = {}
    for part in (part for part in TEXT_PARTS if part in base.family.text_encoders):
        prefix, spellings = f"{part}.", clip_spellings(adaptable_names(base.encoder(part)))
        mine = {key.removeprefix(prefix): tensor for key, tensor in adapter.items() if key.startswith(prefix)}
        parts[part] = _renamed(mine, spellings, "an adapter", base.name)
        for name in _modules(parts[part]):
            parts[part][f"{name}.lora_B.weight"] = parts[part][f"{name}.lora_B.weight"] * config.scale
    return Reader(base, parts)


@contextmanager
def _worn(encoder: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Every adapted linear x ↦ W x gives W x + B A x, with DoRA times its gain."""
    handles = []
    for name in _modules(adapter):
        linear, (down, up) = encoder.get_submodule(name), _sides(adapter, name)
        assert isinstance(linear, nn.Linear)
        down, up = (each.to(linear.weight) for each in (down.flatten(1), up.reshape(-1, len(down))))
        magnitude = adapter.get(f"{name}{MAGNITUDE}")
        hook = _plus(down, up) if magnitude is None else _instead(linear, down, up, magnitude)
        handles.append(linear.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _plus(down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + F.linear(F.linear(inputs[0], down), up)

    return hook


@torch.no_grad()
def _instead(
    linear: nn.Linear, down: torch.Tensor, up: torch.Tensor, magnitude: torch.Tensor
) -> Callable[..., torch.Tensor]:
    whole = linear.weight + up @ down
    weight = (whole * (magnitude.to(whole.device) / frozen_norms(whole))[:, None]).to(whole.dtype)

    def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs[0], weight, linear.bias)

    return hook


# Reading


def read_adapter(path: Path) -> Parts:
    """A, B times alpha / rank, and DoRA's magnitude (out) if there is one, of every module in a file of one
    of the layouts of `bench.naming`.

    Names of modules are as the file spells them. Raises UsageError for a file that is damaged, not finite,
    or holds anything else: weights that are left out without a word would be scored as an adapter that
    does less.
    """
    tensors, metadata = _read(path)
    keys = {key: parse_key(key) for key in tensors}
    _check_keys(keys, path)
    _check_tensors(keys, tensors, path)
    parts: dict[Part, dict[str, dict[Tensor, torch.Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, parsed in keys.items():
        assert parsed is not None
        of_module = parts[parsed.part][parsed.module]
        if parsed.tensor in of_module:
            raise UsageError(f"{path}: {parsed.module} has two tensors of one kind, one of them {key}")
        of_module[parsed.tensor] = tensors[key]
    by_peft = any(key.startswith(PEFT_PREFIX) for key in keys)
    described = {part: _described(metadata, part, path, by_peft) for part in parts}
    return {part: _scaled(modules, described[part], path) for part, modules in parts.items()}


def _scaled(
    modules: Mapping[str, Mapping[Tensor, torch.Tensor]], described: "Described | None", path: Path
) -> Adapter:
    whole = [name for name, tensors in modules.items() if {"down", "up"} <= tensors.keys()]
    if len(whole) < len(modules):
        lame = next(name for name in modules if name not in whole)
        raise UsageError(f"{path}: {lame} lacks lora_A (lora_down) or lora_B (lora_up)")
    _check_magnitudes(modules, described, path)
    adapter = {}
    for name, tensors in modules.items():
        down, up = tensors["down"], tensors["up"]
        rank = _rank(f"{path}: {name}", down, up)
        alpha = tensors["alpha"].item() if "alpha" in tensors else _alpha(described, name, rank)
        up = up * (alpha / rank)
        if not torch.isfinite(up).all():
            raise UsageError(f"{path}: {name}: lora_B times alpha / rank is not finite: alpha is {alpha:g}")
        adapter[f"{name}{DOWN}"], adapter[f"{name}{UP}"] = down, up
        if "magnitude" in tensors:
            adapter[f"{name}{MAGNITUDE}"] = tensors["magnitude"].flatten()
    return adapter


def _check_magnitudes(
    modules: Mapping[str, Mapping[Tensor, torch.Tensor]], described: "Described | None", path: Path
) -> None:
    plain = [name for name, tensors in modules.items() if "magnitude" not in tensors]
    if plain and len(plain) < len(modules):
        raise UsageError(
            f"{path}: {plain[0]} lacks a magnitude of DoRA, which other modules have; all of them or none "
            "are allowed"
        )
    if plain and described and described.by.use_dora:
        raise UsageError(f"{described.source}: made with use_dora, but {path} holds no magnitudes")


def _read(path: Path) -> tuple[Adapter, dict[str, str]]:
    """All tensors in float32, and the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a readable adapter: {error}") from None


def _check_keys(keys: Mapping[str, Key | None], path: Path) -> None:
    if not keys:
        raise UsageError(f"{path}: holds no tensors")
    by_peft = any(key.startswith(PEFT_PREFIX) for key in keys)
    strange = [key for key, parsed in keys.items() if parsed is None]
    strange += [key for key in keys if by_peft and not key.startswith(PEFT_PREFIX)]
    if known := other_kind(strange):
        kind, key = known
        raise UsageError(f"{path}: holds {kind}, which is not supported; plain LoRA is: {_shown(key)}")
    if strange:
        raise UsageError(
            f"{path}: {len(strange)} of {len(keys)} keys are not of a LoRA of an SDXL in the layout of "
            f"diffusers ({PREFIX}<module>.lora_A.weight), PEFT (all {PEFT_PREFIX}<module>.lora_A.weight), "
            f"kohya or OneTrainer (lora_unet_<module>.lora_down.weight), such as {_shown(strange[0])}"
        )
    if not any(parsed and parsed.part == "unet" for parsed in keys.values()):
        raise UsageError(f"{path}: adapts the text encoders alone; supported are adapters of the UNet too")


def _shown(key: str) -> str:
    return " ".join(key.split())


def _check_tensors(keys: Mapping[str, Key | None], tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        parsed = keys[key]
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{path}: {key} holds values that are not finite")
        if parsed and parsed.tensor == "alpha":
            _check_alpha(f"{path}: {key}", tensor)
        elif parsed and parsed.tensor == "magnitude":
            _check_magnitude(f"{path}: {key}", tensor)
        elif tensor.ndim < 2:
            raise UsageError(
                f"{path}: {key} has shape {tuple(tensor.shape)}; two or more dimensions are allowed"
            )


def _check_alpha(source: str, tensor: torch.Tensor) -> None:
    if tensor.numel() != 1:
        raise UsageError(f"{source} has shape {tuple(tensor.shape)}; one number is allowed")
    if tensor.item() <= 0:
        raise UsageError(f"{source} is {tensor.item():g}; a number above 0 is allowed")


def _check_magnitude(source: str, tensor: torch.Tensor) -> None:
    """LyCORIS and OneTrainer may decompose by inputs, (1, in, …); PEFT has (1, out, 1, 1) of convolutions."""
    shape, by_output = tuple(tensor.shape), not source.endswith(".dora_scale")
    outputs = shape[1] if by_output and len(shape) > 1 and shape[0] == 1 else (*shape, 1)[0]
    if outputs != tensor.numel():
        raise UsageError(
            f"{source} has shape {shape}: one number of each output is allowed, (out, 1, …); a DoRA that "
            "decomposes by inputs is not supported"
        )


def _rank(source: str, down: torch.Tensor, up: torch.Tensor) -> int:
    rank = len(down)
    if rank != up.shape[1]:
        raise UsageError(
            f"{source}: lora_A has rank {rank} and lora_B {up.shape[1]}; only one rank is allowed"
        )
    if not 1 <= rank <= MAX_RANK:
        raise UsageError(f"{source}: rank {rank}; 1 to {MAX_RANK} are allowed")
    return rank


# Alpha


class Described(NamedTuple):
    """A description, and what holds it."""

    by: Description
    source: str


def _described(metadata: Mapping[str, str], part: Part, path: Path, by_peft: bool) -> Described | None:
    """What PEFT's file, or the metadata that diffusers and `save_adapter` write, says of a part."""
    if by_peft:
        source, text, prefix = str(path.parent / PEFT_CONFIG), _peft_config(path), ""
    elif METADATA in metadata:
        source, text, prefix = f"{path}: its metadata", metadata[METADATA], f"{part}."
    else:
        return None
    return Described(_description(text, source, prefix), source)


def _alpha(described: Described | None, name: str, rank: int) -> float:
    """Of a module that has no tensor for it: its rank where nothing is said, as all trainers take it."""
    if described is None:
        return rank
    try:
        return described.by.alpha(name)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{described.source}: alpha_pattern: names of modules and regular expressions are allowed: "
            f"{error}"
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


def _description(text: str, source: str, prefix: str) -> Description:
    try:
        described = json.loads(text).items()
        data = {key.removeprefix(prefix): value for key, value in described if key.startswith(prefix)}
    except (AttributeError, ValueError, RecursionError):
        raise UsageError(f"{source} has no lora_alpha that can be read; a JSON object is allowed") from None
    described = validate(data, Description, source)
    if described.unsupported:
        raise UsageError(
            f"{source}: made with {', '.join(described.unsupported)}, which is not supported; "
            "plain LoRA is allowed"
        )
    return described


# Fitting a base


def _fitted(base: BaseModel, parts: Parts, path: Path, weight: float) -> Parts:
    """With the base's own names of modules, and B times `weight`."""
    fitted: Parts = {}
    for part, adapter in parts.items():
        if part != "unet" and part not in base.family.text_encoders:
            raise UsageError(f"{path}: adapts a {part}, which {base.name} has not")
        network = base.unet if part == "unet" else base.encoder(part)
        fitted[part] = _renamed(adapter, _spellings(base, part, network), str(path), base.name)
        _check_fit(network, fitted[part], f"{path}: does not fit {base.name}")
        for name in _modules(fitted[part]):
            fitted[part][f"{name}{UP}"] *= weight
    if len(parts) > 1:
        base.release_encoders()
    return fitted


def _spellings(base: BaseModel, part: Part, network: nn.Module) -> dict[str, str]:
    if part == "unet":
        config: Any = base.unet.config
        return unet_spellings(adaptable_names(network), config.layers_per_block)
    return clip_spellings(adaptable_names(network))


def _renamed(adapter: Adapter, spellings: Mapping[str, str], file: str, base: str) -> Adapter:
    names = _modules(adapter)
    unknown = [name for name in names if name not in spellings]
    if unknown:
        raise UsageError(
            f"{file}: {len(unknown)} of its {len(names)} linear or convolutional modules are not in "
            f"{base}, such as {unknown[0]}"
        )
    renamed: Adapter = {}
    for name in names:
        module = spellings[name]
        if f"{module}{DOWN}" in renamed:
            raise UsageError(f"{file}: adapts {module} twice, under two names; one of them is {name}")
        for ending in (DOWN, UP, MAGNITUDE):
            if f"{name}{ending}" in adapter:
                renamed[f"{module}{ending}"] = adapter[f"{name}{ending}"]
    return renamed


def _check_fit(network: nn.Module, adapter: Adapter, misfit: str) -> None:
    """Sizes: a side of 1 would be spread over the whole module when it is copied into a slot."""
    for name in _modules(adapter):
        weight, rank = network.get_submodule(name).weight, len(adapter[f"{name}{DOWN}"])
        assert isinstance(weight, torch.Tensor)
        for ending, size in ((DOWN, weight[0].numel()), (UP, len(weight))):
            tensor = adapter[f"{name}{ending}"]
            if tensor.numel() != rank * size:
                raise UsageError(
                    f"{misfit}: {name}{ending} has shape {tuple(tensor.shape)}; "
                    f"{rank} × {size} numbers are allowed"
                )
        magnitude = adapter.get(f"{name}{MAGNITUDE}")
        if magnitude is not None and len(magnitude) != len(weight):
            raise UsageError(
                f"{misfit}: the magnitude of {name} has {len(magnitude)} numbers; {len(weight)} are allowed"
            )


def _slot_config(adapter: Adapter) -> TrialConfig:
    """A slot that holds the adapter: B is scaled already, so alpha equals the rank."""
    modules = _modules(adapter)
    rank = max(len(adapter[f"{name}{DOWN}"]) for name in modules)
    dora = any(key.endswith(MAGNITUDE) for key in adapter)
    return TrialConfig(
        rank=rank, alpha=rank, learning_rate=1e-4, epochs=1, target_modules=tuple(modules), dora=dora
    )


def _modules(adapter: Adapter) -> list[str]:
    return [key.removesuffix(DOWN) for key in adapter if key.endswith(DOWN)]


def _sides(adapter: Adapter, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B."""
    return adapter[f"{name}{DOWN}"], adapter[f"{name}{UP}"]


def _padded(adapter: Adapter, rank: int) -> Adapter:
    """Modules of a lower rank filled up with zeros, which change nothing."""
    padded = {}
    for key, tensor in adapter.items():
        if key.endswith(MAGNITUDE):
            padded[key] = tensor
            continue
        axis = 0 if key.endswith(DOWN) else 1
        shape = list(tensor.shape)
        shape[axis] = rank - shape[axis]
        padded[key] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
    return padded
