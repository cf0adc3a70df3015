"""One training from a training_config.yaml: a trial alone in its pack, with checkpoints to go on from."""

import hashlib
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from bench.base import BaseModel, TrainingData, adaptable_names, load_base, target_names
from bench.config import MAX_BATCH, TrainingConfig, TrialConfig, refuse_missing_8bit
from bench.dataset import Example, content_of, load_training_images
from bench.encoding import crops_note, encode
from bench.errors import BenchError, MismatchError, TrialError, UsageError, one_line
from bench.export import export_training
from bench.exported import export_folder
from bench.files import replacing, write_text
from bench.lock import held
from bench.pictures import Columns
from bench.prior import with_prior
from bench.publish import Upload, prepared
from bench.run import write_losses
from bench.scoring.losses import FixedLosses
from bench.scoring.statistics import mean_stderr
from bench.training_progress import TrainingProgress, show_training
from trainers.checkpoints import (
    ADAPTER,
    EFFECTIVE_BATCH,
    Checkpoint,
    find_checkpoints,
    read_checkpoint,
    refuse_changed,
    set_aside,
    write_checkpoint,
)
from trainers.loop import Pack, Trial
from trainers.optimizer import rate_at
from trainers.previews import Previews
from trainers.processes import LEFT_ALONE, Processes, is_left_alone, joined
from trainers.trackers import Trackers, refuse_missing, tracking

STRIDE_SECONDS, MAX_STRIDE = 0.5, 20
"""Of the steps after which loss and Ctrl-C are looked at: a GPU must not wait for that at every step."""
NUM_WATCHED = 8
"""Pictures, at most, on which what was learned is measured: fixed noises, before and after."""
SURE = 2.0
"""Standard errors."""
FREE = {
    *("epochs", "output_dir", "save_steps", "save_total_limit", "report_to", "hub_model_id"),
    *("sample_prompts", "sample_steps"),
    # What these name is known by its fingerprint:
    *("model_name", "vae_name", "revision", "prediction", "dataset_name", "image_column", "caption_column"),
    *("hold_out", "trigger", "dtype", "mixed_precision"),
    # Of which what an update sees is made:
    *("batch_size", "gradient_accumulation_steps"),
}
"""Keys that may change between the beginning of a training and its end."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Loaded:
    """All that a training_config.yaml names, checked."""

    config: TrainingConfig
    base: BaseModel
    data: TrainingData
    processes: Processes
    trial: TrialConfig
    """Its batch is that of all processes."""
    made_by: dict[str, Any]
    """What decides the weights, as checkpoints keep it."""
    previews: Previews | None
    """In the first process, if there is anything to draw."""

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def num_steps(self) -> int:
        return self.data.schedule(self.trial.batch_size).end(self.config.epochs)

    def __str__(self) -> str:
        parts, number = self.config.gradient_accumulation_steps, self.processes.number
        said = f"{self.num_steps} steps of {self.trial.batch_size}"
        if number > 1:
            said += f" ({self.config.batch_size} x {parts} x {number} processes)"
        return (
            f"model {self.base.name}, {len(self.data)} images of {self.config.dataset_name}, {said}, "
            f"on {self.base.device.type}"
        )


def run_training(config: TrainingConfig, console: Console) -> Path:
    """Train, or go on from the last checkpoint in `output_dir`; returns the adapter's file.

    What an upload needs is looked at first, and its repository made: hours later it must not fail for that.
    Raises a BenchError, and KeyboardInterrupt once a checkpoint has been written.
    """
    with joined() as processes, ExitStack() as stack:
        console.quiet = console.quiet or not processes.is_first
        if is_left_alone():
            _say(console, f"Note: {LEFT_ALONE}.")
        try:
            with processes.agreed():
                upload = _claimed(config, stack) if processes.is_first else None
                loaded = _load(config, processes, console)
                begun = _begun(loaded, console)
            processes.check_same(loaded.made_by | {"checkpoint": begun.step if begun else 0})
            with processes.agreed():
                upload = upload.created() if upload else None
            file = _trained(loaded, begun, console)
        except torch.OutOfMemoryError:
            raise BenchError(_out_of_memory(config)) from None
        if upload:
            _share(loaded, upload, console)
        return file


def _claimed(config: TrainingConfig, stack: ExitStack) -> Upload | None:
    """Once the output folder is this training's alone, what will be uploaded, if anything."""
    refuse_missing(config.report_to)
    if config.optimizer == "adamw8bit":
        refuse_missing_8bit()
    output, upload = Path(config.output_dir), None
    if config.hub_model_id:
        upload = prepared(export_folder(output), config.hub_model_id, private=True)
    output.mkdir(parents=True, exist_ok=True)
    busy = f"{output}: another bench train is writing into it; give another output_dir"
    stack.enter_context(held(output / ".train.lock", busy))
    for left in output.glob(".checkpoint-*"):
        shutil.rmtree(left)
    return upload


