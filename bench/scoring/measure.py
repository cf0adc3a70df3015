"""Measure: images of the fixed prompts -> an Evaluation: every metric with its error and its gain."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.errors import TrialError
from bench.run import Evaluation
from bench.scoring import alignment, distance, diversity
from bench.scoring.metrics import METRICS, Score
from bench.scoring.statistics import jackknife_stderr, mean_stderr

if TYPE_CHECKING:
    from bench.scoring.embed import Scorer

FLAT = 2
MIN_SET = 3
"""Prompts, and real pictures, that a distance needs: its error leaves one out of at least three."""
SAME_PICTURE = 1 - 1e-5


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Reference:
    """What is fixed for every evaluation on one split: unit features of prompts and real pictures."""

    text_features: NDArray[np.float32]
    """Shape (prompts, dim)."""
    num_seeds: int
    """Images of each prompt."""
    true_features: NDArray[np.float32] | None
    """Of the real picture with the prompt's caption, shape (prompts, dim)."""
    real_features: NDArray[np.float32] | None
    """Of all held-out pictures of the split, shape (pictures, dim)."""
    base: Evaluation | None
    """The base model's; None while the base itself is evaluated."""
    extractor: str
    """Name of the scorer."""
    inception_real: NDArray[np.float32] | None = None
    """Inception features (pictures, 2048) of the held-out pictures, where its weights are on disk."""
    inception_base: NDArray[np.float32] | None = None
    """The same of the base's images (prompts × seeds, 2048)."""

    @property
    def num_prompts(self) -> int:
        return len(self.text_features)

    @property
    def image_prompts(self) -> NDArray[np.intp]:
        """Prompt of each image, shape (prompts × seeds,)."""
        return np.repeat(np.arange(self.num_prompts), self.num_seeds)

    @property
    def picture_prompts(self) -> NDArray[np.intp]:
        """Group of each real picture: the prompt whose true picture it is, else one of its own."""
        assert self.real_features is not None
        groups = self.num_prompts + np.arange(len(self.real_features))
        if self.true_features is not None:
            same = self.real_features @ self.true_features.T > SAME_PICTURE
            groups = np.where(same.any(axis=1), same.argmax(axis=1), groups)
        return groups


def evaluate(images: NDArray[np.uint8], reference: Reference, scorer: "Scorer") -> Evaluation:
    """Score images, shape (prompts × seeds, height, width, 3), prompt by prompt, seed by seed.

    Standard errors are over prompts: of the mean for paired metrics, by the delete-one-prompt jackknife for
    kd, fid and drift. Absent are metrics whose true or real pictures are missing, drift when
    `reference.base` is None, and all three distances with fewer than three prompts or real pictures.
    KD and FID are measured on unit features.
    Raises TrialError when features are not finite: such images must not be scored; UsageError with fewer
    than two prompts or seeds.
    """
    expected = reference.num_prompts * reference.num_seeds
    if len(images) != expected:
        raise ValueError(f"expected {expected} images (prompts × seeds), got {len(images)}")
    evaluation = evaluate_features(scorer.embed_images(images), reference)
    return replace(evaluation, scores=evaluation.scores | _inception(images, reference))


def evaluate_features(features: NDArray[np.float32], reference: Reference) -> Evaluation:
    """`evaluate` for images that are embedded already, shape (prompts × seeds, dim)."""
    broken = int((~np.isfinite(features).all(axis=1)).sum())
    if broken:
        raise TrialError(f"{broken} of {len(features)} images have features that are not finite numbers")
    per_prompt = _per_prompt(features, reference)
    scores = {name: _paired_score(name, values, reference) for name, values in per_prompt.items()}
    scores |= _distances(features, reference) if reference.num_prompts >= MIN_SET else {}
    return Evaluation(
        scores={name: scores[name] for name in METRICS if name in scores},
        per_prompt={name: values.tolist() for name, values in per_prompt.items()},
        features=features,
    )


def _distances(features: NDArray[np.float32], reference: Reference) -> dict[str, Score]:
    scores = {}
    if reference.real_features is not None and len(reference.real_features) >= MIN_SET:
        scores["kd"] = _set_score("kd", _kd(features, reference), reference)
        scores["fid"] = _set_score("fid", _fid(features, reference), reference)
    if reference.base is not None:
        scores["drift"] = _drift(features, reference.base.features, reference)
    return scores


