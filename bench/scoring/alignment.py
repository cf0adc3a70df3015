"""Alignment: does an image show what its prompt says, and does it look like the true picture?"""

import numpy as np
from numpy.typing import NDArray


def cosines(features: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean cosine per prompt, shape (prompts,), between its images and its target; higher is nearer.

    `features` are unit image features, shape (prompts × seeds, dim), prompt by prompt; `targets` one unit
    feature a prompt, shape (prompts, dim). With text features this is the CLIP score of Hessel et al. 2021
    (arXiv 2104.08718) left raw: neither scaled by 2.5 or 100 nor cut off at 0. With the features of the
    true pictures it is the image-image similarity of DreamBooth (arXiv 2208.12242, CLIP-I), each image
    against the one real picture with its caption. Its standard error is that of a mean over prompts.
    """
    means: NDArray[np.float64] = image_cosines(features, targets).mean(axis=1)
    return means


def image_cosines(features: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each image to its prompt's target, shape (prompts, seeds)."""
    prompts, dim = targets.shape
    images = features.astype(np.float64).reshape(prompts, -1, dim)
    return np.asarray(np.einsum("psd,pd->ps", images, targets.astype(np.float64)))


def hessel(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """CLIPScore as published, 2.5·max(cos, 0) of each image's raw cosine, of any shape (Hessel et al. 2021).

    The cut at 0 is of single images: average afterwards. torchmetrics cuts the mean instead, so that it
    differs as soon as one cosine is negative, and it scales by 100. Comparable with published values only
    on ViT-B/32 with the prefix "A photo depicts ".
    """
    return 2.5 * np.maximum(cosines, 0.0)


def percent(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """100·cos, the scale in which many papers print CLIP scores; not cut off at 0."""
    return 100.0 * cosines
