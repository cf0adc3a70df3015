"""One optimisation loop that trains trials side by side; a slot that is free takes the next trial.

Each trial draws its data order, noise, timesteps and dropout masks from (its seed, the step): it gives
what it would have given alone, whatever its neighbours.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from bench.base import BaseModel, TrainingData
from bench.begun import Begun, State
from bench.blocks import keep_text, project_text
from bench.config import TrialConfig
from bench.denoising import DenoisingLoss
from bench.graphs import Compute, captured
from bench.lanes import threads_of
from trainers.adapters import Reader, reader_of
from trainers.lora import Adapter, Attached, Slots, of_unet, save_adapter
from trainers.optimizer import RowOptimizer, rate_at
from trainers.processes import Processes
from trainers.samples import Draw, batch, draw, draw_prior, together
from trainers.text import CaptionReader

AHEAD = 2
"""Steps that may wait on a GPU: enough to keep it busy, few enough that progress is true."""
PRIOR = -1
"""The bucket of images of the class."""
MIN_SHRINK = 100
"""Steps left, of a pack on a GPU that is half empty, for which a smaller graph pays."""


@dataclass(eq=False, slots=True)
class Trial:
    """A config in a slot."""

    index: int
    config: TrialConfig
    ends: list[tuple[int, int]]
    """(epoch, step at which it ends) of the rungs still to come."""
    step: int = 0
    """Updates so far."""
    losses: list[float] = field(default_factory=list)
    state: State | None = None
    """From which it goes on, until it has."""

    @property
    def num_steps(self) -> int:
        return self.ends[-1][1]

    @property
    def broken(self) -> bool:
        return bool(self.losses) and not math.isfinite(self.losses[-1])


class Rung:
    """Trials standing still at an epoch of theirs, to be scored: attached to the base in this order."""

    def __init__(self, pack: "Pack | Spread", standing: Sequence[Trial], diverged: Sequence[Trial]) -> None:
        self._pack = pack
        self._trials = {trial.index: trial for trial in standing}
        self.alive = list(self._trials)
        """Index of each trial that stands here: its place in the order of all configs."""
        self.diverged = [trial.index for trial in diverged]
        """Trials whose loss is no longer finite; they have left."""
        self.losses = pack.losses
        """Training loss of every step so far, by index."""
        self.stopped: set[int] = set()

    def epoch(self, index: int) -> int:
        """At which a trial stands."""
        return self._trials[index].ends[0][0]

    def stop(self, index: int) -> None:
        """The trial does not go on."""
        self.stopped.add(index)

    def adapter(self, index: int) -> Adapter:
        """A copy of a trial's adapter."""
        return self._pack.adapter(self._trials[index])

    def save_adapter(self, index: int, path: Path) -> None:
        """Write a trial's adapter so that diffusers loads it."""
        save_adapter(path, self.adapter(index), self._trials[index].config)

    def begun(self, index: int) -> Begun:
        """From which a trial can go on another time."""
        trial = self._trials[index]
        state = self._pack.state(trial)
        return Begun(config=trial.config, epoch=self.epoch(index), losses=list(trial.losses), state=state)


def train(
    base: BaseModel,
    data: TrainingData,
    configs: Iterator[TrialConfig | Begun],
    rungs: Sequence[int],
    num_slots: int,
    on_step: Callable[[int], None] = lambda number: None,
) -> Generator[Rung, None, None]:
    """Train configs, `num_slots` side by side; yields whenever some stand at an epoch of `rungs`.

    One that has begun goes on from there, to what it would have come to. The next is taken when a slot is
    free. Every config's `epochs` must be one of `rungs`, where one that is not nested stands only then; all
    must share `batch_size`. A trial leaves after the rung at its `epochs`, when it is stopped, or when its
    loss is no longer finite. `on_step` gets the number of trials that made a step. Raises
    torch.OutOfMemoryError.
    """
    numbered = enumerate(configs)
    first = [_trial(index, config, rungs, data) for index, config in islice(numbered, num_slots)]
    if not first:
        return
    with (Spread if base.twins else Pack)(base, data, first) as pack:
        while pack.trials:
            pack.advance(on_step)
            standing, diverged = pack.standing()
            rung = Rung(pack, standing, diverged)
            pack.focus(standing)
            yield rung
            pack.leave({*rung.stopped, *rung.diverged}, standing)
            free = num_slots - len(pack.trials)
            pack.take([_trial(index, config, rungs, data) for index, config in islice(numbered, free)])