# What the config names


def _load(config: TrainingConfig, processes: Processes, console: Console) -> Loaded:
    trial = _trial(config, processes.number)
    columns = Columns(image=config.image_column, caption=config.caption_column)
    images = load_training_images(config.dataset_name, config.trigger, columns, hold_out=config.hold_out)
    device = processes.device
    _check_precision(config, device, console)
    base = load_base(
        config.model_name,
        device,
        revision=config.revision,
        resolution=config.resolution,
        dtype=config.arithmetic,
        prediction=config.prediction,
        vae=config.vae_name,
    )
    if not target_names(adaptable_names(base.unet), config):
        raise UsageError(f"target_modules: {config.target_modules!r} matches no module of {base.name}")
    captions = [example.caption for example in images]
    if cut := base.count_cut(captions):
        _say(
            console, f"Note: {cut} of {len(captions)} captions are longer than the model reads, and are cut."
        )
    if note := crops_note(base, images, config.variants, mixed=config.buckets):
        _say(console, f"Note: {note}.")
    data = encode(base, images, mixed=config.buckets, variants=config.variants, balance=config.balance)
    if config.prior_weight:
        wanted = config.class_prompt, config.trigger, config.class_images
        data = with_prior(base, data, images, *wanted)
    base.keeps_text_encoders = config.trains_text
    previews = Previews(base, config) if config.sample_prompts and processes.is_first else None
    base.release_encoders()
    _check_latents(config, data)
    return Loaded(
        config=config,
        base=base,
        data=data,
        processes=processes,
        trial=trial,
        made_by=_made_by(config, trial, base, images),
        previews=previews,
    )


def _trial(config: TrainingConfig, number: int) -> TrialConfig:
    """With the batch of so many processes."""
    trial = config.trial
    if (size := trial.batch_size * number) > MAX_BATCH:
        raise UsageError(
            f"train_batch_size times gradient_accumulation_steps times {number} processes must be at most "
            f"{MAX_BATCH}, got {size}"
        )
    return trial.model_copy(update={"batch_size": size})


def _check_precision(config: TrainingConfig, device: torch.device, console: Console) -> None:
    if config.mixed_precision != "fp16":
        return
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(
            "mixed_precision: fp16: training in it is not supported, and this GPU has no bfloat16; give no"
        )
    _say(
        console,
        "Note: mixed_precision fp16: trained in bfloat16, as fast and as small, in which neither gradients "
        "nor the VAE of SDXL overflow.",
    )


def _check_latents(config: TrainingConfig, data: TrainingData) -> None:
    latents = [tensor for bucket in data.buckets for tensor in (bucket.mean, bucket.std)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in latents):
        raise UsageError(
            f"{config.vae_name or config.model_name}: its VAE gives latents that are not finite in "
            f"{config.arithmetic}; give mixed_precision: no, or another vae_name"
        )


def _made_by(
    config: TrainingConfig, trial: TrialConfig, base: BaseModel, images: Sequence[Example]
) -> dict[str, Any]:
    content = json.dumps(content_of(images))
    free = FREE if config.nested else FREE - {"epochs"}
    kept = {key: value for key, value in config.model_dump(mode="json").items() if key not in free}
    return kept | {
        EFFECTIVE_BATCH: trial.batch_size,
        "dtype": config.arithmetic,
        "resolution": base.resolution,
        "model_fingerprint": base.fingerprint,
        "data_fingerprint": hashlib.sha256(content.encode()).hexdigest(),
    }


def _begun(loaded: Loaded, console: Console) -> Checkpoint | None:
    """The last whole checkpoint, if there is one; raises MismatchError if it is another training's."""
    output, checkpoints = loaded.output, find_checkpoints(loaded.output)
    if not checkpoints:
        if (output / ADAPTER).exists():
            raise MismatchError(f"{output}: holds an adapter but no checkpoint; give another output_dir")
        return None
    folder, checkpoint = _last_whole(checkpoints, loaded, console)
    if checkpoint.step > loaded.num_steps:
        raise MismatchError(
            f"{folder}: is beyond the {loaded.num_steps} steps of num_train_epochs "
            f"{loaded.config.epochs}; give another output_dir"
        )
    _say(console, f"Going on from {folder}.")
    return checkpoint


