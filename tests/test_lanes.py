"""Lanes: where work is done, and when its error is raised."""

import pytest

from bench.lanes import Inline


def test_inline_work_is_done_at_once_and_its_error_is_raised_where_its_result_is_asked_for() -> None:
    inline, done = Inline(None), []
    inline.submit(done.append, 1)
    assert done == [1]
    assert inline.submit(max, 1, 2).result() == 2
    failed = inline.submit(int, "x")
    with pytest.raises(ValueError):
        failed.result()
