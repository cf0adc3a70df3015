"""Stacked adapters: many trainings in one forward must be the trainings one would have run alone."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from bench.base import BaseModel, TrainingData, adaptable_names
from bench.blocks import text_readers
from bench.config import TrialConfig
from bench.denoising import DenoisingLoss
from bench.errors import UsageError
from trainers.dropout import Masked, Masks
from trainers.loop import train
from trainers.lora import Adapter, SlotModule, Slots, initial_adapter, load_adapter, save_adapter
from trainers.samples import batch, draw

CONFIGS = [
    TrialConfig(rank=4, alpha=8, learning_rate=1e-3, epochs=4, target_modules="attention", seed=1),
    TrialConfig(rank=2, alpha=2, learning_rate=5e-3, epochs=4, target_modules="all", seed=2),
    TrialConfig(rank=8, alpha=4, learning_rate=2e-4, epochs=2, target_modules="attention+ff", seed=3),
    TrialConfig(rank=3, alpha=6, learning_rate=1e-3, epochs=4, target_modules=("to_k", "conv1"), seed=1),
]


def trained(base: BaseModel, data: TrainingData, configs: list[TrialConfig]) -> dict[int, Adapter]:
    """Every config's adapter at its last epoch."""
    adapters = {}
    for rung in train(base, data, iter(configs), [2, 4], len(configs)):
        for index in rung.alive:
            if configs[index].epochs == rung.epoch(index):
                adapters[index] = rung.adapter(index)
    return adapters


def assert_close(a: Adapter, b: Adapter, tolerance: float = 5e-4) -> None:
    """AdamW divides a gradient by its own size: where one is all but zero, its rounding is an update."""
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert (tensor - b[key]).norm() <= tolerance * tensor.norm(), key


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_pack_gives_what_its_trials_give_alone(base: BaseModel, data: TrainingData, dropout: float) -> None:
    configs = [config.model_copy(update={"dropout": dropout}) for config in CONFIGS]
    packed = trained(base, data, configs)
    for index, config in enumerate(configs):
        assert_close(packed[index], trained(base, data, [config])[0])


def test_a_neighbour_with_dropout_changes_nothing(base: BaseModel, data: TrainingData) -> None:
    """Though less of what reads the same input lies together then."""
    neighbour = CONFIGS[2].model_copy(update={"dropout": 0.3})
    packed = trained(base, data, [CONFIGS[0], neighbour])
    assert_close(packed[0], trained(base, data, CONFIGS[:1])[0])


def test_all_that_reads_the_text_is_one_product(base: BaseModel) -> None:
    with Slots(base.unet, CONFIGS[:1]) as slots:
        sizes = sorted(len(group) for group in slots.groups)
    across = len(text_readers(base.unet))
    assert sizes[-1] == 2 * across > 2
    with Slots(base.unet, [CONFIGS[0].model_copy(update={"dropout": 0.1})]) as slots:
        assert max(len(group) for group in slots.groups) == 3


