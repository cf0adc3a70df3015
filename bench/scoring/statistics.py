"""Statistics: errors and tests whose unit is the prompt."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError


def mean_stderr(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of one value a prompt; raises UsageError with fewer than two."""
    array = np.asarray(values, np.float64)
    _check_prompts(len(array))
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array)))


def jackknife(statistic: Callable[[NDArray[np.intp]], float], num_prompts: int) -> float:
    """Delete-one-prompt standard error of `statistic`, which takes the indices of the prompts kept.

    SE² = (P−1)/P · Σ (θ₋ₚ − θ̄)² (Efron & Stein 1981). Raises UsageError with fewer than two prompts.
    """
    everyone = np.arange(num_prompts)
    return jackknife_stderr(np.array([statistic(everyone[everyone != prompt]) for prompt in everyone]))


def jackknife_stderr(leave_outs: NDArray[np.float64]) -> float:
    """`jackknife` from the values with each prompt left out, shape (prompts,)."""
    count = len(leave_outs)
    _check_prompts(count)
    return float(np.sqrt((count - 1) / count * np.square(leave_outs - leave_outs.mean()).sum()))


def _check_prompts(count: int) -> None:
    if count < 2:
        raise UsageError(f"a standard error needs at least 2 prompts, got {count}")
