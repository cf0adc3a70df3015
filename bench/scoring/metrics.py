"""The metrics: what each one asks, in which direction it is good, and what a score of it holds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Direction = Literal["maximize", "minimize"]
Role = Literal["tested", "shown", "alarm"]
PREFIX = "judge_"
"""Of the metrics that the judge measures: a second network, by which nothing is searched or chosen."""
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
    role: Role
    """tested: WIN, TIE or LOSS may be said of it; shown: reported without a verdict; alarm: memorisation."""
    source: str
    """Its formula, or where that is published."""

    @property
    def sign(self) -> int:
        """+1 where higher is better, −1 where lower is."""
        return 1 if self.direction == "maximize" else -1


QUALITY = (
    Metric(
        name="similarity",
        label="Similarity to the true picture",
        direction="maximize",
        unit="cosine",
        question="How much does each image look like the real picture with the same caption?",
        paired=True,
        role="tested",
        source="CLIP-I of DreamBooth, Ruiz et al. 2023, arXiv 2208.12242; against the one true picture",
    ),
    Metric(
        name="clip_score",
        label="CLIP score",
        direction="maximize",
        unit="cosine",
        question="Does each image show what its prompt says?",
        paired=True,
        role="tested",
        source="Hessel et al. 2021, arXiv 2104.08718; the raw cosine, neither scaled nor cut off at 0",
    ),
    Metric(
        name="diversity",
        label="Diversity",
        direction="maximize",
        unit="1 − cosine",
        question="How different are images of one prompt drawn from different seeds?",
        paired=True,
        role="tested",
        source="mean of 1 − cosine over the pairs of seeds of a prompt",
    ),
    Metric(
        name="vendi",
        label="Vendi score",
        direction="maximize",
        unit="effective images",
        question="How many really different images are there among the seeds of one prompt?",
        paired=True,
        role="shown",
        source="Friedman & Dieng 2023, arXiv 2210.02410",
    ),
    Metric(
        name="kd",
        label="Kernel distance to real images",
        direction="minimize",
        unit="×1000",
        question="Is the set of images distributed like the held-out real images?",
        paired=False,
        role="tested",
        source="KID, Bińkowski et al. 2018, arXiv 1801.01401: unbiased MMD² with the kernel (cos + 1)³",
    ),
    Metric(
        name="cmmd",
        label="Gaussian kernel distance to real images",
        direction="minimize",
        unit="×1000",
        question="As the kernel distance, with the kernel of CMMD.",
        paired=False,
        role="shown",
        source="CMMD, Jayasumana et al. 2024, arXiv 2401.09603: Gaussian kernel, σ = 10; unbiased here",
    ),
    Metric(
        name="centroid",
        label="Squared distance of centroids",
        direction="minimize",
        unit="×1000",
        question="How far is the mean image from the mean real image?",
        paired=False,
        role="shown",
        source="unbiased ‖mean − mean‖² of unit features: MMD² with a linear kernel, Gretton et al. 2012",
    ),
    Metric(
        name="fid",
        label="FID to real images",
        direction="minimize",
        unit="squared distance",
        question="As the kernel distance, in the measure that papers print; biased at this few images.",
        paired=False,
        role="shown",
        source="Heusel et al. 2017, arXiv 1706.08500; on unit features",
    ),
    Metric(
        name="drift",
        label="Drift (FID to the base's images)",
        direction="minimize",
        unit="squared distance",
        question="How far have the images moved from what the base model draws?",
        paired=False,
        role="shown",
        source="Heusel et al. 2017, arXiv 1706.08500; on unit features; an adapter that learned nothing wins",
    ),
)
JUDGE = (
    Metric(
        name="judge_similarity",
        label="Similarity to the true picture, by the judge",
        direction="maximize",
        unit="cosine",
        question="Does a network that had no part in the search also see the real picture in each image?",
        paired=True,
        role="tested",
        source="as similarity, on the judge's features; DINO score of DreamBooth, arXiv 2208.12242",
    ),
    Metric(
        name="judge_diversity",
        label="Diversity, by the judge",
        direction="maximize",
        unit="1 − cosine",
        question="Are images of one prompt also different to a network that had no part in the search?",
        paired=True,
        role="tested",
        source="as diversity, on the judge's features",
    ),
    Metric(
        name="judge_kd",
        label="Kernel distance to real images, by the judge",
        direction="minimize",
        unit="×1000",
        question="Does a network that had no part in the search find the images distributed like real ones?",
        paired=False,
        role="tested",
        source="as kd, on the judge's features; KD-DINOv2 of Stein et al. 2023, arXiv 2306.04675",
    ),
    Metric(
        name="judge_drift",
        label="Drift (kernel distance to the base's images), by the judge",
        direction="minimize",
        unit="×1000",
        question="How far have the images moved from what the base model draws, free of bias?",
        paired=False,
        role="shown",
        source="paired U-statistic of MMD², Gretton et al. 2012, on the judge's features",
    ),
)
INCEPTION = (
    Metric(
        name="fid_inception",
        label="FID to real images",
        direction="minimize",
        unit="squared distance",
        question="FID through the Inception network of the papers, where its weights are on disk.",
        paired=False,
        role="shown",
        source="Heusel et al. 2017, arXiv 1706.08500",
    ),
    Metric(
        name="drift_inception",
        label="Drift (FID to the base's images)",
        direction="minimize",
        unit="squared distance",
        question="Drift through the Inception network, where its weights are on disk.",
        paired=False,
        role="shown",
        source="Heusel et al. 2017, arXiv 1706.08500",
    ),
)
MEMORIZATION = (
    Metric(
        name="nearest",
        label="Nearness to the training pictures",
        direction="minimize",
        unit="cosine",
        question="How near to a training picture are the 5 % of images that are nearest to one?",
        paired=False,
        role="alarm",
        source="95th percentile over images of the highest cosine to a training picture; "
        "Somepalli et al. 2023, arXiv 2212.03860",
    ),
    Metric(
        name="copies",
        label="Images as near as a copy",
        direction="minimize",
        unit="share of images",
        question="Which share of the images is nearer to a training picture than real pictures ever are?",
        paired=True,
        role="alarm",
        source="share above τ, the 99.5th percentile of the nearest-training cosine of held-out pictures",
    ),
    Metric(
        name="authentic",
        label="Authentic images",
        direction="maximize",
        unit="share of images",
        question="Which share is farther from any training picture than training pictures are from another?",
        paired=True,
        role="alarm",
        source="AuthPct, Alaa et al. 2022, arXiv 2102.08921",
    ),
    Metric(
        name="c_t",
        label="Data-copying test",
        direction="maximize",
        unit="z",
        question="Are the images nearer to the training pictures than held-out real pictures are?",
        paired=False,
        role="alarm",
        source="C_T, Meehan et al. 2020, arXiv 2004.05675, without its partition into cells",
    ),
    Metric(
        name="loss_gap",
        label="Gap of the loss, held-out minus training",
        direction="minimize",
        unit="mean squared error",
        question="Does the adapter denoise its training pictures better than pictures it never saw?",
        paired=False,
        role="alarm",
        source="at fixed timesteps and noises, minus the base's gap; loss attack of Carlini et al. 2023, "
        "arXiv 2301.13188",
    ),
)
PRESERVATION = (
    Metric(
        name="shift",
        label="Change of images of unrelated prompts",
        direction="minimize",
        unit="1 − cosine",
        question="How different are images of prompts that have nothing to do with the training?",
        paired=True,
        role="shown",
        source="1 − cosine to the base's image of the same prompt and seed",
    ),
    Metric(
        name="shift_kd",
        label="Kernel distance of images of unrelated prompts to the base's",
        direction="minimize",
        unit="×1000",
        question="Have images of unrelated prompts changed as a set, or only one by one?",
        paired=False,
        role="shown",
        source="paired U-statistic of MMD², Gretton et al. 2012, with the kernel of KID",
    ),
    Metric(
        name="clip_change",
        label="Change of the CLIP score of unrelated prompts",
        direction="maximize",
        unit="cosine",
        question="Do images of unrelated prompts still show what the prompts say?",
        paired=True,
        role="tested",
        source="CLIP score (Hessel et al. 2021) minus the base's, same prompts and seeds; non-inferiority",
    ),
)
EARLY = (
    Metric(
        name="held_out_loss",
        label="Loss on held-out pictures",
        direction="minimize",
        unit="mean squared error",
        question="How well does the adapter denoise pictures that it was not trained on?",
        paired=False,
        role="shown",
        source="the training objective at fixed timesteps and noises; an early sign at rungs, no quality",
    ),
)
METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*QUALITY, *JUDGE, *INCEPTION, *MEMORIZATION, *PRESERVATION, *EARLY)
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
    caution: str | None = None
    """Why the value must not be read as it stands, such as `96 images < 2 × 256 dimensions: mostly bias`."""


def judged(name: str) -> str | None:
    """The judge's counterpart of a metric, `judge_similarity` of `similarity`; None where there is none.

    All are the same formula on other features, but for `drift`, an FID, whose counterpart is a kernel
    distance.
    """
    counterpart = PREFIX + name
    return counterpart if counterpart in METRICS else None


def title(metric: Metric, score: Score) -> str:
    """The full name under which a score is shown, such as `CLIP score (emoji-clip, 48 images)`."""
    return f"{metric.label} ({score.extractor}, {score.num_images} images)"


def best(items: Iterable[T], metric: str, value: Callable[[T], float]) -> T:
    """The item whose `value` is best in the metric's direction."""
    return (max if METRICS[metric].direction == "maximize" else min)(items, key=value)
