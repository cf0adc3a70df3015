"""Alignment: does an image show what its prompt says, and does it look like the true picture?"""

import numpy as np
from numpy.typing import NDArray


def cosines(features: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean cosine per prompt, shape (prompts,), between its images and its target.

    `features` are unit image features, shape (prompts × seeds, dim), prompt by prompt; `targets` one unit
    feature a prompt, shape (prompts, dim). With text features this is the CLIP score of Hessel et al. 2021
    (arXiv 2104.08718) left raw: neither scaled by 2.5 or 100 nor cut off at 0. With the features of the
    true pictures it is the image-image similarity of DreamBooth (arXiv 2208.12242, CLIP-I), each image
    against the one real picture with its caption.
    """
    prompts, dim = targets.shape
    images = features.astype(np.float64).reshape(prompts, -1, dim)
    means: NDArray[np.float64] = np.einsum("psd,pd->ps", images, targets.astype(np.float64)).mean(axis=1)
    return means
