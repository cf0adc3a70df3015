"""`bench speed`: real steps and images on a tiny base, and the work in them counted in another way."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from rich.console import Console
from torch import nn

from bench import cli, rehearsal
from bench.base import BaseModel
from bench.config import TrialConfig
from bench.errors import BenchError
from bench.fit import heaviest
from bench.flops import image_flops, sample_flops
from bench.rehearsal import random_data, rehearse
from bench.space import Sampler, SearchSpace
from bench.speed import estimate, measure_speed, rate
from reports.speed import table
from trainers.loop import train

SAMPLER = Sampler(steps=2, guidance=2)


def config(**fields: Any) -> TrialConfig:
    given = {"rank": 4, "alpha": 8, "learning_rate": 1e-4, "epochs": 2, "batch_size": 2}
    return TrialConfig(**{**given, **fields})


def space(**fields: Any) -> SearchSpace:
    given = {
        "base": "tiny",
        "parameters": {
            "rank": {"choices": [4, 16]},
            "epochs": {"choices": [1, 2]},
            "target_modules": {"choices": ["attention", "all"]},
        },
        "default": config().model_dump(),
        "sampler": SAMPLER.model_dump(),
        "slots": 2,
    }
    return SearchSpace.model_validate({**given, **fields})


# Rehearsals


def test_a_rehearsal_trains_and_draws_for_real_and_leaves_the_base_as_it_was(base: BaseModel) -> None:
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    found = rehearse(base, train, config(), 3, SAMPLER, seconds=0.0)
    assert found.num_slots == 3
    assert len(found.step_seconds) == len(found.draw_seconds) == 2
    assert min(found.step_seconds) > 0 and min(found.draw_seconds) > 0
    assert found.num_images == 3 * 5, "16 images at once, shared by three"
    assert found.allocated == found.reserved + found.drawing > 0
    after = base.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert base.attached is None


def test_training_that_is_given_up_leaves_the_base_bare(base: BaseModel) -> None:
    rungs = train(base, random_data(base, 2), iter([config()]), (1, 2), 1)
    next(rungs)
    assert base.attached is not None
    rungs.close()  # type: ignore[attr-defined]
    assert base.attached is None


def test_readings_end_after_the_most_repeats(base: BaseModel) -> None:
    found = rehearse(base, train, config(batch_size=1), 1, Sampler(steps=1, guidance=1), seconds=1e9)
    assert len(found.step_seconds) == len(found.draw_seconds) == rehearsal.REPEATS[1]


def test_random_data_has_the_shapes_of_real_data(base: BaseModel) -> None:
    data, real = random_data(base, 3), base.encode_prompts(["a", "b", "c"])
    (images,) = data.buckets
    assert images.mean.shape == images.std.shape == (3, *base.latent_shape)
    for text in (images.text, data.empty):
        assert text.hidden.shape[1:] == real.hidden.shape[1:] and text.hidden.dtype == real.hidden.dtype
        assert text.pooled.shape[1:] == real.pooled.shape[1:] and text.pooled.dtype == real.pooled.dtype
    assert (len(data), len(images.text), len(data.empty)) == (3, 3, 1)


def test_a_base_without_finite_losses_is_named(base: BaseModel) -> None:
    unet: Any = base.unet
    bias = unet.conv_out.bias
    kept = bias.clone()
    try:
        bias.data.fill_(float("nan"))
        with pytest.raises(BenchError, match="its loss on random data is not a finite number"):
            rehearse(base, train, config(), 1, SAMPLER, seconds=0.0)
    finally:
        bias.data.copy_(kept)


# Work


@pytest.fixture
def plain(tiny_sdxl: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")


def products(model: nn.Module, run: Callable[[], object]) -> int:
    """Floating-point operations of all linears, convolutions and attentions that `run` passes through."""
    counted = 0

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal counted
        if isinstance(module, nn.Linear | nn.Conv2d):
            counted += 2 * output[0].numel() * module.weight[0].numel() * len(output)
        elif isinstance(module, Attention):
            keys = kwargs.get("encoder_hidden_states")
            length = (args[0] if keys is None else keys).flatten(2).shape[1] if args[0].ndim == 3 else None
            length = length or args[0].shape[2] * args[0].shape[3]
            tokens = output.shape[1] if output.ndim == 3 else output.shape[2] * output.shape[3]
            counted += 4 * tokens * length * module.inner_dim

    handles = [module.register_forward_hook(count, with_kwargs=True) for module in model.modules()]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return counted


def forward(base: BaseModel, unet: UNet2DConditionModel) -> int:
    text = base.encode_prompts(["a"])
    condition = {"text_embeds": text.pooled, "time_ids": torch.zeros(1, 6)}
    latents = torch.zeros(1, *base.latent_shape)
    return products(unet, lambda: unet(latents, 0, text.hidden, added_cond_kwargs=condition))


def test_an_image_is_two_forwards_a_step_and_one_decoding(
    base: BaseModel, plain: UNet2DConditionModel
) -> None:
    decoding = products(base.vae, lambda: base.vae.decode(torch.zeros(1, *base.latent_shape)))
    expected = 2 * 3 * forward(base, plain) + decoding
    assert image_flops(base, Sampler(steps=3, guidance=2)) == expected


def test_a_sample_costs_what_lies_above_its_first_adapter(
    base: BaseModel, plain: UNet2DConditionModel
) -> None:
    """Of a frozen product the gradient of its input costs one more, of an adapter that of its weights too."""
    once = forward(base, plain)
    last = sample_flops(base, config(rank=1, target_modules=["conv_out"]))
    early = sample_flops(base, config(rank=1, target_modules=["conv_in"]))
    assert once < last < 1.05 * once
    assert 1.8 * once < early < 2.3 * once
    assert sample_flops(base, config(rank=8)) > sample_flops(base, config(rank=1))


# The command


def test_speed_is_measured_alone_and_packed(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.speed.SQUARE", {"cpu": 64})
    monkeypatch.setattr("bench.speed.SECONDS", {"cpu": 0.0})
    said: list[str] = []
    found = measure_speed(
        base, space(slots="auto", trials=9), train, device="cpu", config="rank 4", say=said.append
    )
    assert said[0] == "a large matrix product" and said[-1] == f"{found.packed.slots} trials side by side"
    assert (found.alone.slots, found.packed.slots) == (1, 3)
    assert "3 (a search of at least 3 rounds)" in found.slots_reason
    for mode in (found.alone, found.packed):
        share = mode.samples.median * found.sample_flops / found.product_flops.median
        assert mode.samples_share == pytest.approx(share)
        assert mode.images_share > 0 and mode.memory > 0
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table(found))
    assert "3 side by side" in console.export_text()


def test_a_rate_is_the_median_and_its_spread_between_the_extremes() -> None:
    found = rate([2.0, 4.0, 5.0], 20)
    assert (found.median, found.spread) == (5.0, pytest.approx((10 - 4) / 5))


def test_the_estimate_adds_up_all_trainings_and_images(base: BaseModel) -> None:
    given = space(
        trials=10,
        prompts={"dev": 4, "test": 5, "seeds": 2, "training": 1, "altered": 1, "style": 1, "unrelated": 32},
        confirm={"finalists": 2, "seeds": 3},
        floor=4,
    )
    one = rate([1.0], 1)
    found = estimate(given, _mode(one), num_images=20)
    assert found.trial_seconds == 1.5 * 20 + 1.5 * 8, "30 samples and 12 images, one a second"
    retrained, of_base = 2 * 3 + 4, 8 + 2 * 10 + 35
    assert found.study_seconds == (10 + retrained) * 42 + retrained * 10 + (3 + 4) * 35 + of_base
    halved = given.model_copy(update={"sampler": Sampler(steps=2, rung_steps=1)})
    assert estimate(halved, _mode(one), num_images=20).trial_seconds == 1.5 * 20 + 1.5 * 4


def _mode(one: Any) -> Any:
    from bench.speed import Mode

    return Mode(slots=1, samples=one, images=one, samples_share=1, images_share=1, memory=1)


def test_the_heaviest_configuration_is_what_must_fit(base: BaseModel) -> None:
    found = heaviest(base, space())
    assert (found.rank, found.target_modules) == (16, "all")
    wide = space(parameters={"rank": {"low": 2, "high": 64}})
    assert heaviest(base, wide).rank == 64
    assert heaviest(base, space(parameters={"epochs": {"choices": [1, 2]}})) == config()
    rates = {"text_encoder_learning_rate": {"choices": [0, 1e-5, 1e-6]}}
    assert heaviest(base, space(parameters=rates)).text_encoder_learning_rate == 1e-5


@pytest.fixture
def command(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.speed.SQUARE", {"cpu": 64})
    monkeypatch.setattr("bench.speed.SECONDS", {"cpu": 0.0})
    given = space(base=str(tiny_sdxl)).model_dump(mode="json", exclude_none=True)
    Path("tiny.yaml").write_text(yaml.safe_dump(given))
    yield ["bench", "speed", "--space", "tiny.yaml"]


def test_the_command_prints_json_and_writes_nothing(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["packed"]["slots"] == 2 and found["slots_reason"] == "as the space says"
    assert sorted(Path().iterdir()) == before
