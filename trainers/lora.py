"""Stacked adapters: K LoRAs side by side on one frozen UNet, and on its text encoders if they are trained.

Every target module keeps its frozen base and gains, for each of K slots, A and B of shape (rank, in)
and (out, rank). A batch is ordered by slot: its first 1/K goes through slot 0, the next through slot 1,
and so on, so that one forward of the base serves K trainings. Ranks differ between slots: A and B are
padded with zeros, and stay zero there because each one's gradient is a product with the other; so do both
in a module that a slot does not target.
"""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bench.base import Reader, adaptable_names, target_names
from bench.blocks import linear, text_readers
from bench.config import TEXT_ATTENTION, TrialConfig
from bench.errors import UsageError
from bench.graphs import aside
from bench.naming import clip_name
from trainers.dora import Gain, frozen_norms, norms
from trainers.dropout import Mask, Masked, Masks

PREFIX, METADATA = "unet.", "lora_adapter_metadata"
"""Of the keys, and of the description, in a file that diffusers writes and reads."""
Adapter = dict[str, torch.Tensor]
"""`<module>.lora_A.weight` and `<module>.lora_B.weight` in PEFT's layout, unpadded, float32; of DoRA
`<module>.lora_magnitude_vector` too. A text encoder's modules are named as in files,
`text_encoder.text_model.…`."""


