"""Scores by concept, where the prompts show several: one value a prompt -> means over the prompts of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.scoring.statistics import mean_stderr


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptScore:
    """The value of one metric on the prompts of one concept, with its standard error over them."""

    value: float
    stderr: float | None
    """None of a single prompt."""
    num_prompts: int
    gain: float | None = None
    """value minus the base model's on the same prompts."""
    gain_stderr: float | None = None


ConceptScores = dict[str, dict[str, ConceptScore]]
"""By concept, then by metric."""


def scores_by_concept(
    concepts: Sequence[str], values: Mapping[str, ArrayLike], base: Mapping[str, ArrayLike] | None = None
) -> ConceptScores:
    """Of each prompt its concept, and by metric one value; `base` has the base model's.

    Concepts are in the order of the prompts. Empty where all prompts are of one.
    """
    if len(set(concepts)) < 2:
        return {}
    arrays = {name: np.asarray(listed, np.float64) for name, listed in values.items()}
    of_base = {name: np.asarray(listed, np.float64) for name, listed in (base or {}).items()}
    masks = {name: np.array([name == other for other in concepts]) for name in dict.fromkeys(concepts)}
    return {
        concept: {
            name: _score(array[mask], of_base[name][mask] if name in of_base else None)
            for name, array in arrays.items()
        }
        for concept, mask in masks.items()
    }


def plain(scores: ConceptScores) -> dict[str, dict[str, dict[str, Any]]]:
    """As JSON holds them."""
    return {
        concept: {name: asdict(score) for name, score in of_concept.items()}
        for concept, of_concept in scores.items()
    }


def _score(values: NDArray[np.float64], base: NDArray[np.float64] | None) -> ConceptScore:
    value, stderr = _mean(values)
    gain, gain_stderr = (None, None) if base is None else _mean(values - base)
    return ConceptScore(
        value=value, stderr=stderr, num_prompts=len(values), gain=gain, gain_stderr=gain_stderr
    )


def _mean(values: NDArray[np.float64]) -> tuple[float, float | None]:
    return (float(values[0]), None) if len(values) == 1 else mean_stderr(values)
