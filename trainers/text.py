"""Text encoders that train with the UNet: they read the captions of every batch anew."""

import torch

from bench.base import BaseModel, TextEmbedding, TrainingData
from trainers.samples import Draw


class CaptionReader:
    """The captions of some data, and text encoders to put adapters into."""

    def __init__(self, base: BaseModel, data: TrainingData) -> None:
        """Raises ValueError for data without captions."""
        self.encoders = base.text_twins()
        self._read, self._empty_is_zero = base.family.read, base.empty_is_zero
        self._empty = base.tokens([""])
        self._tokens: list[torch.Tensor] = []
        """By bucket, that of images of the class last: (wordings, images, encoders, length)."""
        for images in [*data.buckets, *([data.prior] if data.prior else [])]:
            if len(images.captions) != len(images.text):
                raise ValueError("to train text encoders, data need their captions")
            tokens = base.tokens(images.captions)
            self._tokens.append(torch.unflatten(tokens, 0, (-1, len(images))))

    def read(self, bucket: int, drawn: Draw, cached: TextEmbedding, trained: torch.Tensor) -> TextEmbedding:
        """Conditioning of n samples, ordered by slot: that of `trained` slots (K, 1) is read anew, with
        gradients; others keep what is cached."""
        tokens = self._tokens[bucket][drawn.wording, drawn.index]
        tokens = torch.where(drawn.dropped.view(-1, 1, 1), self._empty, tokens)
        hidden, pooled = self._read(list(self.encoders.values()), tokens)
        anew = trained.expand(-1, len(tokens) // len(trained)).flatten()
        if self._empty_is_zero:
            anew = anew & ~drawn.dropped
        return TextEmbedding(
            torch.where(anew.view(-1, 1, 1), hidden, cached.hidden),
            torch.where(anew.view(-1, 1), pooled, cached.pooled),
        )