class SlotModule(nn.Module):
    """A frozen linear or convolution, with its place in the group of modules that read the same input."""

    def __init__(self, frozen: nn.Module, group: "Group", place: int) -> None:
        super().__init__()
        self.frozen = frozen
        # Not a submodule of each of its modules: it would be found many times.
        self.__dict__["group"], self.place = group, place

    group: "Group"

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        if not self.group.enabled:
            output: torch.Tensor = self.frozen(x, *args)
            return output
        return self.group.output(x, self.place)

    def together(self, modules: Sequence[nn.Module], x: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """What `modules` give for x in one product; None if they are not this group."""
        if not self.group.enabled or list(modules) != self.group.modules:
            return None
        return self.group.outputs(x)


class Group:
    """Modules with one input and equal shapes, such as q, k and v; most modules are alone in theirs.

    With G modules, rank R and K slots: A is (K, G · R, in), B is (K, G, out, R).
    """

    def __init__(self, number: int, names: Sequence[str], frozen: Sequence[nn.Module]) -> None:
        self.number = number
        self.order, self.names = tuple(names), frozenset(names)
        self.modules = [SlotModule(module, self, place) for place, module in enumerate(frozen)]
        weight, bias = frozen[0].weight, frozen[0].bias
        assert isinstance(weight, torch.Tensor)
        self.in_features, self.out_features = weight[0].numel(), len(weight)
        self.weight = weight
        self.bias = bias if isinstance(bias, torch.Tensor) else None
        if len(frozen) > 1:
            self._lay_together(frozen)
        self.A: torch.Tensor
        self.B: torch.Tensor
        self.gradient: tuple[torch.Tensor, torch.Tensor] | None = None
        """Where a backward pass puts those of A and B, while there is training."""
        self.ranks: tuple[int, ...] = ()
        """Rank of each slot here; 0 for a slot that does not target these modules."""
        self.mask: Mask | None = None
        self.gain: torch.Tensor | None = None
        """DoRA's, (K, 1, G · out), float32; 1 for slots without. None where no slot has it."""
        self.enlarge: torch.Tensor | None = None
        """What dropout keeps is multiplied by it (K), where there is a gain; else B carries it."""
        self.merged: torch.Tensor | None = None
        """Weights with each slot's update added, (K, G · out, in, …), while images are drawn on a CPU."""

    def release(self) -> None:
        """Hold no memory of adapters."""
        self.A = self.B = torch.empty(0)
        self.gradient = self.mask = self.gain = self.merged = None

    def _lay_together(self, frozen: Sequence[nn.Module]) -> None:
        """One weight, of which the modules' own are views, or become them: no memory is taken twice."""
        weights = [module.weight for module in frozen if isinstance(module.weight, torch.Tensor)]
        whole = _side_by_side(weights)
        self.weight = (torch.cat(weights) if whole is None else whole).detach()
        for module, part in zip(frozen, self.weight.chunk(len(frozen)), strict=True):
            assert isinstance(module.weight, torch.Tensor)
            module.weight.data = part

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def enabled(self) -> bool:
        return any(self.ranks)

    @property
    def num_slots(self) -> int:
        return len(self.ranks)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to copies of the frozen weights: one product a slot instead of three."""
        slots, rank = self.num_slots, self.B.shape[-1]
        update = self.B.flatten(0, 1) @ self.A.reshape(slots * len(self), rank, self.in_features)
        self.merged = self.weight + update.view(slots, *self.weight.shape)
        if self.gain is not None:
            self.merged *= self.gain.view(slots, -1, *(1,) * (self.weight.ndim - 1))

    def output(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """Of one module alone."""
        if isinstance(self.modules[0].frozen, nn.Conv2d):
            return self._convolution(x)
        return self._product(x, slice(place, place + 1))

    def outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of all modules, which are linear, each (samples, …, out)."""
        y = self._product(x, slice(None))
        return torch.unflatten(y, -1, (len(self), -1)).unbind(-2) if len(self) > 1 else (y,)

    def _product(self, x: torch.Tensor, modules: slice) -> torch.Tensor:
        """Of some modules, side by side in the last dimension."""

        def rows(tensor: torch.Tensor, axis: int) -> torch.Tensor:
            return torch.unflatten(tensor, axis, (len(self), -1))[(slice(None),) * axis + (modules,)]

        if self.merged is not None:
            weights = rows(self.merged, 1).flatten(1, 2)
            parts = zip(x.chunk(len(weights)), weights, strict=True)
            return _joined([linear(part, weight, self.bias) for part, weight in parts])
        weight, A, B = rows(self.weight, 0).flatten(0, 1), rows(self.A, 1).flatten(1, 2), self.B[:, modules]
        gradient = self.gradient
        if gradient:
            gradient = rows(gradient[0], 1).flatten(1, 2), gradient[1][:, modules]
        slotted = x.reshape(self.num_slots, -1, x.shape[-1])
        if self.gain is not None:
            kept = self._kept(slotted)
            rest = self.bias if kept is slotted else F.linear(slotted - kept, weight, self.bias)
            y: torch.Tensor = SlotProduct.apply(kept, weight, None, A, B, None, gradient)
            y = Gain.apply(y, rows(self.gain, 2).flatten(2))
            y = y if rest is None else y + rest
        else:
            y = SlotProduct.apply(slotted, weight, self.bias, A, B, self.mask, gradient)
        return y.view(*x.shape[:-1], -1)

    def _kept(self, x: torch.Tensor) -> torch.Tensor:
        """What dropout leaves of x, whose first axis is of slots or samples, enlarged."""
        if not self.mask or self.enlarge is None:
            return x
        enlarge = self.enlarge.repeat_interleave(len(x) // self.num_slots)
        kept: torch.Tensor = Masked.apply(x, self.mask) * enlarge.view(-1, *(1,) * (x.ndim - 1))
        return kept.to(x.dtype)

    def _convolution(self, x: torch.Tensor) -> torch.Tensor:
        frozen = self.modules[0].frozen
        assert isinstance(frozen, nn.Conv2d)
        if self.merged is not None:
            parts = zip(x.chunk(len(self.merged)), self.merged, strict=True)
            return _joined([_convolve(frozen, part, weight, frozen.bias) for part, weight in parts])
        if self.gain is not None:
            kept = self._kept(x)
            y = self._updated(frozen, _convolve(frozen, kept, frozen.weight, None), kept)
            slotted = torch.unflatten(y, 0, (self.num_slots, -1))
            scaled: torch.Tensor = Gain.apply(slotted, self.gain[..., None, None])
            y = scaled.flatten(0, 1)
            if kept is not x:
                y = y + frozen(x - kept)
            elif self.bias is not None:
                y = y + self.bias[:, None, None]
            return y
        return self._updated(frozen, frozen(x), Masked.apply(x, self.mask) if self.mask else x)

    def _updated(self, frozen: nn.Conv2d, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y, a convolution of samples, plus the updates of x."""
        outputs = list(y.chunk(self.num_slots))
        # Slot by slot: a convolution that few slots adapt costs only those.
        inputs = zip(x.chunk(self.num_slots), self.A.unbind(), self.B.unbind(), self.ranks, strict=True)
        for slot, (part, A, B, rank) in enumerate(inputs):
            if rank:
                hidden = _convolve(frozen, part, A[:rank].view(rank, *frozen.weight.shape[1:]), None)
                outputs[slot] = outputs[slot] + F.conv2d(hidden, B[0, :, :rank, None, None])
        return torch.cat(outputs)


class SlotProduct(torch.autograd.Function):
    """x W + x A B of every slot, with as few passes over memory as there can be.

    Shapes: x (K, n, in), weight (G · out, in), A (K, G · R, in), B (K, G, out, R) -> (K, n, G · out). The
    weight and the bias are frozen. Gradients of A and B are written into `gradient`, whose tensors have
    their shapes, and not given to autograd: nothing but `Slots.gradient` waits for them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        mask: Mask | None,
        gradient: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        hidden = x.new_empty(*x.shape[:2], A.shape[1])
        kept = mask(x) if mask else x
        y: torch.Tensor = aside.together(
            lambda: torch.bmm(kept, A.transpose(1, 2), out=hidden), lambda: F.linear(x, weight, bias), kept
        )
        parts = zip(*(_by_module(t, B.shape[1]) for t in (y, hidden, B)), strict=True)
        for part, of_part, B_part in parts:
            part.baddbmm_(of_part, B_part.transpose(1, 2))
        ctx.save_for_backward(x, weight, A, B, hidden)
        ctx.mask, ctx.gradient = mask, gradient
        return y

    @staticmethod
    def backward(ctx: Any, of_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, A, B, hidden = ctx.saved_tensors
        (of_A, of_B), mask = ctx.gradient, ctx.mask
        of_y, of_hidden = of_y.contiguous(), torch.empty_like(hidden)
        by_module = [_by_module(t, B.shape[1]) for t in (of_y, hidden, of_hidden, B, of_B)]
        for part, _, into_hidden, B_part, _ in zip(*by_module, strict=True):
            torch.bmm(part, B_part, out=into_hidden)
        kept = mask(x) if mask else x

        def of_weights() -> None:
            for part, of_part, _, _, into_B in zip(*by_module, strict=True):
                torch.bmm(part.transpose(1, 2), of_part, out=into_B)
            torch.bmm(of_hidden.transpose(1, 2), kept, out=of_A)

        aside.run(of_weights, of_y, of_hidden, hidden, kept)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_y @ weight
            if mask:
                of_x += mask(torch.bmm(of_hidden, A))
            else:
                of_x.baddbmm_(of_hidden, A)
        return of_x, None, None, None, None, None, None


def _by_module(tensor: torch.Tensor, modules: int) -> Sequence[torch.Tensor]:
    """Parts for batched products: of each module all slots, or of one slot alone all modules at once.

    Of a tensor (K, n, G · width), or of B's shape (K, G, out, R).
    """
    if tensor.ndim == 4:
        return [tensor[0]] if len(tensor) == 1 else tensor.unbind(1)
    if len(tensor) == 1:
        return [torch.unflatten(tensor[0], -1, (modules, -1)).transpose(0, 1)]
    return tensor.chunk(modules, dim=-1)


def _side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """What the parts are consecutive rows of; None if they lie apart."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.data_ptr() == end):
            return None
        end += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other; of one part no copy is made."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _convolve(
    frozen: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return F.conv2d(x, weight, bias, frozen.stride, frozen.padding, frozen.dilation)


class Place(NamedTuple):
    """Where a module lies."""

    network: nn.Module
    name: str
    """In the network."""

    @property
    def module(self) -> nn.Module:
        return self.network.get_submodule(self.name)

    def put(self, module: nn.Module) -> None:
        parent, _, child = self.name.rpartition(".")
        setattr(self.network.get_submodule(parent), child, module)


Places = Mapping[str, Place]
"""By the names that adapters give to modules."""


def _places(unet: nn.Module, encoders: Mapping[str, nn.Module]) -> Places:
    """Of all modules that may get an adapter: the UNet's, in its order, then of each text encoder."""
    places = {name: Place(unet, name) for name in adaptable_names(unet)}
    for part, encoder in encoders.items():
        attention = [n for n in adaptable_names(encoder) if n.rpartition(".")[2] in TEXT_ATTENTION]
        places |= {f"{part}.{clip_name(name)}": Place(encoder, name) for name in attention}
    return places


def is_text(name: str) -> bool:
    """Whether a module, or a key, of an adapter is of a text encoder."""
    return name.startswith("text_encoder")


def of_unet(adapter: Adapter) -> Adapter:
    """The part that is not of a text encoder."""
    return {key: tensor for key, tensor in adapter.items() if not is_text(key)}


class Slots:
    """K adapters of a UNet, one for each config; attached to it within the context that they manage.

    `weights` is (K, P), float32: row k holds DoRA's magnitudes, then all A, then all B, of slot k, so that
    clipping, a learning rate per slot and AdamW are a few operations on rows. The modules see copies in the
    UNet's dtype, in which B carries alpha / rank: one copy to train with, others to draw a few slots' images.
    Magnitudes are 0 where a slot has none. Of all three the UNet's come first, then those of the text
    encoders that are given: slots whose config does not train them have zeros there.
    """

    def __init__(
        self,
        unet: nn.Module,
        configs: Sequence[TrialConfig],
        num_samples: int = 1,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """`encoders`, by part, to train them; without them an adapter is of the UNet alone."""
        self.configs = list(configs)
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._places = _places(unet, encoders or {})
        self._names = [name for name in self._places if not is_text(name)]
        self._text_names = [name for name in self._places if is_text(name)]
        self._targets = [self._targeted(config) for config in configs]
        wanted = frozenset().union(*self._targets)
        names = [name for name in self._places if name in wanted]
        wide = not any(config.dropout for config in configs)
        self.groups, self.modules = _grouped(self._places, names, _text_families(unet) if wide else [])
        self.rank = _padded_rank(max(config.highest_rank for config in configs), self.device)
        self.num_A = self.rank * sum(len(group) * group.in_features for group in self.groups)
        num_outputs = sum(len(group) * group.out_features for group in self.groups)
        of_text = [group for group in self.groups if is_text(group.order[0])]
        self.num_text = (
            self.rank * sum(group.in_features for group in of_text),
            self.rank * sum(group.out_features for group in of_text),
        )
        """Of the weights in a row that are A's, and B's, of text encoders: the last of each."""
        self._decomposed = any(config.dora for config in configs)
        self.begin_A = num_outputs * self._decomposed
        self.begin_B = self.begin_A + self.num_A
        self._squares = [frozen_norms(g.weight).square() for g in self.groups if self._decomposed]
        self.weights = torch.zeros(len(configs), self.begin_B + self.rank * num_outputs, device=self.device)
        self._averages = torch.zeros_like(self.weights) if any(config.ema for config in configs) else None
        self.masks = Masks(len(self), num_samples, len(self._places), self.device)
        self.factor = torch.empty(len(self), 1, device=self.device)
        """Of B, in what the modules see while they train, (K, 1)."""
        self.trains_text = torch.zeros(len(self), 1, dtype=torch.bool, device=self.device)
        """(K, 1)."""
        self._enlarge = torch.empty(len(self), device=self.device)
        self._training, self._gradient = self._copy(len(self)), self._copy(len(self))
        for seen in (*self._training.A, *self._training.B, *self._training.gains):
            seen.requires_grad_()
        self._drawing: dict[int, Copy] = {}
        self.graphs: dict[Hashable, Any] = {}
        """What was captured over these modules by those who draw."""
        self.leave_pool()
        for slot, config in enumerate(configs):
            self.put(slot, config)

    def __enter__(self) -> "Slots":
        for name, module in self.modules.items():
            self._places[name].put(module)
        return self

    def __exit__(self, *_: object) -> None:
        for name, module in self.modules.items():
            self._places[name].put(module.frozen)
        self.graphs.clear()
        self._drawing.clear()
        for group in self.groups:  # modules and groups know each other: they would keep memory for long
            group.release()

    def __len__(self) -> int:
        return len(self.configs)

    def leave_pool(self) -> None:
        """Graphs that are captured from now on share other memory: of a pool that none uses none can be."""
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    # What the slots hold

    def fits(self, config: TrialConfig) -> bool:
        """Can a slot take this config without another graph?"""
        drops = any(each.dropout for each in self.configs)
        shaped = config.highest_rank <= self.rank and self.modules.keys() >= self._targeted(config)
        averaged = self._averages is not None or not config.ema
        read = bool(self._text_names) or not config.trains_text
        decomposed = self._decomposed or not config.dora
        return shaped and averaged and read and decomposed and (drops or not config.dropout)

    def _targeted(self, config: TrialConfig) -> frozenset[str]:
        text = self._text_names if config.trains_text else []
        return frozenset([*target_names(self._names, config), *text])

    def put(self, slot: int, config: TrialConfig) -> None:
        """A new adapter for a config that fits, as PEFT would begin it."""
        self.configs[slot] = config
        self._targets[slot] = self._targeted(config)
        self._settle()
        magnitudes = self._initial_magnitudes(slot) if config.dora else {}
        self.load(slot, initial_adapter(self._shapes(slot), config) | magnitudes)

    def load(self, slot: int, adapter: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into a slot; raises UsageError if its modules or shapes are not the slot's."""
        expected = {key for name in self._targets[slot] for key in self._keys(slot, name)}
        if set(adapter) != expected:
            wrong = sorted(set(adapter) ^ expected)
            raise UsageError(
                f"adapter does not fit the base: {len(wrong)} modules differ, such as {wrong[0]}"
            )
        for rows in self.rows.values():
            self.write(rows, slot, adapter)

    def adapter(self, slot: int) -> Adapter:
        """A copy of what a slot has trained on the CPU, without padding."""
        return self.read(self.trained, slot)

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """What is of the shape of `weights`, by name."""
        averages = {} if self._averages is None else {"average": self._averages}
        return {"weights": self.weights, **averages}

    @property
    def trained(self) -> torch.Tensor:
        """Rows that are drawn through and kept: the weights, or their averages."""
        return self.weights if self._averages is None else self._averages

    @torch.no_grad()
    def average(self, steps: Sequence[int]) -> None:
        """Take the weights into the averages after an update, the number `steps` of each slot from 0.

        An exponential moving average whose decay rises from 0 to `ema`, so that it forgets where it began:
        diffusers' EMAModel.
        """
        if self._averages is None:
            return
        pairs = zip(self.configs, steps, strict=True)
        taken = _column([1 - _decay(config, step) for config, step in pairs])
        if self.device.type == "cuda":
            taken = taken.pin_memory()
        self._averages.lerp_(self.weights, taken.to(self.device, non_blocking=True))

    def give_back(self) -> None:
        """The memory of all rows."""
        self.weights = torch.empty(0)
        self._averages = None

    @torch.no_grad()
    def write(self, rows: torch.Tensor, slot: int, adapter: Mapping[str, torch.Tensor]) -> None:
        """Lay an adapter, or anything of its shape, out in a row of `rows` (K, P)."""
        row = torch.zeros(rows.shape[1])
        for name, (A, magnitude, B) in self._views(row).items():
            if name in self._targets[slot]:
                rank, (key_a, key_b, *others) = self.configs[slot].rank_of(name), self._keys(slot, name)
                A[:rank] = adapter[key_a].reshape(rank, -1)
                B[:, :rank] = adapter[key_b].reshape(-1, rank)
                for key in others:
                    magnitude[:] = adapter[key].flatten()
        rows[slot] = row.to(rows.device)

    def tensors(self, row: torch.Tensor, slot: int) -> Adapter:
        """A slot's tensors in a row (P), by name, as views without padding: A (rank, in), B (out, rank)."""
        found: Adapter = {}
        for name, (A, magnitude, B) in self._views(row).items():
            if name in self._targets[slot]:
                rank, (key_a, key_b, *others) = self.configs[slot].rank_of(name), self._keys(slot, name)
                found |= {key_a: A[:rank], key_b: B[:, :rank]} | dict.fromkeys(others, magnitude)
        return found

    def read(self, rows: torch.Tensor, slot: int) -> Adapter:
        """Inverse of `write`, on the CPU."""
        shapes, result = self._shapes(slot), {}
        views = self._views(rows[slot].detach().cpu())
        for name, (shape_a, shape_b) in shapes.items():
            (A, magnitude, B), rank = views[name], self.configs[slot].rank_of(name)
            key_a, key_b, *others = self._keys(slot, name)
            result[key_a] = A[:rank].clone().reshape(shape_a)
            result[key_b] = B[:, :rank].clone().reshape(shape_b)
            for key in others:
                result[key] = magnitude.clone().view(_magnitude_shape(shape_b))
        return result

    def _keys(self, slot: int, name: str) -> list[str]:
        """Of a module's A and B, and magnitude if there is one: the text encoders have none."""
        decomposed = self.configs[slot].dora and not is_text(name)
        return [*_keys(name), *([_magnitude_key(name)] if decomposed else [])]

    def _initial_magnitudes(self, slot: int) -> Adapter:
        """The norms of the frozen weights: DoRA begins as the base."""
        magnitudes = {}
        for name, (_, shape_b) in self._shapes(slot).items():
            if is_text(name):
                continue
            weight = self.modules[name].frozen.weight
            assert isinstance(weight, torch.Tensor)
            magnitudes[_magnitude_key(name)] = frozen_norms(weight).cpu().view(_magnitude_shape(shape_b))
        return magnitudes

    # What the modules see

    def train(self, keys: torch.Tensor) -> None:
        """All slots, with dropout; `keys` (K, samples), int32: a number of each sample's trial and step."""
        self.masks.set_keys(keys)
        self._fill(self._training, self.weights, self.factor)
        self._show(self._training, range(len(self)), training=True)

    def focus(self, slots: Sequence[int]) -> None:
        """Draw through these slots, in this order, without dropout.

        On a CPU in float32 the adapters are merged, which is faster and as exact.
        """
        if len(slots) not in self._drawing:
            self._drawing[len(slots)] = self._copy(len(slots))
        copy = self._drawing[len(slots)]
        scales = _column([self.configs[slot].scale for slot in slots])
        if self.device.type == "cuda":  # so that the host does not wait for all that is queued
            scales = scales.pin_memory()
        weights = torch.stack([self.trained[slot] for slot in slots])
        self._fill(copy, weights, scales.to(self.device, non_blocking=True))
        self._show(copy, slots, training=False)
        if self.device.type == "cpu" and self.dtype == torch.float32:
            for group in self.groups:
                if group.enabled and not is_text(group.order[0]):  # which is not drawn through
                    group.merge()

    @property
    def shape(self) -> Hashable:
        """What a graph that was captured over the modules depends on."""
        return (*(group.ranks for group in self.groups), self.groups[0].A.data_ptr())

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """d loss / d what the modules see, (K, P) in the UNet's dtype: A, and B that carries `factor`.

        And d loss / d magnitudes. The next call overwrites it.
        """
        seen = [*self._training.A, *self._training.B, *self._training.gains]
        found = torch.autograd.grad(loss, seen, allow_unused=True)
        into = [*self._gradient.A, *self._gradient.B]
        # Of convolutions: products have written theirs.
        pairs = [(here, there) for here, there in zip(into, found, strict=False) if there is not None]
        if pairs:
            torch._foreach_copy_([here for here, _ in pairs], [there for _, there in pairs])
        aside.join()
        for group in self.groups:
            if not group.enabled:
                for of_idle in group.gradient or ():
                    of_idle.zero_()
        if gains := self._training.gains:
            given = zip(gains, found[len(into) :], strict=True)
            of_gains = [torch.zeros_like(gain) if there is None else there for gain, there in given]
            of_magnitudes = self._gradient.rows[:, : self.begin_A]
            torch.div(torch.cat(of_gains, dim=2).squeeze(1), self._training.norms, out=of_magnitudes)
        return self._gradient.rows

    def _settle(self) -> None:
        """What depends on the configs alone; in place, since graphs hold it."""
        self.masks.set_rates([config.dropout for config in self.configs])
        kept = [1 - config.dropout for config in self.configs]
        self._enlarge.copy_(1 / torch.tensor(kept))
        carried = [1.0] * len(kept) if self._decomposed else kept
        pairs = zip(self.configs, carried, strict=True)
        self.factor.copy_(_column([config.scale / share for config, share in pairs]))
        self.trains_text.copy_(_column([config.trains_text for config in self.configs]))

    def _copy(self, num_slots: int) -> "Copy":
        rows = torch.zeros(num_slots, self.weights.shape[1], dtype=self.dtype, device=self.device)
        A, B, begin_A, begin_B = [], [], self.begin_A, self.begin_B
        for group in self.groups:
            end_A = begin_A + self.rank * len(group) * group.in_features
            end_B = begin_B + self.rank * len(group) * group.out_features
            A.append(torch.unflatten(rows[:, begin_A:end_A], 1, (-1, group.in_features)))
            shape = (len(group), group.out_features, self.rank)
            B.append(torch.unflatten(rows[:, begin_B:end_B], 1, shape))
            begin_A, begin_B = end_A, end_B
        gain, of_weights = torch.ones(2, num_slots, self.begin_A, device=self.device)
        widths = [len(group) * group.out_features for group in self.groups if self._decomposed]
        gains = list(gain.unsqueeze(1).split(widths, dim=2)) if widths else []
        return Copy(rows, A, B, gains, of_weights)

    @torch.no_grad()
    def _fill(self, copy: "Copy", weights: torch.Tensor, factor: torch.Tensor) -> None:
        of_A = slice(self.begin_A, self.begin_B)
        copy.rows[:, of_A] = weights[:, of_A]
        torch.mul(weights[:, self.begin_B :], factor, out=copy.rows[:, self.begin_B :])
        if copy.gains:
            self._measure(copy, weights[:, : self.begin_A])

    def _measure(self, copy: "Copy", magnitudes: torch.Tensor) -> None:
        """Gains of magnitudes (K, outputs): 1 where there is none, and none is trained there."""
        given = zip(self.groups, self._squares, copy.A, copy.B, strict=True)
        found = [norms(group.weight, squares, A, B) for group, squares, A, B in given]
        torch.cat(found, dim=1, out=copy.norms).masked_fill_(magnitudes == 0, torch.inf)
        gains = (magnitudes / copy.norms).masked_fill_(magnitudes == 0, 1)
        begin = 0
        for gain in copy.gains:
            gain[:, 0] = gains[:, begin : begin + gain.shape[2]]
            begin += gain.shape[2]

    def _show(self, copy: "Copy", slots: Sequence[int], *, training: bool) -> None:
        # A graph is captured for all ranks and targets: those that a slot lacks are zeros in it.
        fixed = self.device.type == "cuda"
        gradients = zip(self._gradient.A, self._gradient.B, strict=True)
        gains: Sequence[torch.Tensor | None] = copy.gains or [None] * len(self.groups)
        seen = zip(self.groups, copy.A, copy.B, gains, gradients, strict=True)
        for group, A, B, gain, gradient in seen:
            name = group.order[0]  # of a larger group it only counts whether there is a rank
            targeted = [bool(group.names & self._targets[slot]) for slot in slots]
            ranks = [self.configs[slot].rank_of(name) * t for slot, t in zip(slots, targeted, strict=True)]
            if fixed and (training or any(ranks)):
                ranks = [self.rank] * len(slots)
            group.A, group.B, group.ranks, group.merged = A, B, tuple(ranks), None
            group.mask = self.masks.mask(group.number) if training else None
            group.gain, group.enlarge = gain, self._enlarge
            group.gradient = gradient if training else None

    # Layout

    def _views(self, row: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """A (R, in), magnitude (out), empty where no slot has any, and B (out, R) of each module in a row."""
        views, begin, begin_A, begin_B = {}, 0, self.begin_A, self.begin_B
        for name, module in self.modules.items():
            group = module.group
            end_A = begin_A + self.rank * group.in_features
            end_B = begin_B + self.rank * group.out_features
            end = begin + group.out_features * self._decomposed
            A, B = row[begin_A:end_A].view(self.rank, -1), row[begin_B:end_B].view(-1, self.rank)
            views[name] = A, row[begin:end], B
            begin, begin_A, begin_B = end, end_A, end_B
        return views

    def _shapes(self, slot: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Module name -> shapes of A and B in PEFT's layout."""
        shapes = {}
        for name in self._places:  # in whose order initial weights are drawn, whatever lies together
            if name in self._targets[slot]:
                weight = self.modules[name].frozen.weight
                assert isinstance(weight, torch.Tensor)
                rank, ones = self.configs[slot].rank_of(name), (1,) * (weight.ndim - 2)
                shapes[name] = ((rank, *weight.shape[1:]), (len(weight), rank, *ones))
        return shapes


@dataclass(frozen=True, eq=False, slots=True)
class Attached:
    """Some of the slots, in an order, as those who draw through them see them; see `BaseModel.attached`."""

    slots: Slots
    places: list[int]
    spare: Callable[[], None] = lambda: None
    readers: Mapping[int, Reader] = field(default_factory=dict)

    def focus(self, numbers: Sequence[int]) -> None:
        self.slots.focus([self.places[number] for number in numbers])

    @contextmanager
    def lend(self, unet: nn.Module) -> Iterator["Attached"]:
        with Slots(unet, [self.slots.configs[place] for place in self.places]) as slots:
            for slot, place in enumerate(self.places):
                slots.load(slot, of_unet(self.slots.adapter(place)))
            yield Attached(slots, list(range(len(slots))))

    @property
    def shape(self) -> Hashable:
        return self.slots.shape

    @property
    def graphs(self) -> dict[Hashable, Any]:
        return self.slots.graphs

    @property
    def pool(self) -> object:
        return self.slots.pool


@dataclass(frozen=True, eq=False, slots=True)
class Copy:
    """Rows in the UNet's dtype, and the views of them, by group, that its modules use."""

    rows: torch.Tensor
    A: list[torch.Tensor]
    B: list[torch.Tensor]
    gains: list[torch.Tensor]
    """DoRA's, (K, 1, G · out), float32; none if no slot has it."""
    norms: torch.Tensor
    """Of weights with updates, (K, outputs) of all groups; without end where a slot has no DoRA."""


def _grouped(
    places: Places, names: Sequence[str], families: Sequence[Sequence[str]]
) -> tuple[list[Group], dict[str, SlotModule]]:
    """Modules that read the same input lie together, if all of them are among `names`: those of `families`,
    and neighbours.

    A group's number is its place among all modules: so a trial's masks do not depend on its neighbours.
    """
    numbers = {name: number for number, name in enumerate(places)}
    groups: list[Group] = []
    modules: dict[str, SlotModule] = {}
    large = {name: family for family in families if set(family) <= set(names) for name in family}
    for name in names:
        if name not in modules:
            family = large.get(name) or _family(places, name)
            members = family if set(family) <= set(names) else [name]
            frozen = [places[member].module for member in members]
            groups.append(Group(numbers[family[0]], members, frozen))
            modules |= dict(zip(members, groups[-1].modules, strict=True))
    return groups, modules


def _text_families(unet: nn.Module) -> list[list[str]]:
    """What reads the text, by shape; not for dropout, by which each attention has a mask of its own."""
    readers = {module for pair in text_readers(unet).values() for module in pair}
    families: dict[torch.Size, list[str]] = {}
    for name, module in unet.named_modules():
        if module in readers and isinstance(module, nn.Linear):
            families.setdefault(module.weight.shape, []).append(name)
    return list(families.values())


def _family(places: Places, name: str) -> list[str]:
    """q, k and v of an attention of the image to itself; k and v of one to the text."""
    if is_text(name):
        return [name]
    parent, _, last = name.rpartition(".")
    across = getattr(places[name].network.get_submodule(parent), "is_cross_attention", None)
    family = {None: (last,), False: ("to_q", "to_k", "to_v"), True: ("to_k", "to_v")}[across]
    return [f"{parent}.{member}" for member in family] if len(family) > 1 and last in family else [name]


def _padded_rank(rank: int, device: torch.device) -> int:
    """On a GPU a power of two from 8: products of such shapes are fast, and few shapes need few graphs."""
    return rank if device.type == "cpu" else max(8, 1 << (rank - 1).bit_length())


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(1)


def _decay(config: TrialConfig, step: int) -> float:
    return min(config.ema, (1 + step) / (10 + step)) if step else 0.0


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

    targets = sorted({key.rsplit(".lora_", 1)[0] for key in of_unet(adapter)})
    # The one way to say a scale that all who read such files know: alpha / rank.
    ranks = {name: rank for name in targets if (rank := config.rank_of(name)) != config.rank}
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.scale * config.rank,
        target_modules=targets,
        rank_pattern=ranks,
        alpha_pattern={name: config.scale * rank for name, rank in ranks.items()},
        use_dora=config.dora,
    ).to_dict()
    described = {f"{PREFIX}{key}": _plain(value) for key, value in peft_config.items()}
    for part in sorted({key.partition(".")[0] for key in adapter if is_text(key)}):
        of_text = LoraConfig(
            r=config.rank, lora_alpha=config.scale * config.rank, target_modules=list(TEXT_ATTENTION)
        )
        described |= {f"{part}.{key}": _plain(value) for key, value in of_text.to_dict().items()}
    metadata = {"format": "pt", METADATA: json.dumps(described, sort_keys=True)}
    tensors = {key if is_text(key) else f"{PREFIX}{key}": adapter[key].contiguous() for key in adapter}
    save_file(tensors, path, metadata)


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


def _magnitude_key(name: str) -> str:
    return f"{name}.lora_magnitude_vector"


def _magnitude_shape(shape_b: tuple[int, ...]) -> tuple[int, ...]:
    """In PEFT's layout, from that of B: of a linear one axis, of a convolution the second of four."""
    return (shape_b[0],) if len(shape_b) == 2 else (1, shape_b[0], *shape_b[2:])
