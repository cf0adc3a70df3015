"""Chunks: the same rows whatever their number at once; fewer at once where memory runs out."""

import pytest
import torch

from bench.chunks import Chunks


class Small:
    """A network on a device that holds `limit` rows."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: list[int] = []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(rows))
        if len(rows) > self.limit:
            raise torch.OutOfMemoryError("too many rows")
        return rows * 2


@pytest.mark.parametrize(("limit", "seen"), [(9, [4, 4, 2]), (2, [4, 2, 2, 2, 2, 2]), (1, [4, 2] + [1] * 10)])
def test_where_memory_runs_out_there_are_fewer_at_once(limit: int, seen: list[int]) -> None:
    rows, network = torch.arange(20).view(10, 2), Small(limit)
    assert torch.equal(torch.cat(Chunks(4).map(network, rows)), rows * 2)
    assert network.seen == seen


def test_what_did_not_fit_is_not_tried_again() -> None:
    chunks, network = Chunks(8), Small(2)
    chunks.map(network, torch.zeros(8))
    network.seen.clear()
    chunks.map(network, torch.zeros(5))
    assert network.seen == [2, 2, 1]


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Chunks(4).map(Small(0), torch.zeros(4))
