"""What an interrupted training goes on from: which of its rungs stay."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.begun import Begun, rewind, write_begun
from bench.config import TrialConfig
from bench.run import Evaluation, epoch_folder, write_evaluation

CONFIG = TrialConfig(rank=2, alpha=2, learning_rate=1e-4, epochs=200)
Write = Callable[..., None]


@pytest.fixture
def begin(tmp_path: Path) -> Write:
    """`begin(epoch, *rungs)`: a training in tmp_path that passed these rungs and goes on from an epoch."""

    def begun(epoch: int, *rungs: int) -> None:
        scored = Evaluation(scores={}, per_prompt={}, features=np.zeros((1, 2), np.float32))
        for rung in rungs:
            write_evaluation(epoch_folder(tmp_path, rung), scored, np.zeros((1, 8, 8, 3), np.uint8))
        state = {"weights": {"a": torch.ones(2)}}
        write_begun(tmp_path, Begun(config=CONFIG, epoch=epoch, losses=[0.5], state=state))

    return begun


def rungs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("epoch-*"))


def test_of_rungs_of_two_and_three_digits_those_after_the_state_go(begin: Write, tmp_path: Path) -> None:
    begin(100, 50, 99, 100, 150, 200)
    begun = rewind(tmp_path, CONFIG)
    assert begun and begun.epoch == 100
    assert rungs(tmp_path) == ["epoch-100", "epoch-50", "epoch-99"]


def test_rungs_of_three_digits_after_a_state_of_two_go(begin: Write, tmp_path: Path) -> None:
    begin(99, 99, 100)
    begun = rewind(tmp_path, CONFIG)
    assert begun and begun.epoch == 99
    assert rungs(tmp_path) == ["epoch-99"]


def test_a_state_whose_rung_is_not_recorded_is_begun_anew(begin: Write, tmp_path: Path) -> None:
    begin(100, 99)
    assert rewind(tmp_path, CONFIG) is None
    assert not tmp_path.exists()