def _trial(index: int, given: TrialConfig | Begun, rungs: Sequence[int], data: TrainingData) -> Trial:
    begun = given if isinstance(given, Begun) else None
    config = given.config if isinstance(given, Begun) else given
    schedule = data.schedule(config.batch_size)
    passed = [epoch for epoch in rungs if epoch <= config.epochs] if config.nested else [config.epochs]
    ends = [(epoch, schedule.end(epoch)) for epoch in passed if not begun or epoch > begun.epoch]
    if begun is None:
        return Trial(index, config, ends)
    losses = list(begun.losses)
    return Trial(index, config, ends, step=len(losses), losses=losses, state=begun.state)


class Pack:
    """The trials that train now, one a slot; use as a context manager."""

    def __init__(
        self,
        base: BaseModel,
        data: TrainingData,
        trials: Sequence[Trial],
        num_parts: int = 1,
        processes: Processes | None = None,
    ) -> None:
        """Trials that have begun go on where they were.

        Each batch, or this process's share of it, is trained in `num_parts`, or more.
        """
        self.base, self._data = base, data
        self._unet: Any = base.unet
        self._drawn: dict[tuple[int, int], Draw] = {}
        self._graphs: dict[tuple[int, int], Compute] = {}
        """By bucket and number of samples, as `_drawn`."""
        self._num_parts, self._checkpoints = num_parts, False
        self._processes = processes or Processes()
        self._places: list[Trial | None] = []
        """By slot."""
        self._objective = DenoisingLoss(base)
        self.losses: dict[int, list[float]] = {trial.index: trial.losses for trial in trials}
        self._attach(trials)

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, *details: object) -> None:
        self.base.attached = None
        self.slots.__exit__(*details)
        if self._checkpoints:
            self._unet.disable_gradient_checkpointing()

    @property
    def trials(self) -> list[Trial]:
        return [trial for trial in self._places if trial]

    def slot(self, trial: Trial) -> int:
        return self._places.index(trial)

    def adapter(self, trial: Trial) -> Adapter:
        return self.slots.adapter(self.slot(trial))

    @property
    def num_left(self) -> int:
        """Steps to the next at which some trial stands at a rung."""
        return min(trial.ends[0][1] - trial.step for trial in self.trials)

    def advance(self, on_step: Callable[[int], None], number: int | None = None) -> None:
        """So many steps, or to the next rung; raises torch.OutOfMemoryError."""
        history, running = [], deque[Any]()
        for _ in range(number or self.num_left):
            history.append(self._step_in_memory())
            if self.base.device.type == "cuda":
                running.append(torch.cuda.current_stream().record_event())
                if len(running) > AHEAD:
                    running.popleft().synchronize()
            on_step(len(self.trials))
        if history:
            for trial, values in zip(self._places, torch.stack(history).T.tolist(), strict=True):
                if trial:
                    trial.losses.extend(values)

    def _step_in_memory(self) -> torch.Tensor:
        """A step; one trial alone that does not fit takes less memory and more time, to the same end."""
        while True:
            try:
                return self._step()
            except torch.OutOfMemoryError:
                if len(self.slots) > 1 or not self._thriftier():
                    raise
            self._attach_again(self.trials)  # out of the handler, whose traceback holds tensors

    def _thriftier(self) -> bool:
        """Fewer samples at once, in the end with activations computed again; False if nothing is left."""
        size = self.slots.configs[0].batch_size // self._processes.number
        if self._num_parts < size:
            self._num_parts = next(n for n in range(self._num_parts + 1, size + 1) if size % n == 0)
        elif not self._checkpoints:
            self._checkpoints = True
            recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            self._unet.enable_gradient_checkpointing(recompute)
        else:
            return False
        return True

    def _step(self) -> torch.Tensor:
        """One update of all slots; returns their losses (K,), not yet synchronised with the host."""
        configs = self.slots.configs
        now = self.trials[0].step  # all trials began at the end of an epoch: they meet in one bucket
        steps = [trial.step if trial else now for trial in self._places]
        rates = [rate_at(t.config, t.step, t.num_steps) if t else 0.0 for t in self._places]
        bucket = self._data.schedule(configs[0].batch_size).place(now).bucket
        found = self._gradients(bucket, draw, steps)
        losses = torch.stack([losses for losses, _ in found]).mean(dim=0)
        gradients = [gradient for _, gradient in found]
        alone = len(found) * self._processes.number == 1
        gradient = gradients[0] if alone else _mean(gradients)
        self._processes.average(gradient, losses)
        if self._has_prior:
            prior = _mean([gradient for _, gradient in self._gradients(PRIOR, draw_prior, steps)])
            self._processes.average(prior)  # by itself: the same bits whoever has which part
            gradient = gradient + prior
        self._optimizer.update(self.slots.weights, gradient, configs, rates, steps)
        self.slots.average(steps)
        for trial in self.trials:
            trial.step += 1
        return losses

    @property
    def _has_prior(self) -> bool:
        """Then all slots train on images of the class: where they weigh nothing, to no effect."""
        return any(config.prior_weight for config in self.slots.configs)

    def _gradients(
        self, bucket: int, drawing: Callable[[TrainingData, TrialConfig, int], Draw], steps: Sequence[int]
    ) -> list[tuple[torch.Tensor, ...]]:
        """Losses (K,) and gradient (K, P) of each part of a batch."""
        pairs = zip(self.slots.configs, steps, strict=True)
        shares = [self._processes.share(drawing(self._data, config, step)) for config, step in pairs]
        draws = [share.split(self._num_parts) for share in shares]
        return [self._gradient(bucket, together(parts)) for parts in zip(*draws, strict=True)]

    def _gradient(self, bucket: int, drawn: Draw) -> tuple[torch.Tensor, ...]:
        """Losses (K,) and gradient (K, P) of a part of the batch; the next part overwrites nothing."""
        key = bucket, len(drawn.index)
        if key not in self._drawn:
            self._drawn[key] = drawn.to(self.base.device)
        for here, there in zip(self._drawn[key].tensors, drawn.tensors, strict=True):
            here.copy_(there.pin_memory() if here.is_cuda else there, non_blocking=True)
        self.slots.train(self._drawn[key].keys.view(len(self.slots), -1))
        if key not in self._graphs:
            self._graphs[key] = captured(partial(self._compute, *key), self.base.device, self.slots.pool)
        losses, gradient = self._graphs[key]()
        alone = self._num_parts == 1 and not self._has_prior
        return (losses, gradient) if alone else (losses.clone(), gradient.clone())

    def _compute(self, bucket: int, size: int) -> tuple[torch.Tensor, ...]:
        """Losses (K,) and gradient (K, P) of the drawn samples."""
        drawn, images = self._drawn[bucket, size], [*self._data.buckets, self._data.prior][bucket]
        assert images
        samples = batch(images, self._data.empty, drawn)
        if self._captions:
            text = self._captions.read(bucket, drawn, samples.text, self.slots.trains_text)
            samples = replace(samples, text=text)
        with keep_text(project_text(self._unet, samples.text.hidden)):
            losses = (self._objective(samples) * drawn.weight).view(len(self.slots), -1).mean(dim=1)
            return losses.detach(), self.slots.gradient(losses.sum())

    # Rungs

    def standing(self) -> tuple[list[Trial], list[Trial]]:
        """Trials at a rung, and those that have diverged."""
        diverged = [trial for trial in self.trials if trial.broken]
        at_rung = [trial for trial in self.trials if trial.step == trial.ends[0][1]]
        standing = [trial for trial in at_rung if trial not in diverged]
        return sorted(standing, key=_index), sorted(diverged, key=_index)

    def focus(self, trials: Sequence[Trial]) -> None:
        """Attach these alone, to be drawn."""
        places = [self.slot(trial) for trial in trials]
        readers = _readers(self.base, trials, self.adapter)
        self.base.attached = Attached(self.slots, places, self._spare, readers)

    def _spare(self) -> None:
        """Give back the memory of the training's graphs, which are captured again when it goes on."""
        self._graphs.clear()
        self.slots.leave_pool()

    def leave(self, indices: set[int], standing: Sequence[Trial]) -> None:
        """Trials that end here give up their slots; the others go on to their next rung."""
        self.base.attached = None
        for trial in standing:
            trial.ends.pop(0)
        ended = [trial for trial in self.trials if trial.index in indices or not trial.ends]
        self._places = [None if trial in ended else trial for trial in self._places]

    def take(self, trials: Sequence[Trial]) -> None:
        """New trials go where there is room; slots that stay empty are given up where that pays.

        On a processor all get new slots, which no graph asks to keep: products of other shapes round
        otherwise, and a trial must not show who had its slot before, with a higher rank.
        """
        self.losses |= {trial.index: trial.losses for trial in trials}
        free = [slot for slot, trial in enumerate(self._places) if not trial]
        staying = [*self.trials, *trials]
        if trials and not (self._has_graphs and self._fit(trials, len(free))):
            self._attach_again(staying)
            return
        for trial, slot in zip(trials, free, strict=False):
            self._places[slot] = trial
            self.slots.put(slot, trial.config)
            self._optimizer.forget(slot, self.slots.weights[slot])
            self._go_on(slot, trial)
        if staying and self._shrinks(len(free) - len(trials)):
            self._attach_again(staying)

    @property
    def _has_graphs(self) -> bool:
        return self.base.device.type == "cuda"

    def _fit(self, trials: Sequence[Trial], num_free: int) -> bool:
        configs = [trial.config for trial in trials]
        return len(configs) <= num_free and all(
            self.slots.fits(c) and self._optimizer.fits(c) for c in configs
        )

    def _shrinks(self, num_empty: int) -> bool:
        if not self._has_graphs:
            return num_empty > 0
        left = max(trial.ends[-1][1] - trial.step for trial in self.trials)
        return 2 * num_empty >= len(self._places) and left >= MIN_SHRINK

    def _attach(self, trials: Sequence[Trial]) -> None:
        self._places = list(trials)
        configs = [trial.config for trial in trials]
        share = configs[0].batch_size // self._processes.number
        train_text = any(config.trains_text for config in configs)
        self._captions = CaptionReader(self.base, self._data) if train_text else None
        encoders = self._captions.encoders if self._captions else None
        self.slots = Slots(self.base.unet, configs, math.ceil(share / self._num_parts), encoders)
        given = self.slots.weights, self.slots.begin_B, self.slots.factor
        self._optimizer = RowOptimizer(*given, configs, self.slots.num_text, self.slots.tensors)
        self.slots.__enter__()  # once nothing can run out of memory any more
        for slot, trial in enumerate(trials):
            self._go_on(slot, trial)

    def _go_on(self, slot: int, trial: Trial) -> None:
        """Where it was, if it has begun."""
        state, trial.state = trial.state, None
        if state is None:
            return
        self.slots.load(slot, state["weights"])
        for name, rows in self._rows().items():
            if name in state:
                self.slots.write(rows, slot, state[name])
        for name, numbers in self._optimizer.numbers.items():
            if name in state:
                numbers[slot] = state[name]["numbers"]
        self._optimizer.go_on(slot, self.slots.weights[slot], state)

    def _attach_again(self, trials: Sequence[Trial]) -> None:
        """In slots of other shapes, where those that have begun go on."""
        self.halt()
        self._graphs.clear()
        self._drawn.clear()
        self.slots.__exit__()
        self.slots.give_back()
        self._optimizer.give_back()
        self._captions = None
        self._attach(trials)

    def halt(self) -> None:
        """Every trial holds what it goes on from elsewhere."""
        for trial in self.trials:
            trial.state = trial.state or self.state(trial)

    def state(self, trial: Trial) -> State:
        """From which a trial can go on."""
        slot = self.slot(trial)
        rows = {name: self.slots.read(rows, slot) for name, rows in self._rows().items()}
        numbers = self._optimizer.numbers.items()
        of_row = {name: {"numbers": of_all[slot].cpu().clone()} for name, of_all in numbers}
        return rows | of_row | self._optimizer.state(slot)

    def _rows(self) -> dict[str, torch.Tensor]:
        return self.slots.rows | self._optimizer.rows


