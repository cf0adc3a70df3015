"""Previews: images of a config's `sample_prompts` as its training goes, always from the same noise."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.base import BaseModel
from bench.conditioning import conditioning, empty_conditioning
from bench.config import TrainingConfig
from bench.exported import previews_folder
from bench.run import write_images
from bench.scoring.generate import generate
from bench.space import Sampler


class Previews:
    """What is drawn, read by the text encoders while they are there."""

    def __init__(self, base: BaseModel, config: TrainingConfig) -> None:
        """`config` must have sample_prompts."""
        self._base, self._output, self._prompts = base, Path(config.output_dir), config.sample_prompts
        self._text, self._empty = conditioning(base, config.sample_prompts), empty_conditioning(base)

    def draw(self, step: int) -> NDArray[np.uint8]:
        """Images through the adapter that is attached, (prompts, height, width, 3), written too."""
        own = self._base.own_readings(self._prompts)
        asked = (self._text, self._empty, range(len(self._text)), Sampler())
        images: NDArray[np.uint8] = generate(self._base, *asked, own=own)[0]
        write_images(previews_folder(self._output, step), images)
        return images