def _inception(images: NDArray[np.uint8], reference: Reference) -> dict[str, Score]:
    """FID and drift through the Inception network; empty where its weights are not on disk."""
    if reference.inception_real is None or reference.num_prompts < MIN_SET:
        return {}
    from bench.scoring.embed import inception_features

    features, prompts = inception_features(images), reference.image_prompts
    assert features is not None
    others = {"fid_inception": (reference.inception_real, reference.picture_prompts)}
    if reference.inception_base is not None:
        others["drift_inception"] = (reference.inception_base, prompts)
    scores = {}
    for name, (other, groups) in others.items():
        leave_outs = distance.frechet_leave_outs(features, other, prompts, groups, reference.num_prompts)
        # Not torch-fidelity's: a matrix root of 2048 × 2048 takes seconds, the inner products do not.
        x, y = features.astype(np.float64), other.astype(np.float64)
        value = distance.frechet(x @ x.T, x @ y.T, y @ y.T)
        score = _score(reference, value, jackknife_stderr(leave_outs))
        scores[name] = replace(score, extractor="inception-v3")
    return scores


def _per_prompt(features: NDArray[np.float32], reference: Reference) -> dict[str, NDArray[np.float64]]:
    values = {
        "clip_score": alignment.cosines(features, reference.text_features),
        "diversity": diversity.diversity(features, reference.num_seeds),
        "vendi": diversity.vendi(features, reference.num_seeds),
    }
    if reference.true_features is not None:
        values["similarity"] = alignment.cosines(features, reference.true_features)
    return values


def _paired_score(name: str, values: NDArray[np.float64], reference: Reference) -> Score:
    value, stderr = mean_stderr(values)
    if reference.base is None:
        return _score(reference, value, stderr)
    gain, gain_stderr = mean_stderr(values - np.array(reference.base.per_prompt[name]))
    return _score(reference, value, stderr, gain, gain_stderr)


@dataclass(frozen=True, eq=False, slots=True)
class _Estimate:
    """A distance, with its values when each prompt is left out in turn."""

    value: float
    leave_outs: NDArray[np.float64]


def _kd(features: NDArray[np.float32], reference: Reference) -> _Estimate:
    assert reference.real_features is not None
    sums = distance.KernelSums.of(
        features, reference.real_features, reference.image_prompts, reference.picture_prompts
    )
    return _Estimate(sums.distance(), sums.leave_outs(reference.num_prompts))


def _fid(features: NDArray[np.float32], reference: Reference) -> _Estimate:
    assert reference.real_features is not None
    return _Estimate(
        distance.fid(features, reference.real_features),
        distance.frechet_leave_outs(
            features,
            reference.real_features,
            reference.image_prompts,
            reference.picture_prompts,
            reference.num_prompts,
        ),
    )


@lru_cache(maxsize=4)
def _base_estimate(name: str, reference: Reference) -> _Estimate:
    """The base's distance to the real pictures: the same for every trial, so computed once."""
    assert reference.base is not None
    return {"kd": _kd, "fid": _fid}[name](reference.base.features, reference)


def _set_score(name: str, estimate: _Estimate, reference: Reference) -> Score:
    stderr = jackknife_stderr(estimate.leave_outs)
    if reference.base is None:
        return _score(reference, estimate.value, stderr)
    base = _base_estimate(name, reference)
    gain_stderr = jackknife_stderr(estimate.leave_outs - base.leave_outs)
    return _score(reference, estimate.value, stderr, estimate.value - base.value, gain_stderr)


def _drift(features: NDArray[np.float32], base: NDArray[np.float32], reference: Reference) -> Score:
    prompts = reference.image_prompts
    leave_outs = distance.frechet_leave_outs(features, base, prompts, prompts, reference.num_prompts)
    return _score(reference, distance.fid(features, base), jackknife_stderr(leave_outs))


def _score(
    reference: Reference,
    value: float,
    stderr: float,
    gain: float | None = None,
    gain_stderr: float | None = None,
) -> Score:
    return Score(
        value=value,
        stderr=stderr,
        num_images=reference.num_prompts * reference.num_seeds,
        num_prompts=reference.num_prompts,
        extractor=reference.extractor,
        gain=gain,
        gain_stderr=gain_stderr,
    )


