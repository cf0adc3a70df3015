"""Features of what many runs look at, from the cache: real pictures, the base's images, prompts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.cache import cached_array
from bench.scoring.embed import FeatureNetwork, Scorer, inception_features, inception_fingerprint

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kept:
    """A network that remembers what it saw: for images that will be seen again."""

    network: FeatureNetwork | Scorer

    @property
    def name(self) -> str:
        return self.network.name

    def embed_images(self, images: NDArray[np.uint8]) -> Features:
        """See FeatureNetwork.embed_images."""
        inputs = ["image features 1", self.network.fingerprint, digest(images)]
        return cached_array(inputs, lambda: self.network.embed_images(images), self.network.device)


def text_features(scorer: Scorer, texts: Sequence[str]) -> Features:
    """See Scorer.embed_texts."""
    inputs = ["text features 1", scorer.fingerprint, *texts]
    return cached_array(inputs, lambda: scorer.embed_texts(texts), scorer.device)


def kept_inception(images: NDArray[np.uint8]) -> Features | None:
    """See inception_features."""
    fingerprint = inception_fingerprint()
    if fingerprint is None:
        return None

    def compute() -> Features:
        features = inception_features(images)
        assert features is not None
        return features

    return cached_array(["inception 1", fingerprint, digest(images)], compute, torch.device("cpu"))


def digest(images: NDArray[np.uint8]) -> str:
    """SHA-256 over shape and pixels."""
    return hashlib.sha256(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()
