"""AdamW in 8 bits gives what bitsandbytes gives, beside any neighbours, and goes on where it was."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from rich.console import Console

from bench.base import BaseModel, TrainingData
from bench.config import TrialConfig, refuse_missing_8bit
from bench.errors import UsageError
from bench.session import Command, Engine, run_search
from bench.space import SearchSpace
from trainers.adapters import attach
from trainers.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from trainers.loop import Pack, Trial, train
from trainers.lora import Adapter
from trainers.optimizer import RowOptimizer

PLAIN = TrialConfig(
    rank=128, alpha=128, learning_rate=1e-3, epochs=2, batch_size=2, target_modules=("to_q", "to_v"), seed=3
)
EIGHT = PLAIN.model_copy(update={"optimizer": "adamw8bit", "seed": 4})
PRODIGY = PLAIN.model_copy(update={"optimizer": "prodigy", "learning_rate": 1.0})
SHAPES = {"m.lora_A.weight": (64, 100), "n.lora_A.weight": (4, 30), "m.lora_B.weight": (90, 64)}
"""A part of a block at the end, a tensor that stays in 32 bits, one whose rows are padded."""
PADDING = 3


def tensors(row: torch.Tensor, number: int = 0) -> dict[str, torch.Tensor]:
    """Views of a row in which the last tensor lies within a wider one."""
    sizes = [64 * 100, 4 * 30, 90 * (64 + PADDING)]
    first, second, third = row.split(sizes)
    found = first.view(64, 100), second.view(4, 30), third.view(90, -1)[:, :64]
    return dict(zip(SHAPES, found, strict=True))


def trained(base: BaseModel, data: TrainingData, configs: Sequence[TrialConfig], slots: int) -> list[Adapter]:
    found: dict[int, Adapter] = {}
    for rung in train(base, data, iter(configs), [2], slots):
        found |= {index: rung.adapter(index) for index in rung.alive}
    return [found[index] for index in range(len(configs))]


def assert_close(a: Adapter, b: Adapter, tolerance: float) -> None:
    """Relative norm of the difference, over the whole adapter."""
    difference = sum(float((a[key] - b[key]).square().sum()) for key in a) ** 0.5
    assert difference <= tolerance * sum(float(tensor.square().sum()) for tensor in b.values()) ** 0.5


def test_an_update_is_that_of_bitsandbytes(base: BaseModel) -> None:
    config = EIGHT.model_copy(update={"lora_plus": 4.0})
    generator = torch.Generator().manual_seed(0)
    num_A, width = 6400 + 120, 6400 + 120 + 90 * (64 + PADDING)
    weights = torch.randn(2, width, generator=generator).to(base.device)
    theirs = {key: torch.nn.Parameter(each.clone()) for key, each in tensors(weights[1]).items()}
    of_A, of_B = ([each for key, each in theirs.items() if name in key] for name in ("lora_A", "lora_B"))
    groups = [{"params": of_A}, {"params": of_B, "lr": 4e-3}]
    oracle = AdamW8bit(groups, lr=1e-3, weight_decay=config.weight_decay)
    factor = torch.tensor([[1.0], [2.0]]).to(base.device)
    ours = RowOptimizer(weights, num_A, factor, [config] * 2, tensors=tensors)
    for step in range(5):
        gradient = torch.randn(2, width, generator=generator).to(base.device)
        tensors_of = tensors(gradient[1])
        for row in gradient:  # nothing is learned of padding
            padded = row[num_A:].view(90, -1)
            padded[:, 64:] = 0
        for key, parameter in theirs.items():
            parameter.grad = tensors_of[key].clone() * (2 if "lora_B" in key else 1)
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), config.max_grad_norm)
        oracle.step()
        ours.update(weights, gradient, [config] * 2, [1e-3] * 2, [step] * 2)
    for key, tensor in tensors(weights[1]).items():
        torch.testing.assert_close(tensor, theirs[key].detach(), atol=1e-6, rtol=1e-5)
    kept = ours.state(1)
    assert [kept["mean"][key].dtype for key in SHAPES] == [torch.uint8, torch.float32, torch.uint8]
    assert [len(kept["mean scales"][key]) for key in SHAPES] == [25, 0, 23]
    assert not ours.rows  # nothing in 32 bits where no row needs it


def test_a_mixed_pack_gives_what_its_trials_give_alone(base: BaseModel, data: TrainingData) -> None:
    configs = [PLAIN, EIGHT, PRODIGY, EIGHT.model_copy(update={"seed": 5, "rank": 100})]
    packed = trained(base, data, configs, len(configs))
    for config, adapter in zip(configs, packed, strict=True):
        (alone,) = trained(base, data, [config], 1)
        # Where rounding of a gradient changes a code, the weight changes by a part of its update.
        assert_close(adapter, alone, 1e-2 if config.optimizer == "adamw8bit" else 1e-3)
    assert any(not torch.equal(packed[0][key], packed[1][key]) for key in packed[0])


def test_a_slot_begins_anew(base: BaseModel, data: TrainingData) -> None:
    again = EIGHT.model_copy(update={"seed": 5})
    first, second, third = trained(base, data, [EIGHT, PLAIN, again], 1)
    for config, adapter in ((EIGHT, first), (PLAIN, second), (again, third)):
        assert_close(trained(base, data, [config], 1)[0], adapter, 1e-3)


def test_a_checkpoint_goes_on_to_the_same_bits(base: BaseModel, data: TrainingData, tmp_path: Path) -> None:
    def trial() -> Trial:
        return Trial(0, EIGHT, [(2, 10)])

    with Pack(base, data, [whole := trial()]) as pack:
        pack.advance(lambda number: None, 10)
        expected = pack.state(whole)
    with Pack(base, data, [half := trial()]) as pack:
        pack.advance(lambda number: None, 4)
        checkpoint = Checkpoint(step=4, state=pack.state(half), losses=half.losses)
        folder = write_checkpoint(tmp_path, checkpoint, EIGHT, {}, None)
    rest = Trial(0, EIGHT, [(2, 10)], step=4, state=read_checkpoint(folder).state)
    with Pack(base, data, [rest]) as pack:
        pack.advance(lambda number: None, 6)
        found = pack.state(rest)
    assert found.keys() == expected.keys() == {"weights", "mean", "square", "mean scales", "square scales"}
    assert {tensor.dtype for tensor in found["mean"].values()} >= {torch.uint8}
    if base.device.type == "cpu":
        for part, of_part in expected.items():
            assert all(torch.equal(found[part][key], tensor) for key, tensor in of_part.items()), part
        assert half.losses + rest.losses == whole.losses


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = r"^optimizer adamw8bit needs bitsandbytes; install it with: pip install 'bench\[8bit\]'$"
    with pytest.raises(UsageError, match=message):
        refuse_missing_8bit()
    data = {"base": "emoji-xl", "data": "emoji/pixel16", "default": PLAIN.model_dump()}
    parameters = {"optimizer": {"choices": ["adamw", "adamw8bit"]}}
    command = Command(
        space=SearchSpace.model_validate(data | {"parameters": parameters}),
        name=None,
        folder=tmp_path,
        seed=0,
        engine=Engine(train=train, attach=attach),
        console=Console(),
    )
    with pytest.raises(UsageError, match=message):
        run_search(command)
    assert not list(tmp_path.iterdir())