def _readers(
    base: BaseModel, trials: Sequence[Trial], adapter: Callable[[Trial], Adapter]
) -> dict[int, Reader]:
    """How those trials that train the text encoders read prompts, by place."""
    training = [(place, trial) for place, trial in enumerate(trials) if trial.config.trains_text]
    return {place: reader_of(base, adapter(trial), trial.config) for place, trial in training}


def _mean(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(gradients)).mean(dim=0, dtype=torch.float32)


class Spread:
    """Trials on all cores of a processor, each in a pack of its own; they wait for each other at rungs only.

    So a trial gives, to the bit, what it gives alone: how a product rounds depends on its shape, which
    neighbours would change. They would save an eighth of a training, which is a fifth of a search there.
    """

    def __init__(self, base: BaseModel, data: TrainingData, trials: Sequence[Trial]) -> None:
        self._base, self._data = base, data
        self._idle: list[BaseModel] = []
        """Twins of the base that have no pack."""
        self._packs: list[Pack] = []
        self._shown: Slots | None = None
        self.losses: dict[int, list[float]] = {}
        self.take(trials)

    def __enter__(self) -> "Spread":
        return self

    def __exit__(self, *details: object) -> None:
        self._hide()
        for pack in self._packs:
            pack.__exit__(*details)

    @property
    def trials(self) -> list[Trial]:
        return [trial for pack in self._packs for trial in pack.trials]

    def adapter(self, trial: Trial) -> Adapter:
        return self._pack(trial).adapter(trial)

    def state(self, trial: Trial) -> State:
        """From which a trial can go on."""
        return self._pack(trial).state(trial)

    def _pack(self, trial: Trial) -> Pack:
        return next(pack for pack in self._packs if trial in pack.trials)

    def advance(self, on_step: Callable[[int], None]) -> None:
        """To the next step at which some trial stands at a rung."""
        number, lock = min(pack.num_left for pack in self._packs), Lock()

        def in_turn(num_trials: int) -> None:
            with lock:
                on_step(num_trials)

        with threads_of(self._base.device, len(self._base.twins)) as threads:
            for done in [threads.submit(pack.advance, in_turn, number) for pack in self._packs]:
                done.result()

    def standing(self) -> tuple[list[Trial], list[Trial]]:
        """Trials at a rung, and those that have diverged."""
        found = [pack.standing() for pack in self._packs]
        standing, diverged = (
            [trial for part in parts for trial in part] for parts in zip(*found, strict=True)
        )
        return standing, diverged

    def focus(self, trials: Sequence[Trial]) -> None:
        """Attach these alone, to be drawn."""
        if not trials:
            return
        self._shown = Slots(self._base.unet, [trial.config for trial in trials])
        for slot, trial in enumerate(trials):
            self._shown.load(slot, of_unet(self.adapter(trial)))
        self._shown.__enter__()
        readers = _readers(self._base, trials, self.adapter)
        self._base.attached = Attached(self._shown, list(range(len(trials))), readers=readers)

    def leave(self, indices: set[int], standing: Sequence[Trial]) -> None:
        """Trials that end here; the others go on to their next rung."""
        self._hide()
        for pack in self._packs:
            pack.leave(indices, [trial for trial in standing if trial in pack.trials])
        for pack in [pack for pack in self._packs if not pack.trials]:
            pack.__exit__()
            self._idle.append(pack.base)
            self._packs.remove(pack)

    def take(self, trials: Sequence[Trial]) -> None:
        """New trials beside those that go on."""
        self.losses |= {trial.index: trial.losses for trial in trials}
        for trial in trials:
            twin = self._idle.pop() if self._idle else self._base.twin()
            self._packs.append(Pack(twin, self._data, [trial]))

    def _hide(self) -> None:
        self._base.attached = None
        if self._shown:
            self._shown.__exit__()
        self._shown = None


def _index(trial: Trial) -> int:
    return trial.index