def test_a_module_that_is_called_alone_gives_its_part(base: BaseModel) -> None:
    """As by an attention that is not computed as ours: forward and gradients."""
    with Slots(base.unet, CONFIGS[:2]) as slots:
        slots.weights.normal_(generator=torch.Generator(base.device).manual_seed(0))
        slots.train(torch.zeros(2, 1, dtype=torch.int32, device=base.device))
        group = next(group for group in slots.groups if len(group) > 3)
        x = torch.randn(4, 5, group.in_features, device=base.device)
        ahead = torch.randn(len(group), 4, 5, group.out_features, device=base.device)
        results = []
        for outputs in (group.outputs(x), [module(x) for module in group.modules]):
            parts = zip(outputs, ahead, strict=True)
            rows = slots.gradient(sum((of * part).sum() for of, part in parts)).clone()
            results.append((torch.stack(list(outputs)), rows))
    for together, apart in zip(*results, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    assert results[0][1].any()


def test_trials_spread_over_cores_give_what_they_give_alone(
    base: BaseModel, wide: BaseModel, data: TrainingData
) -> None:
    configs = [*CONFIGS, CONFIGS[0].model_copy(update={"seed": 9, "epochs": 2, "dropout": 0.3})]
    standing, adapters, losses = [], {}, {}
    for rung in train(wide, data, iter(configs), [2, 4], 3):  # 0 and 1 go on beside 3, on other cores
        standing.append([(index, rung.epoch(index)) for index in rung.alive])
        adapters |= {index: rung.adapter(index) for index in rung.alive}
        losses |= {index: rung.losses[index] for index in rung.alive}
    assert standing == [[(0, 2), (1, 2), (2, 2)], [(0, 4), (1, 4), (3, 2)], [(3, 4), (4, 2)]]
    assert wide.attached is None
    for index, config in enumerate(configs):
        alone = trained(base, data, [config])[0]
        assert all(torch.equal(adapters[index][key], alone[key]) for key in alone)
        assert len(losses[index]) == config.epochs * 10 / 4 // 1


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["attention", "all"])
def test_training_equals_plain_peft_with_torch_adamw(
    base: BaseModel, data: TrainingData, config: TrialConfig
) -> None:
    ours = trained(base, data, [config])[0]
    plain = copy.deepcopy(base)
    unet = plain.unet
    names = sorted({key.rsplit(".lora_", 1)[0] for key in ours})
    unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names))
    with Slots(base.unet, [config]) as slots:
        start = initial_adapter(slots._shapes(0), config)
    parameters = {
        name.replace(".default", ""): parameter
        for name, parameter in unet.named_parameters()
        if parameter.requires_grad
    }
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    objective = DenoisingLoss(plain)
    for step in range(4 * 10 // config.batch_size):
        optimizer.zero_grad()
        objective(
            batch(data.buckets[0], data.empty, draw(data, config, step).to(base.device))
        ).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
        optimizer.step()
    assert_close(ours, {name: parameter.detach().cpu() for name, parameter in parameters.items()})


def test_training_changes_the_adapter_and_lowers_the_loss(base: BaseModel, data: TrainingData) -> None:
    config = CONFIGS[1].model_copy(update={"epochs": 40})
    rung = next(train(base, data, iter([config]), [40], 1))
    losses = rung.losses[0]
    assert len(losses) == 100
    assert sum(losses[-20:]) < sum(losses[:20])


def test_padding_stays_exactly_zero(base: BaseModel, data: TrainingData) -> None:
    for rung in train(base, data, iter(CONFIGS), [2], len(CONFIGS)):
        slots = rung._pack.slots
        for slot, config in enumerate(slots.configs):
            for A, _, B in slots._views(slots.weights[slot]).values():
                assert not A[config.rank :].any()
                assert not B[:, config.rank :].any()


def test_a_module_that_a_slot_does_not_target_stays_untouched(base: BaseModel, data: TrainingData) -> None:
    for rung in train(base, data, iter(CONFIGS[:2]), [4], len(CONFIGS[:2])):
        assert all(not key.startswith("down_blocks.0.resnets") for key in rung.adapter(0))
        assert any(key.startswith("down_blocks.0.resnets") for key in rung.adapter(1))


@pytest.mark.fault(9)
def test_a_trial_that_diverges_leaves_the_pack_and_its_neighbours_alone(
    base: BaseModel, data: TrainingData
) -> None:
    broken = CONFIGS[0].model_copy(update={"learning_rate": 1.0, "weight_decay": 1e30})
    rungs = list(train(base, data, iter([broken, CONFIGS[1]]), [4], 2))
    assert rungs[0].alive == [1]
    assert rungs[0].losses[0][-1] != rungs[0].losses[0][-1]  # NaN
    assert_close(trained(base, data, [broken, CONFIGS[1]])[1], trained(base, data, [CONFIGS[1]])[0])


def test_a_free_slot_takes_the_next_trial(base: BaseModel, data: TrainingData) -> None:
    configs = [*CONFIGS, CONFIGS[0].model_copy(update={"seed": 9, "epochs": 2})]
    standing, adapters = [], {}
    for rung in train(base, data, iter(configs), [2, 4], 2):
        standing.append([(index, rung.epoch(index)) for index in rung.alive])
        adapters |= {index: rung.adapter(index) for index in rung.alive}
    assert standing == [
        [(0, 2), (1, 2)],
        [(0, 4), (1, 4)],
        [(2, 2), (3, 2)],
        [(3, 4), (4, 2)],
    ]
    for index, config in enumerate(configs):
        assert_close(adapters[index], trained(base, data, [config])[0])


@pytest.mark.fault(2)
def test_a_trial_is_the_same_to_the_bit_whoever_had_its_slot_before(
    base: BaseModel, data: TrainingData
) -> None:
    """On a processor: what a search comes to must not show which trials a killed process had trained."""
    if base.device.type == "cuda":
        pytest.skip("a GPU keeps the slot, for its graph")
    ranks = [CONFIGS[0].model_copy(update={"rank": rank, "seed": rank}) for rank in (8, 2)]
    modules = [CONFIGS[1], CONFIGS[3].model_copy(update={"dropout": 0.3})]
    for before, config in (ranks, modules):
        rungs = train(base, data, iter([before, config]), [4], 1)
        after = [rung.adapter(index) for rung in rungs for index in rung.alive][1]
        alone = trained(base, data, [config])[0]
        assert all(torch.equal(after[key], alone[key]) for key in alone)


@pytest.mark.parametrize("fields", [{"rank": 9}, {"target_modules": "all"}, {"dropout": 0.1}])
def test_what_no_slot_has_had_needs_another_graph(base: BaseModel, fields: dict[str, Any]) -> None:
    with Slots(base.unet, CONFIGS[:1]) as slots:
        assert slots.fits(CONFIGS[0].model_copy(update={"rank": 2, "target_modules": ("to_k",)}))
        assert not slots.fits(CONFIGS[0].model_copy(update=fields))


def test_a_mask_that_autograd_does_not_see_keeps_the_gradient_of_a_convolution() -> None:
    """As a kernel's: it writes into memory of its own."""
    kept = (torch.rand(2, 3, 4, 4) > 0.5).float()

    def mask(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x).copy_(x.detach() * kept)

    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    ahead = torch.randn(2, 3, 4, 4)
    (gradient,) = torch.autograd.grad(Masked.apply(x, mask), x, ahead)
    assert torch.equal(gradient, ahead * kept)


def test_memory_that_runs_out_while_slots_are_made_leaves_the_base_alone(
    base: BaseModel, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError

    names = adaptable_names(base.unet)
    monkeypatch.setattr("trainers.loop.RowOptimizer", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        trained(base, data, CONFIGS[:1])
    assert adaptable_names(base.unet) == names


def test_configs_are_taken_when_a_slot_is_free(base: BaseModel, data: TrainingData) -> None:
    taken = []

    def configs() -> Iterator[TrialConfig]:
        for number in range(3):
            taken.append(number)
            yield CONFIGS[0].model_copy(update={"seed": number})

    seen = [list(taken) for _ in train(base, data, configs(), [4], 1)]
    assert seen == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize(("samples", "dropout"), [(2, 0.0), (1, 0.0), (0, 0.3)])
def test_a_trial_that_does_not_fit_is_trained_in_less_memory(
    base: BaseModel, data: TrainingData, monkeypatch: pytest.MonkeyPatch, samples: int, dropout: float
) -> None:
    """`samples` fit at once; with 0, one does, if its activations are computed again."""
    config = CONFIGS[1].model_copy(update={"dropout": dropout})
    plain = trained(base, data, [config])[0]
    predict = base.predict

    def small_card(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        fits = len(latents) <= samples if samples else base.unet.is_gradient_checkpointing
        if not fits:
            raise torch.OutOfMemoryError
        return predict(latents, *rest)

    if dropout:  # masks are drawn batch by batch on a CPU
        config = config.model_copy(update={"batch_size": 1})
        plain = trained(base, data, [config])[0]
    monkeypatch.setattr(base, "predict", small_card)
    assert_close(trained(base, data, [config])[0], plain)
    assert not base.unet.is_gradient_checkpointing


def test_what_no_thrift_makes_fit_is_out_of_memory(
    base: BaseModel, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_card(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(base, "predict", no_card)
    with pytest.raises(torch.OutOfMemoryError):
        trained(base, data, CONFIGS[:1])


def test_a_stopped_trial_does_not_go_on(base: BaseModel, data: TrainingData) -> None:
    alive = []
    for rung in train(base, data, iter(CONFIGS), [2, 4], len(CONFIGS)):
        alive.append(list(rung.alive))
        rung.stop(0)
    assert alive == [[0, 1, 2, 3], [1, 3]]


def test_the_base_is_left_as_it_was(base: BaseModel, data: TrainingData) -> None:
    before = {name: type(module) for name, module in base.unet.named_modules()}
    list(train(base, data, iter(CONFIGS[:1]), [4], len(CONFIGS[:1])))
    assert {name: type(module) for name, module in base.unet.named_modules()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="adapters are merged on a CPU only")
def test_merging_for_drawing_changes_no_output(base: BaseModel, data: TrainingData) -> None:
    for _ in train(base, data, iter(CONFIGS[:2]), [4], len(CONFIGS[:2])):
        latents = data.buckets[0].mean[:2].repeat(2, 1, 1, 1)
        arguments = (latents, torch.full((4,), 500), data.buckets[0].text[[0, 1, 0, 1]])
        with torch.no_grad():
            assert base.attached
            base.attached.focus([0, 1])
            merged = base.predict(*arguments)
            groups = [m.group for m in base.unet.modules() if isinstance(m, SlotModule)]
            assert any(group.merged is not None for group in groups)
            for group in groups:
                group.merged = None
            assert torch.allclose(base.predict(*arguments), merged, atol=1e-5)


def test_a_saved_adapter_is_read_back(tmp_path: Path, base: BaseModel, data: TrainingData) -> None:
    adapter = trained(base, data, CONFIGS[:2])[1]
    save_adapter(tmp_path / "adapter.safetensors", adapter, CONFIGS[1])
    read = load_adapter(tmp_path / "adapter.safetensors")
    assert read.keys() == adapter.keys()
    assert all(torch.equal(read[key], adapter[key]) for key in adapter)


def test_an_adapter_of_other_modules_is_refused(base: BaseModel, data: TrainingData) -> None:
    adapter = trained(base, data, CONFIGS[:1])[0]
    with Slots(base.unet, [CONFIGS[1]]) as slots, pytest.raises(UsageError, match="does not fit"):
        slots.load(0, adapter)


@pytest.mark.fault(13)
def test_a_truncated_adapter_is_refused(tmp_path: Path, base: BaseModel, data: TrainingData) -> None:
    file = tmp_path / "adapter.safetensors"
    save_adapter(file, trained(base, data, CONFIGS[:1])[0], CONFIGS[0])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"adapter\.safetensors: not a readable adapter"):
        load_adapter(file)


def test_a_listed_module_that_the_base_lacks_is_refused(base: BaseModel) -> None:
    config = TrialConfig(rank=4, alpha=4, learning_rate=1e-3, epochs=1, target_modules=("to_q", "nowhere"))
    with pytest.raises(UsageError, match="'nowhere' matches no linear or convolution"):
        Slots(base.unet, [config])


def test_two_epochs_of_few_images_may_end_at_the_same_step(base: BaseModel, data: TrainingData) -> None:
    few = replace(data, buckets=(data.buckets[0][:2],))
    rungs = [
        (rung.epoch(0), len(rung.losses[0]))
        for rung in train(base, few, iter(CONFIGS[:1]), [1, 2, 4], len(CONFIGS[:1]))
    ]
    assert rungs == [(1, 1), (2, 1), (4, 2)]


def test_warm_up_then_a_constant_rate_keeps_epochs_nested(base: BaseModel, data: TrainingData) -> None:
    config = CONFIGS[0].model_copy(update={"warmup_steps": 6})
    long = {rung.epoch(0): rung.adapter(0) for rung in train(base, data, iter([config]), [2, 4], 1)}
    short = config.model_copy(update={"epochs": 2})
    alone = next(train(base, data, iter([short]), [2], 1)).adapter(0)
    assert_close(long[2], alone, tolerance=0 if base.device.type == "cpu" else 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_on_a_processor_is_numpys_16_bits_by_place(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    masks = Masks(2, 3, 1, torch.device("cpu"))
    masks.set_rates([0.3, 0.0])
    masks.set_keys(torch.arange(6, dtype=torch.int32).view(2, 3))
    x = torch.ones(6, 5, 3, 7, dtype=dtype).to(memory_format=layout)
    kept = masks.mask(0)(x)
    generator = np.random.Generator(np.random.SFC64(int(masks._keys[0, 0, 0]) & 0xFFFFFFFF))
    expected = generator.integers(0, 1 << 16, (3, 5, 3, 7), dtype=np.uint16) >= round(0.3 * (1 << 16))
    np.testing.assert_array_equal(kept[:3].float().numpy(), expected)
    assert kept.dtype == dtype and kept[3:].all()
