"""Exam: what every adapter draws on one held-out split, and what it is measured against."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.base import BaseModel, TextEmbedding, fit
from bench.dataset import Dataset
from bench.errors import TrialError
from bench.prompts import Prompt
from bench.run import (
    Evaluation,
    Run,
    Split,
    has_evaluation,
    image_files,
    read_evaluation,
    write_evaluation,
    write_real_features,
)
from bench.scoring.embed import Scorer, inception_features
from bench.scoring.generate import generate
from bench.scoring.measure import Reference, check_images, evaluate
from bench.space import Sampler


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Exam:
    """The prompts of one split, ready to be drawn, with the base's own images of them."""

    base: BaseModel
    scorer: Scorer
    sampler: Sampler
    text: TextEmbedding
    """One row an image: prompt by prompt, seed by seed."""
    empty: TextEmbedding
    seeds: tuple[int, ...]
    reference: Reference
    base_images: NDArray[np.uint8] | None

    @property
    def num_images(self) -> int:
        return len(self.seeds)

    def draw(
        self, num_slots: int, on_progress: Callable[[float], None] = lambda fraction: None
    ) -> NDArray[np.uint8]:
        """Images (num_slots, prompts × seeds, height, width, 3) through the attached adapters."""
        return generate(self.base, self.text, self.empty, self.seeds, self.sampler, num_slots, on_progress)

    def score(self, images: NDArray[np.uint8]) -> Evaluation:
        """One adapter's images -> its Evaluation; raises TrialError for images that must not be scored."""
        check_images(images, self.base_images, self.reference.num_seeds)
        evaluation = evaluate(images, self.reference, self.scorer)
        if any(not np.isfinite(score.value) for score in evaluation.scores.values()):
            raise TrialError("a score is not a finite number")
        return evaluation


def prepare(
    run: Run,
    split: Split,
    prompts: Sequence[Prompt],
    dataset: Dataset,
    base: BaseModel,
    scorer: Scorer,
) -> Exam:
    """The Exam of a split; draws and scores the base's images unless the run folder holds them."""
    pictures = dataset.dev if split == "dev" else dataset.test
    num_seeds = len(prompts[0].seeds)
    texts = [prompt.text for prompt in prompts]
    pixels = np.stack([fit(example.image(), base.resolution) for example in pictures])
    real = scorer.embed_images(pixels)
    rows = {example.digest: row for row, example in enumerate(pictures)}
    reference = Reference(
        text_features=scorer.embed_texts(texts),
        num_seeds=num_seeds,
        true_features=real[[rows[prompt.example.digest] for prompt in prompts if prompt.example]],
        real_features=real,
        base=None,
        extractor=scorer.name,
        inception_real=inception_features(pixels),
    )
    exam = Exam(
        base=base,
        scorer=scorer,
        sampler=run.space.sampler,
        text=base.encode_prompts(texts)[np.repeat(np.arange(len(texts)), num_seeds)],
        empty=base.encode_empty(),
        seeds=tuple(seed for prompt in prompts for seed in prompt.seeds),
        reference=reference,
        base_images=None,
    )
    write_real_features(run, split, real, reference.picture_prompts)
    images, evaluation = _base_evaluation(run, split, exam)
    reference = replace(reference, base=evaluation, inception_base=inception_features(images))
    return replace(exam, base_images=images, reference=reference)


def _base_evaluation(run: Run, split: Split, exam: Exam) -> tuple[NDArray[np.uint8], Evaluation]:
    folder = run.base_folder(split)
    if has_evaluation(folder):
        return np.stack(list(_pixels(folder))), read_evaluation(folder)
    images = exam.draw(1)[0]
    evaluation = exam.score(images)
    write_evaluation(folder, evaluation, images)
    return images, evaluation


def _pixels(folder: Path) -> Iterator[NDArray[np.uint8]]:
    for file in image_files(folder):
        with Image.open(file) as image:
            yield np.asarray(image.convert("RGB"))