def check_images(
    images: NDArray[np.uint8], base_images: NDArray[np.uint8] | None, num_seeds: int = 1
) -> None:
    """Raise TrialError for images, shape (n, height, width, 3), that must not be scored.

    That is when any of them is one flat colour (NaN latents decode to black) where the base's is not, or
    when all of them equal the base's: then the adapter was not loaded or learned nothing.
    """
    flat = _flat(images) if base_images is None else _flat(images) & ~_flat(base_images)
    if flat.any():
        first = int(flat.argmax())
        black = " (black)" if images[first].max() <= FLAT else ""
        raise TrialError(
            f"{flat.sum()} of {len(images)} images are one flat colour, "
            f"the first is of prompt {first // num_seeds}{black}"
        )
    if base_images is not None and np.array_equal(images, base_images):
        raise TrialError(f"all {len(images)} images equal the base model's: the adapter changes nothing")


def _flat(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    spread = images.max(axis=(1, 2)) - images.min(axis=(1, 2))
    flat: NDArray[np.bool_] = (spread <= FLAT).all(axis=1)
    return flat


# Several trainings of one configuration


def combine(evaluations: Sequence[Evaluation]) -> tuple[dict[str, Score], dict[str, float]]:
    """Scores of one configuration over its training seeds, and each metric's deviation between them.

    A value is the mean over seeds. Its variance is that over prompts (paired: of the prompts' means over
    seeds; else, and for gains, the mean of the trainings' own) plus the variance between training seeds
    over their number. The deviation between seeds is NaN, and left out of the variance, with one seed.
    `num_images` stays that of one training: a distance is biased according to it.
    """
    names = evaluations[0].scores
    spread = {name: _spread([evaluation.scores[name].value for evaluation in evaluations]) for name in names}
    return {name: _combined(name, evaluations) for name in names}, spread


def _combined(name: str, evaluations: Sequence[Evaluation]) -> Score:
    scores = [evaluation.scores[name] for evaluation in evaluations]
    values = [score.value for score in scores]
    if METRICS[name].paired:
        variance = mean_stderr(_prompt_means(name, evaluations))[1] ** 2
    else:
        variance = _mean_square([score.stderr for score in scores])
    gains = [score.gain for score in scores if score.gain is not None]
    gain_errors = [score.gain_stderr for score in scores if score.gain_stderr is not None]
    return Score(
        value=float(np.mean(values)),
        stderr=float(np.sqrt(variance + _seed_variance(values))),
        num_images=scores[0].num_images,
        num_prompts=scores[0].num_prompts,
        extractor=scores[0].extractor,
        gain=float(np.mean(gains)) if gains else None,
        gain_stderr=float(np.sqrt(_mean_square(gain_errors) + _seed_variance(gains))) if gains else None,
    )


def gain_between(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> dict[str, tuple[float, float]]:
    """Metric -> mean of `a` minus mean of `b`, with its standard error, for metrics that both hold.

    `a` and `b` are trainings of two configurations, scored on the same prompts and seeds. Paired metrics
    are compared prompt by prompt; for the others both errors are added, which is too wide rather than too
    narrow. The variance between training seeds of each side is added.
    """
    names = [name for name in a[0].scores if name in b[0].scores]
    return {name: _gain(name, a, b) for name in names}


def _gain(name: str, a: Sequence[Evaluation], b: Sequence[Evaluation]) -> tuple[float, float]:
    values = [[evaluation.scores[name].value for evaluation in side] for side in (a, b)]
    if METRICS[name].paired:
        variance = mean_stderr(_prompt_means(name, a) - _prompt_means(name, b))[1] ** 2
    else:
        errors = [[evaluation.scores[name].stderr for evaluation in side] for side in (a, b)]
        variance = sum(_mean_square(side) for side in errors)
    difference = float(np.mean(values[0]) - np.mean(values[1]))
    return difference, float(np.sqrt(variance + sum(_seed_variance(side) for side in values)))


def _prompt_means(name: str, evaluations: Sequence[Evaluation]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.mean([evaluation.per_prompt[name] for evaluation in evaluations], axis=0)
    return means


def _mean_square(errors: Sequence[float]) -> float:
    return float(np.mean(np.square(errors)))


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _seed_variance(values: Sequence[float]) -> float:
    """Of the mean over training seeds; 0 where one seed cannot tell."""
    return _spread(values) ** 2 / len(values) if len(values) > 1 else 0.0
