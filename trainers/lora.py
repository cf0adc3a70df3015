"""Stacked adapters: K LoRAs side by side on one frozen UNet.

Every target module keeps its frozen base and gains, for each of K slots, A and B of shape (rank, in)
and (out, rank). A batch is ordered by slot: its first 1/K goes through slot 0, the next through slot 1,
and so on, so that one forward of the base serves K trainings. Ranks differ between slots: A and B are
padded with zeros, and stay zero there because each one's gradient is a product with the other. A slot
that does not target a module has scale 0 in it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.base import target_names
from bench.config import TrialConfig
from bench.errors import UsageError

PREFIX, METADATA = "unet.", "lora_adapter_metadata"
"""Of the keys, and of the description, in a file that diffusers writes and reads."""
Adapter = dict[str, torch.Tensor]
"""`<module>.lora_A.weight` and `<module>.lora_B.weight` in PEFT's layout, unpadded, float32."""


class SlotModule(nn.Module):
    """A frozen linear or convolution with K adapters; A (K, R, in), B (K, out, R), scale (K, 1, 1)."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.A: torch.Tensor
        self.B: torch.Tensor
        self.scale: torch.Tensor
        self.ranks: tuple[int, ...] = ()
        """Rank of each slot here; 0 for a slot that does not target this module."""
        self.dropout: tuple[float, ...] = ()
        self.kept: torch.Tensor
        """1 − dropout, shape (K, 1, 1)."""
        self.generators: Sequence[torch.Generator] = ()
        self.enabled = False
        self.merged: torch.Tensor | None = None
        """Weights with each slot's update added, (K, out, in, …), while images are drawn on a CPU."""

    @property
    def in_features(self) -> int:
        weight = self.frozen.weight
        assert isinstance(weight, torch.Tensor)
        return weight[0].numel()

    @property
    def out_features(self) -> int:
        weight = self.frozen.weight
        assert isinstance(weight, torch.Tensor)
        return len(weight)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to copies of the frozen weights: one product a slot instead of three."""
        weight = self.frozen.weight
        assert isinstance(weight, torch.Tensor)
        update = torch.bmm(self.B * self.scale, self.A)
        self.merged = weight + update.view(len(update), *weight.shape)

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        if self.merged is not None:
            return self._merged_output(x, self.merged)
        output: torch.Tensor = self.frozen(x, *args)
        if not self.enabled:
            return output
        x = self._drop(x) if self.training else x
        if isinstance(self.frozen, nn.Conv2d):
            return self._convolution(x, output)
        return output + self._linear(x).view(output.shape)

    def _merged_output(self, x: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        frozen, parts = self.frozen, x.chunk(len(merged))
        if isinstance(frozen, nn.Conv2d):
            outputs = [
                F.conv2d(part, weight, frozen.bias, frozen.stride, frozen.padding, frozen.dilation)
                for part, weight in zip(parts, merged, strict=True)
            ]
        else:
            assert isinstance(frozen, nn.Linear)
            outputs = [F.linear(p, weight, frozen.bias) for p, weight in zip(parts, merged, strict=True)]
        return torch.cat(outputs)

    def _linear(self, x: torch.Tensor) -> torch.Tensor:
        slots = len(self.A)
        A, B = self.A.to(x.dtype), self._B().to(x.dtype)
        hidden = torch.bmm(x.reshape(slots, -1, x.shape[-1]), A.transpose(1, 2))
        return torch.bmm(hidden, B.transpose(1, 2))

    def _convolution(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Slot by slot at its own rank: a convolution that few slots adapt costs only those."""
        frozen = self.frozen
        assert isinstance(frozen, nn.Conv2d)
        slots = len(self.A)
        A, B = self.A.to(x.dtype), self._B().to(x.dtype)
        outputs = list(output.chunk(slots))
        for slot, part in enumerate(x.chunk(slots)):
            if rank := self.ranks[slot]:
                kernel = A[slot, :rank].view(rank, *frozen.weight.shape[1:])
                hidden = F.conv2d(part, kernel, None, frozen.stride, frozen.padding, frozen.dilation)
                outputs[slot] = outputs[slot] + F.conv2d(hidden, B[slot, :, :rank, None, None])
        return torch.cat(outputs)

    def _B(self) -> torch.Tensor:
        """B with each slot's alpha / rank, and in training with what its dropout leaves out."""
        return self.B * (self.scale / self.kept if self.training else self.scale)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout with each slot's own rate and random stream: neighbours never change a slot's masks."""
        if not any(self.dropout):
            return x
        mask = torch.ones_like(x)
        parts = mask.chunk(len(self.dropout))
        for part, rate, generator in zip(parts, self.dropout, self.generators, strict=True):
            if rate:
                part.bernoulli_(1 - rate, generator=generator)
        return x * mask


class Slots:
    """K adapters attached to a UNet, one for each config; use as a context manager, which detaches them.

    `weights` is (K, P): row k holds all A and B of slot k, so that clipping, a learning rate per slot
    and AdamW are a few operations on rows. `parameters` are the views of it that autograd sees.
    """

    def __init__(self, unet: nn.Module, configs: Sequence[TrialConfig]) -> None:
        self.configs = list(configs)
        self.unet = unet
        self._targets = [frozenset(target_names(unet, config)) for config in configs]
        wanted = frozenset().union(*self._targets)
        names = [name for name, _ in unet.named_modules() if name in wanted]
        device = next(unet.parameters()).device
        self.modules = {name: SlotModule(unet.get_submodule(name)) for name in names}
        for name, module in self.modules.items():
            _replace(unet, name, module)
        self._bind(self._empty(len(configs), device))
        for slot, config in enumerate(configs):
            self.load(slot, initial_adapter(self._shapes(slot), config))

    def __enter__(self) -> "Slots":
        return self

    def __exit__(self, *_: object) -> None:
        for name, module in self.modules.items():
            _replace(self.unet, name, module.frozen)

    def __len__(self) -> int:
        return len(self.configs)

    @property
    def rank(self) -> int:
        return max(config.rank for config in self.configs)

    def load(self, slot: int, adapter: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into a slot; raises UsageError if its modules or shapes are not the slot's."""
        rank = self.configs[slot].rank
        expected = {key for name in self._targets[slot] for key in _keys(name)}
        if set(adapter) != expected:
            wrong = sorted(set(adapter) ^ expected)
            raise UsageError(
                f"adapter does not fit the base: {len(wrong)} modules differ, such as {wrong[0]}"
            )
        with torch.no_grad():
            self.weights[slot].zero_()
            for name in self._targets[slot]:
                module, (key_a, key_b) = self.modules[name], _keys(name)
                module.A[slot, :rank] = adapter[key_a].reshape(rank, -1)
                module.B[slot, :, :rank] = adapter[key_b].reshape(-1, rank)

    def adapter(self, slot: int) -> Adapter:
        """A copy of a slot's weights on the CPU, without padding."""
        shapes, rank = self._shapes(slot), self.configs[slot].rank
        result = {}
        for name in shapes:
            module, (key_a, key_b) = self.modules[name], _keys(name)
            shape_a, shape_b = shapes[name]
            result[key_a] = module.A[slot, :rank].detach().cpu().clone().reshape(shape_a)
            result[key_b] = module.B[slot, :, :rank].detach().cpu().clone().reshape(shape_b)
        return result

    def keep(self, slots: Sequence[int]) -> None:
        """Only these slots go on; the others' places are given up."""
        self.configs = [self.configs[slot] for slot in slots]
        self._targets = [self._targets[slot] for slot in slots]
        self._bind(self.weights[list(slots)].clone())

    def train(self, generators: Sequence[torch.Generator]) -> None:
        """Dropout on, drawn from one generator a slot."""
        for module in self.modules.values():
            module.train()
            module.generators = generators
            module.merged = None

    def eval(self) -> None:
        """Dropout off; on a CPU in float32 the adapters are merged, which is faster and as exact."""
        parameter = next(self.unet.parameters())
        exact = parameter.device.type == "cpu" and parameter.dtype == torch.float32
        for module in self.modules.values():
            module.eval()
            if exact and module.enabled:
                module.merge()

    def _empty(self, num_slots: int, device: torch.device) -> torch.Tensor:
        sizes = (self.rank * (module.in_features + module.out_features) for module in self.modules.values())
        return torch.zeros(num_slots, sum(sizes), device=device)

    def _bind(self, weights: torch.Tensor) -> None:
        """Make every module's A and B views of `weights`."""
        self.weights = weights
        self.parameters: list[torch.Tensor] = []
        # Fixed by the first configs: a pack that shrinks keeps its padding.
        rank = len(weights[0]) // sum(m.in_features + m.out_features for m in self.modules.values())
        start = 0
        for name, module in self.modules.items():
            middle = start + rank * module.in_features
            end = middle + rank * module.out_features
            module.A = self._view(start, middle, (rank, module.in_features))
            module.B = self._view(middle, end, (module.out_features, rank))
            # A slot draws from its stream in its own modules only: alone, it would meet no others.
            here = [(c, name in targets) for c, targets in zip(self.configs, self._targets, strict=True)]
            module.ranks = tuple(c.rank * targeted for c, targeted in here)
            module.dropout = tuple(c.dropout * targeted for c, targeted in here)
            module.scale = self._column([c.scale * targeted for c, targeted in here])
            module.kept = self._column([1 - rate for rate in module.dropout])
            module.enabled = any(module.ranks)
            module.merged = None
            self.parameters += [module.A, module.B]
            start = end

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """d loss / d weights, (K, P)."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=self.weights.device).view(-1, 1, 1)

    def _view(self, start: int, end: int, shape: tuple[int, int]) -> torch.Tensor:
        return self.weights[:, start:end].view(len(self.weights), *shape).requires_grad_()

    def _shapes(self, slot: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Module name -> shapes of A and B in PEFT's layout."""
        rank, shapes = self.configs[slot].rank, {}
        for name, module in self.modules.items():
            if name in self._targets[slot]:
                weight = module.frozen.weight
                assert isinstance(weight, torch.Tensor)
                ones = (1,) * (weight.ndim - 2)
                shapes[name] = ((rank, *weight.shape[1:]), (len(weight), rank, *ones))
        return shapes


