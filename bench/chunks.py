"""Chunks: rows that a network sees at once, as many as memory allows."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Chunks:
    """At most `size` rows at once; where memory runs out, half as many from then on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def map(self, function: Callable[[torch.Tensor], T], rows: torch.Tensor) -> list[T]:
        """`function` of each chunk of `rows` (n, …), in order.

        Raises OutOfMemoryError if one row is too much.
        """
        results: list[T] = []
        while len(rows):
            chunk = rows[: self.size]
            if self._fits(function, chunk, results):
                rows = rows[len(chunk) :]
                continue
            # Out of the handler, whose traceback holds what the attempt allocated.
            self.size = len(chunk) // 2
            torch.cuda.empty_cache()
        return results

    @staticmethod
    def _fits(function: Callable[[torch.Tensor], T], chunk: torch.Tensor, results: list[T]) -> bool:
        try:
            results.append(function(chunk))
            return True
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            return False