def _last_whole(checkpoints: Sequence[Path], loaded: Loaded, console: Console) -> tuple[Path, Checkpoint]:
    """Damaged ones after it are set aside, by the first process; raises UsageError if all are damaged."""
    for folder in reversed(checkpoints):
        try:
            refuse_changed(folder, loaded.made_by)
            return folder, read_checkpoint(folder)
        except UsageError as error:
            if folder == checkpoints[0]:
                raise
            if loaded.processes.is_first:
                set_aside(folder)
            _say(console, f"{one_line(error)}; it is set aside, the checkpoint before it is taken.")
    raise AssertionError("there is one at least")


# Training


def _trained(loaded: Loaded, begun: Checkpoint | None, console: Console) -> Path:
    config, num_steps = loaded.config, loaded.num_steps
    step = begun.step if begun else 0
    is_first = loaded.processes.is_first
    _say(console, f"Training {config.output_dir}: {loaded}.")
    watched = Watched(loaded.base, loaded.data) if is_first and step < num_steps else None
    trial = Trial(0, loaded.trial, [(config.epochs, num_steps)])
    if begun:
        trial.step, trial.losses, trial.state = step, list(begun.losses), begun.state
    parts = config.gradient_accumulation_steps
    with (
        tracking(config.report_to if is_first else (), loaded.output, loaded.made_by) as trackers,
        show_training(console, step, num_steps) as progress,
        Pack(loaded.base, loaded.data, [trial], parts, loaded.processes) as pack,
    ):
        Training(loaded, pack, trial, progress, trackers).run()
        if watched:
            pack.focus([trial])
            progress.line(watched.describe(config))
        if is_first:
            _finish(loaded, trial)
    return loaded.output / ADAPTER


