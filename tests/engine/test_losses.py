"""The gap of the loss: an adapter that learned its pictures by heart has one, the base has none."""

import numpy as np
import torch
from numpy.typing import NDArray

from bench.base import BaseModel, Bucket, TrainingData
from bench.config import TrialConfig
from bench.scoring.losses import LossGap
from trainers.loop import train


def gap_of(base: BaseModel, data: TrainingData) -> LossGap:
    generator = torch.Generator().manual_seed(9)
    (train,) = data.buckets
    mean = torch.randn(train.mean.shape, generator=generator).to(base.device)
    held_out = Bucket(mean=mean, std=train.std, text=train.text)
    return LossGap(base, train, held_out)


def test_the_base_has_no_gap_beyond_its_own(base: BaseModel, data: TrainingData) -> None:
    gap = gap_of(base, data)
    score = gap.score(gap.losses(1)[0])
    assert score.value == 0
    assert (score.num_images, score.extractor) == (20, "UNet")


def test_the_same_pictures_and_noises_every_time(base: BaseModel, data: TrainingData) -> None:
    first, second = (gap_of(base, data).losses(1) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_slots_have_the_losses_they_have_alone(base: BaseModel, data: TrainingData) -> None:
    gap = gap_of(base, data)
    configs = [TrialConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=1, seed=seed) for seed in (1, 2)]
    packed = trained_losses(gap, base, data, configs)
    for slot, config in enumerate(configs):
        alone = trained_losses(gap, base, data, [config])
        np.testing.assert_allclose(packed[slot], alone[0], rtol=1e-4)


def test_learning_by_heart_opens_the_gap(base: BaseModel, data: TrainingData) -> None:
    gap = gap_of(base, data)
    config = TrialConfig(
        rank=16, alpha=32, learning_rate=5e-3, epochs=150, target_modules="all", batch_size=10
    )
    score = gap.score(trained_losses(gap, base, data, [config])[0])
    assert score.value > 3 * score.stderr > 0


def trained_losses(
    gap: LossGap, base: BaseModel, data: TrainingData, configs: list[TrialConfig]
) -> NDArray[np.float64]:
    """Of the adapters after their last epoch, one row a config."""
    rungs = train(base, data, iter(configs), [configs[0].epochs], len(configs))
    return [gap.losses(len(rung.alive)) for rung in rungs][0]
