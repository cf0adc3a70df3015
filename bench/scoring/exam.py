"""Exam: what every adapter draws on one split, and what it is measured against."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import ThreadpoolController

from bench.base import BaseModel, TextEmbedding
from bench.buckets import fit
from bench.cache import cached_array
from bench.conditioning import conditioning, empty_conditioning
from bench.dataset import Dataset, Example
from bench.errors import TrialError
from bench.prompts import Prompt, scored_text
from bench.run import (
    THUMBNAIL,
    Evaluation,
    Pictures,
    Run,
    Split,
    has_evaluation,
    image_files,
    read_evaluation,
    write_evaluation,
    write_images,
    write_pictures,
)
from bench.scoring.concepts import scores_by_concept
from bench.scoring.embed import FeatureNetwork, Scorer
from bench.scoring.generate import drawings
from bench.scoring.kept import Kept, kept_inception, text_features
from bench.scoring.losses import Denoising
from bench.scoring.measure import Embedder, Reference, View, check_images, evaluate, evaluate_probes
from bench.space import Sampler


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Networks:
    """What looks at images: the scorer chooses, the judge, where there is one, confirms."""

    scorer: Scorer
    judge: FeatureNetwork | None


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Exam:
    """The prompts of one split, ready to be drawn, with the base's own images of them."""

    split: Split
    prompts: tuple[str, ...]
    base: BaseModel
    scorer: Embedder
    judge: Embedder | None
    sampler: Sampler
    text: TextEmbedding
    """One row an image: prompt by prompt, seed by seed."""
    empty: TextEmbedding
    seeds: tuple[int, ...]
    kinds: tuple[str, ...]
    """Of each prompt."""
    concepts: tuple[str, ...]
    """Of each prompt's true picture."""
    reference: Reference
    base_images: NDArray[np.uint8] | None
    denoising: Denoising | None = None
    """Measured on the adapters too: the gap of the loss, of probes; the held-out loss, at rungs."""

    @property
    def num_images(self) -> int:
        return len(self.seeds)

    def draw(
        self, num_slots: int, on_progress: Callable[[float], None] = lambda fraction: None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images (prompts × seeds, height, width, 3) through each of the attached adapters, as they come."""
        rows = _row_an_image(len(self.prompts), self.reference.num_seeds)
        readings = self.base.own_readings(self.prompts).items()
        own = {slot: (text[rows], empty) for slot, (text, empty) in readings}
        asked = (self.text, self.empty, self.seeds, self.sampler, num_slots, on_progress, own)
        return drawings(self.base, *asked)

    def denoise(self, num_slots: int) -> list[NDArray[np.float64] | None]:
        """Losses (pictures) through each of the attached adapters; None where none are measured."""
        if self.denoising is None:
            return [None] * num_slots
        return list(self.denoising.losses(num_slots))

    def score(self, images: NDArray[np.uint8], losses: NDArray[np.float64] | None = None) -> Evaluation:
        """One adapter's images (and denoising losses) -> its Evaluation.

        Raises TrialError for images that must not be scored.
        """
        check_images(images, self.base_images, self.reference.num_seeds)
        _one_thread()
        evaluation = self._evaluate(images)
        if self.denoising and losses is not None:
            evaluation.scores[self.denoising.name] = self.denoising.score(losses)
        base = self.reference.base.per_prompt if self.reference.base else None
        concepts = scores_by_concept(self.concepts, evaluation.per_prompt, base)
        evaluation = replace(evaluation, concepts=concepts)
        if any(not np.isfinite(score.value) for score in evaluation.scores.values()):
            raise TrialError("a score is not a finite number")
        return evaluation

    def _evaluate(self, images: NDArray[np.uint8]) -> Evaluation:
        if self.split == "probe":
            return evaluate_probes(images, self.reference, self.kinds, self.scorer, self.judge)
        return evaluate(images, self.reference, self.scorer, self.judge)


@lru_cache(maxsize=1)
def _one_thread() -> None:
    """Statistics are of matrices of some hundred rows: many threads lose more in waiting than they gain.

    Measured on 16 cores: 2 s an evaluation with all of them. For good, as evaluations go on side by side.
    """
    ThreadpoolController().limit(limits=1, user_api="blas")


def prepare(
    run: Run,
    split: Split,
    prompts: Sequence[Prompt],
    dataset: Dataset,
    base: BaseModel,
    networks: Networks,
    denoising: Denoising | None = None,
) -> Exam:
    """The Exam of a split; draws and scores the base's images unless the run folder holds them."""
    num_seeds = len(prompts[0].seeds)
    texts = [prompt.text for prompt in prompts]
    exam = Exam(
        split=split,
        prompts=tuple(texts),
        base=base,
        scorer=networks.scorer,
        judge=networks.judge,
        sampler=run.space.sampler.at_rungs if split == "dev" else run.space.sampler,
        text=conditioning(base, texts)[_row_an_image(len(texts), num_seeds)],
        empty=empty_conditioning(base),
        seeds=tuple(seed for prompt in prompts for seed in prompt.seeds),
        kinds=tuple(prompt.kind for prompt in prompts),
        concepts=() if split == "probe" else tuple(_concept(prompt) for prompt in prompts),
        reference=_reference(run, split, prompts, dataset, base, networks),
        base_images=None,
        denoising=denoising,
    )
    images, evaluation = _base_evaluation(run, prompts, exam, networks)
    inception = kept_inception(images) if split in ("dev", "test") else None
    reference = replace(exam.reference, base=evaluation, inception_base=inception)
    return replace(exam, base_images=images, reference=reference)


def _concept(prompt: Prompt) -> str:
    return prompt.example.concept if prompt.example else ""


def _row_an_image(num_prompts: int, num_seeds: int) -> NDArray[np.intp]:
    return np.repeat(np.arange(num_prompts), num_seeds)


def _training_pictures(run: Run, dataset: Dataset, base: BaseModel, networks: Networks) -> Pictures:
    """Their features; written with small copies to be shown unless the run folder holds them."""
    if (known := run.pictures("train")) is not None:
        return known
    pixels = _pixels(dataset.train, base.resolution)
    small = [_thumbnail(image) for image in pixels]
    write_images(run.path / "real" / "train", np.stack(small))
    pictures = _features(pixels, networks)
    write_pictures(run, "train", pictures)
    return pictures


def _reference(
    run: Run,
    split: Split,
    prompts: Sequence[Prompt],
    dataset: Dataset,
    base: BaseModel,
    networks: Networks,
) -> Reference:
    scorer, judge = networks.scorer, networks.judge
    train = _training_pictures(run, dataset, base, networks)
    reference = Reference(
        text_features=text_features(scorer, [scored_text(p.text, run.space.trigger) for p in prompts]),
        num_seeds=len(prompts[0].seeds),
        scorer=View(extractor=scorer.name, true=None, real=None, train=train.features),
        judge=View(extractor=judge.name, true=None, real=None, train=train.judge_features) if judge else None,
        base=None,
    )
    if split == "probe":
        return reference
    pictures = dataset.dev if split == "dev" else dataset.test
    pixels = _pixels(pictures, base.resolution)
    real = _features(pixels, networks)
    rows = {example.digest: row for row, example in enumerate(pictures)}
    true = [rows[prompt.example.digest] for prompt in prompts if prompt.example]
    reference = replace(
        reference,
        scorer=replace(reference.scorer, true=real.features[true], real=real.features),
        judge=reference.judge and replace(reference.judge, true=_at(real, true), real=real.judge_features),
        inception_real=kept_inception(pixels),
    )
    if split != "floor":
        write_pictures(run, split, replace(real, prompts=reference.picture_prompts))
    return reference


def _at(pictures: Pictures, rows: list[int]) -> NDArray[np.float32] | None:
    return None if pictures.judge_features is None else pictures.judge_features[rows]


def _features(pixels: NDArray[np.uint8], networks: Networks) -> Pictures:
    return Pictures(
        features=Kept(networks.scorer).embed_images(pixels),
        judge_features=Kept(networks.judge).embed_images(pixels) if networks.judge else None,
        prompts=np.full(len(pixels), -1),
    )


def _pixels(examples: Sequence[Example], side: int) -> NDArray[np.uint8]:
    return np.stack([fit(example.image(), side) for example in examples])


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = min(len(image), THUMBNAIL)
    return fit(Image.fromarray(image), side)


def _base_evaluation(
    run: Run, prompts: Sequence[Prompt], exam: Exam, networks: Networks
) -> tuple[NDArray[np.uint8], Evaluation]:
    folder = run.base_folder(exam.split)
    if has_evaluation(folder):
        return np.stack(list(_drawn(folder))), read_evaluation(folder)
    images = base_images(exam, prompts)
    judge = Kept(networks.judge) if networks.judge else None
    evaluation = replace(exam, scorer=Kept(networks.scorer), judge=judge).score(images)
    write_evaluation(folder, evaluation, images)
    return images, evaluation


def base_images(exam: Exam, prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
    """The base's images of the exam's `prompts`, from the cache or drawn: no adapter may be attached.

    The tag goes up whenever `generate`, `blocks` or `kernels` change what is drawn, in rounding too.
    """
    base, sampler = exam.base, exam.sampler
    inputs = [
        "base images 3",
        base.fingerprint,
        str(base.dtype),
        base.resolution,
        [sampler.steps, sampler.guidance],
        [[prompt.text, prompt.seeds] for prompt in prompts],
    ]
    return cached_array(inputs, lambda: list(exam.draw(1))[0], base.device)


def _drawn(folder: Path) -> Iterator[NDArray[np.uint8]]:
    for file in image_files(folder):
        with Image.open(file) as image:
            yield np.asarray(image.convert("RGB"))
