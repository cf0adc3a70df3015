"""Diversity: how much do the images of one prompt differ from seed to seed?"""

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError


def diversity(features: NDArray[np.float32], num_seeds: int) -> NDArray[np.float64]:
    """Mean 1 − cosine over the pairs of seeds of each prompt, shape (prompts,), in [0, 2]; higher is better.

    `features` are unit features, shape (prompts × seeds, dim), prompt by prompt. Equal images give 0. It is
    unbiased at any number of seeds, and its standard error is that of a mean over prompts.
    Raises UsageError with fewer than two seeds. Noise is diverse too: never optimise this alone.
    """
    kernels = _kernels(features, num_seeds)
    off_diagonal = kernels.sum(axis=(1, 2)) - np.trace(kernels, axis1=1, axis2=2)
    values: NDArray[np.float64] = 1 - off_diagonal / (num_seeds * (num_seeds - 1))
    return values


def vendi(features: NDArray[np.float32], num_seeds: int) -> NDArray[np.float64]:
    """Vendi score of each prompt's seeds, shape (prompts,): effective number of images, in [1, seeds].

    exp(−Σ λ log λ) over the eigenvalues λ of K/n with the cosine kernel (Friedman & Dieng 2022,
    arXiv 2210.02410); higher is better. `features` as for `diversity`; the standard error is that of a mean
    over prompts. Comparable only at one number of seeds. Raises UsageError with fewer than two.
    """
    eigenvalues = np.linalg.eigvalsh(_kernels(features, num_seeds) / num_seeds)
    positive = np.where(eigenvalues > 1e-12, eigenvalues, 1.0)
    values: NDArray[np.float64] = np.exp(-(positive * np.log(positive)).sum(axis=1))
    return values


def _kernels(features: NDArray[np.float32], num_seeds: int) -> NDArray[np.float64]:
    if num_seeds < 2:
        raise UsageError(f"diversity needs at least 2 seeds a prompt, got {num_seeds}")
    images = features.astype(np.float64).reshape(-1, num_seeds, features.shape[1])
    return images @ images.transpose(0, 2, 1)
