"""Trackers: loss and learning rate as TensorBoard, trackio or Weights & Biases show them, by accelerate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import MissingError


class Trackers:
    """Those that were asked for; maybe none."""

    def __init__(self, trackers: Sequence[Any]) -> None:
        self._trackers = trackers

    def log(self, step: int, **values: float) -> None:
        """Values of a step, counted from 1."""
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def show(self, step: int, images: NDArray[np.uint8]) -> None:
        """Images (n, height, width, 3); trackio does not take them."""
        for tracker in self._trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": images}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({"samples": list(images)}, step=step)


def refuse_missing(names: Sequence[str]) -> None:
    """Raises MissingError for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise MissingError(f"report_to: {name} is not installed; get it with: pip install {name}")


@contextmanager
def tracking(names: Sequence[str], output: Path, config: Mapping[str, Any]) -> Iterator[Trackers]:
    """Trackers that have been told the config; TensorBoard's files lie in `output`/logs."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    plain = {key: str(value) if isinstance(value, list) else value for key, value in config.items()}
    trackers = []
    for name in names:
        kind = LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": output / "logs"} if kind.requires_logging_directory else {}
        trackers.append(kind(output.name or "bench", **where))
    try:
        for tracker in trackers:
            tracker.start()
            tracker.store_init_configuration(plain)
        yield Trackers(trackers)
    finally:
        for tracker in trackers:
            tracker.finish()