def initial_adapter(
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], config: TrialConfig
) -> Adapter:
    """PEFT's initialisation: A Kaiming-uniform with a = √5, B zero; drawn from the config's seed."""
    generator = torch.Generator().manual_seed(config.seed)
    adapter = {}
    for name, (shape_a, shape_b) in shapes.items():
        key_a, key_b = _keys(name)
        bound = 1 / math.sqrt(math.prod(shape_a[1:]))
        adapter[key_a] = torch.empty(shape_a).uniform_(-bound, bound, generator=generator)
        adapter[key_b] = torch.zeros(shape_b)
    return adapter


def save_adapter(path: Path, adapter: Adapter, config: TrialConfig) -> None:
    """Write an adapter so that diffusers' `load_lora_weights` gives it the right alpha."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    targets = sorted({key.rsplit(".lora_", 1)[0] for key in adapter})
    peft_config = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets).to_dict()
    described = {f"{PREFIX}{key}": _plain(value) for key, value in peft_config.items()}
    metadata = {"format": "pt", METADATA: json.dumps(described, sort_keys=True)}
    save_file({f"{PREFIX}{key}": tensor.contiguous() for key, tensor in adapter.items()}, path, metadata)


def load_adapter(path: Path) -> Adapter:
    """What `save_adapter` wrote; raises UsageError for a file that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {key.removeprefix(PREFIX): tensor for key, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a readable adapter: {error}") from None


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else value


def _keys(name: str) -> tuple[str, str]:
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
