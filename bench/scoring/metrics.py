"""The metrics: what each one asks, in which direction it is good, and what a score of it holds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Direction = Literal["maximize", "minimize"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """How something is measured."""

    name: str
    label: str
    direction: Direction
    unit: str
    question: str
    """What it answers, in one sentence for people who are not statisticians."""
    paired: bool
    """A mean over prompts, so that two adapters are compared prompt by prompt."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="similarity",
            label="Similarity to the true picture",
            direction="maximize",
            unit="cosine",
            question="How much does each image look like the real picture with the same caption?",
            paired=True,
        ),
        Metric(
            name="clip_score",
            label="CLIP score",
            direction="maximize",
            unit="cosine",
            question="Does each image show what its prompt says?",
            paired=True,
        ),
        Metric(
            name="diversity",
            label="Diversity",
            direction="maximize",
            unit="1 − cosine",
            question="How different are images of one prompt drawn from different seeds?",
            paired=True,
        ),
        Metric(
            name="vendi",
            label="Vendi score",
            direction="maximize",
            unit="effective images",
            question="How many really different images are there among the seeds of one prompt?",
            paired=True,
        ),
        Metric(
            name="kd",
            label="Kernel distance to real images",
            direction="minimize",
            unit="×1000",
            question="Is the set of images distributed like the held-out real images?",
            paired=False,
        ),
        Metric(
            name="fid",
            label="FID to real images",
            direction="minimize",
            unit="squared distance",
            question="As the kernel distance, in the measure that papers print; biased at this few images.",
            paired=False,
        ),
        Metric(
            name="drift",
            label="Drift (FID to the base's images)",
            direction="minimize",
            unit="squared distance",
            question="How far have the images moved from what the base model draws?",
            paired=False,
        ),
        Metric(
            name="fid_inception",
            label="FID to real images",
            direction="minimize",
            unit="squared distance",
            question="FID through the Inception network of the papers, where its weights are on disk.",
            paired=False,
        ),
        Metric(
            name="drift_inception",
            label="Drift (FID to the base's images)",
            direction="minimize",
            unit="squared distance",
            question="Drift through the Inception network, where its weights are on disk.",
            paired=False,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The value of one metric on one set of images, with its standard error over prompts."""

    value: float
    stderr: float
    num_images: int
    num_prompts: int
    extractor: str
    """Name of the network whose features, as unit vectors, were measured; part of the score's name."""
    gain: float | None = None
    """value minus the base model's value on the same prompts and seeds."""
    gain_stderr: float | None = None
    """Standard error of `gain`, from differences per prompt (paired) or a jackknife over prompts."""


def title(metric: Metric, score: Score) -> str:
    """The full name under which a score is shown, such as `CLIP score (emoji-clip, 48 images)`."""
    return f"{metric.label} ({score.extractor}, {score.num_images} images)"


def best(items: Iterable[T], metric: str, value: Callable[[T], float]) -> T:
    """The item whose `value` is best in the metric's direction."""
    return (max if METRICS[metric].direction == "maximize" else min)(items, key=value)