@dataclass(eq=False, slots=True)
class Training:
    """The loop over a trial that is alone in its pack."""

    loaded: Loaded
    pack: Pack
    trial: Trial
    progress: TrainingProgress
    trackers: Trackers

    def run(self) -> None:
        """To the last step; raises TrialError if the loss is no longer finite, KeyboardInterrupt."""
        num_steps, stride = self.loaded.num_steps, 1
        processes = self.loaded.processes
        with _interrupts(once=processes.number == 1) as interrupted:
            while self.trial.step < num_steps:
                next_save, next_drawn = self._stops()
                stride = self._advance(min(stride, min(next_save, next_drawn) - self.trial.step))
                stride, stopped = processes.largest(stride, len(interrupted))
                if self.trial.step == next_save or stopped:
                    self._save()
                if self.trial.step == next_drawn and not stopped:
                    self._draw()
                if stopped:
                    processes.wait()  # a launcher ends all as soon as one has ended
                    raise KeyboardInterrupt

    def _stops(self) -> tuple[int, int]:
        """The next steps at which to save and to draw; the same in all processes."""
        config, step = self.loaded.config, self.trial.step
        intervals = config.save_steps, config.sample_steps or config.save_steps
        save, drawn = (min(self.loaded.num_steps, (step // every + 1) * every) for every in intervals)
        return save, drawn if config.sample_prompts else save

    def _draw(self) -> None:
        if not (previews := self.loaded.previews):
            return
        self.pack.focus([self.trial])
        self.trackers.show(self.trial.step, previews.draw(self.trial.step))
        self.pack.leave(set(), ())

    def _advance(self, number: int) -> int:
        """So many steps; returns how many to make at once from now on."""
        started = time.monotonic()
        self.pack.advance(lambda num_trials: None, number)
        seconds = (time.monotonic() - started) / number
        losses = self.trial.losses
        for step in range(len(losses) - number, len(losses)):
            if not math.isfinite(losses[step]):
                raise self._diverged(f"the loss was no longer finite at step {step + 1}")
        for step in range(len(losses) - number, len(losses)):
            self.trackers.log(step + 1, loss=losses[step], learning_rate=self._rate(step))
        self.progress.update(self.trial.step, losses, self._rate(self.trial.step - 1))
        return max(1, min(MAX_STRIDE, round(STRIDE_SECONDS / max(seconds, 1e-6))))

    def _rate(self, step: int) -> float:
        return rate_at(self.trial.config, step, self.loaded.num_steps)

    def _diverged(self, what: str) -> TrialError:
        saved = [str(path) for path in find_checkpoints(self.loaded.output)]
        return TrialError(
            f"{what}: lower learning_rate (it is {self.trial.config.learning_rate:g}) or give warmup_steps, "
            f"with another output_dir; the last checkpoint is {saved[-1] if saved else 'none'}"
        )

    def _save(self) -> None:
        config = self.loaded.config
        state = self.pack.state(self.trial)
        if not all(bool(torch.isfinite(tensor).all()) for part in state.values() for tensor in part.values()):
            raise self._diverged(f"weights were no longer finite at step {self.trial.step}")
        if not self.loaded.processes.is_first:
            return
        checkpoint = Checkpoint(step=self.trial.step, state=state, losses=self.trial.losses)
        written = (self.trial.config, self.loaded.made_by, config.save_total_limit)
        folder = write_checkpoint(self.loaded.output, checkpoint, *written)
        write_losses(self.loaded.output, self.trial.losses)
        self.progress.line(f"saved {folder}")


@contextmanager
def _interrupts(*, once: bool) -> Iterator[list[int]]:
    """Signals of Ctrl-C that came meanwhile; after `once` a second one ends the process as ever.

    A launcher of several processes passes on what they have got already.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        if once:
            signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def _finish(loaded: Loaded, trial: Trial) -> None:
    file = loaded.output / ADAPTER
    with replacing(file) as temporary:
        # Not written anew: the same bytes are known as one adapter, and a header's order is left to chance.
        shutil.copyfile(find_checkpoints(loaded.output)[-1] / ADAPTER, temporary)
    write_losses(loaded.output, trial.losses)
    write_text(loaded.output / "training_config.yaml", loaded.config.guide_yaml())


def _share(loaded: Loaded, upload: Upload, console: Console) -> None:
    """Upload the adapter with a model card and its config; what fails can be done again without training."""
    name = upload.target.partition("/")[2]
    export_training(loaded.config, loaded.output, name, len(loaded.data), loaded.num_steps)
    try:
        with console.status("Uploading"):
            address = upload.send()
    except BenchError as error:
        later = f"bench push {loaded.output} {upload.target}"
        raise BenchError(f"{error}; the adapter is kept in {loaded.output}: `{later}` uploads it") from None
    _say(console, f"Uploaded: {address}")


# What went wrong, in words


class Watched:
    """The loss of some training pictures at fixed timesteps and noises, with the base and with the adapter.

    The training loss itself is of random timesteps: its noise hides what a short training learns.
    """

    def __init__(self, base: BaseModel, data: TrainingData) -> None:
        images = max(data.buckets, key=len)[:NUM_WATCHED]
        self._fixed = FixedLosses(base, images)
        self._before = self._fixed.losses(1)[0]

    def describe(self, config: TrainingConfig) -> str:
        """What the adapter that is attached now has learned, and what to do if that is nothing."""
        return describe_learning(self._before, self._fixed.losses(1)[0], config)


def describe_learning(before: NDArray[np.float64], after: NDArray[np.float64], config: TrainingConfig) -> str:
    """In words, from the losses (pictures) before and after."""
    change, stderr = mean_stderr(after - before)
    said = (
        f"loss of {len(before)} training pictures at fixed noises: {before.mean():.4f} with the model alone, "
        f"{after.mean():.4f} with the adapter"
    )
    if change < -SURE * stderr:
        return f"Learned: {said}."
    rate = f"learning_rate (it is {config.learning_rate:g})"
    if change > SURE * stderr:
        return f"Caution: {said}: training made it worse; lower {rate}."
    return (
        f"Caution: {said}: it did not fall beyond chance; raise {rate} or num_train_epochs, and look at the "
        "captions with `bench data check`."
    )


def _out_of_memory(config: TrainingConfig) -> str:
    smaller = ["lower resolution"]
    if config.arithmetic == "float32":
        smaller.insert(0, "give mixed_precision: bf16")
    if config.rank > 16:
        smaller.append(f"lower lora_rank (it is {config.rank})")
    return (
        "out of memory, also with one sample at a time and activations computed again: "
        f"{', or '.join(smaller)}; checkpoints are kept"
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
