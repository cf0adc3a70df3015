"""Images: ours must be the pipeline's, and an adapter's images the same in plain diffusers."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from numpy.typing import NDArray

from bench.base import BaseModel, TrainingData
from bench.config import TrialConfig
from bench.scoring.generate import MAX_BATCH, drawings, generate
from bench.scoring.losses import LossGap
from bench.space import Sampler
from trainers.adapters import attach
from trainers.loop import train
from trainers.lora import save_adapter

PROMPTS = ["a red apple", "a blue car, shiny", "b"]
SEEDS = [11, 12, 13]
SAMPLER = Sampler(steps=5, guidance=4)


def in_diffusers(folder: Path, base: BaseModel, adapter: Path | None) -> NDArray[np.uint8]:
    """PROMPTS drawn by StableDiffusionXLPipeline itself, one by one."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    if adapter:
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    images = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        noise = torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(seed))
        output = pipeline(
            prompt,
            num_inference_steps=SAMPLER.steps,
            guidance_scale=SAMPLER.guidance,
            latents=noise[None],
            height=base.resolution,
            width=base.resolution,
            output_type="np",
        )
        images.append(output.images[0])
    return (np.stack(images) * 255).round().astype(np.uint8)


def assert_same(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def drawn(base: BaseModel, num_slots: int = 1) -> NDArray[np.uint8]:
    return generate(base, base.encode_prompts(PROMPTS), base.encode_empty(), SEEDS, SAMPLER, num_slots)


def test_the_base_draws_what_the_pipeline_draws(tiny_sdxl: Path, base: BaseModel) -> None:
    assert_same(drawn(base)[0], in_diffusers(tiny_sdxl, base, None))


def test_a_saved_adapter_draws_the_same_in_diffusers(
    tmp_path: Path, tiny_sdxl: Path, base: BaseModel, data: TrainingData
) -> None:
    configs = [
        TrialConfig(rank=4, alpha=16, learning_rate=2e-2, epochs=2, target_modules="all"),
        TrialConfig(rank=2, alpha=1, learning_rate=2e-2, epochs=2, target_modules="attention"),
    ]
    for rung in train(base, data, iter(configs), [2], len(configs)):
        images = drawn(base, num_slots=2)
        for index, config in enumerate(configs):
            save_adapter(tmp_path / f"{index}.safetensors", rung.adapter(index), config)
    for index in range(2):
        assert (images[index] != drawn(base)[0]).any()
        assert_same(images[index], in_diffusers(tiny_sdxl, base, tmp_path / f"{index}.safetensors"))


def test_what_training_holds_is_given_back_where_drawing_does_not_fit(
    base: BaseModel, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrialConfig(rank=2, alpha=2, learning_rate=1e-3, epochs=4)
    rungs = train(base, data, iter([config]), [2, 4], 1)
    pack, predict = next(rungs)._pack, base.predict

    def small_card(*arguments: Any) -> torch.Tensor:
        if pack._graphs:
            raise torch.OutOfMemoryError
        return predict(*arguments)

    plain = drawn(base)
    monkeypatch.setattr(base, "predict", small_card)
    assert_same(drawn(base)[0], plain[0])
    monkeypatch.undo()
    assert len(next(rungs).losses[0]) == 10  # goes on


def test_an_image_does_not_depend_on_the_others(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = drawn(base)[0]
    monkeypatch.setitem(MAX_BATCH, "cpu", 2)
    assert_same(drawn(base)[0], together)


@pytest.mark.usefixtures("one_thread")
def test_lanes_draw_to_the_bit_what_one_thread_draws(
    tmp_path: Path, base: BaseModel, wide: BaseModel, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not base.twins and len(wide.twins) == 2
    configs = [
        TrialConfig(rank=4, alpha=16, learning_rate=2e-2, epochs=2, target_modules="all"),
        TrialConfig(rank=2, alpha=1, learning_rate=2e-2, epochs=2, target_modules="attention"),
    ]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for rung in train(base, data, iter(configs), [2], len(configs)):
        for index, file in enumerate(files):
            rung.save_adapter(index, file)
    for given in ([], files):
        found = []
        for one, batch in ((base, 2), (wide, 4)):  # in either, one image goes through one forward
            monkeypatch.setitem(MAX_BATCH, "cpu", batch)
            with attach(one, given) if given else nullcontext():
                gap = LossGap(one, data.buckets[0][:4], data.buckets[0][4:])
                found.append((drawn(one, max(1, len(given))), gap.losses(max(1, len(given)))))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)  # in batches of other sizes
    assert all(twin.attached is None for twin in wide.twins)


def test_an_error_in_a_lane_is_the_callers(wide: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:

    def small_memory(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(wide.twins[1], "predict", small_memory)
    with pytest.raises(torch.OutOfMemoryError):
        drawn(wide)


def test_slots_come_one_by_one(base: BaseModel, data: TrainingData) -> None:
    config = TrialConfig(rank=2, alpha=2, learning_rate=1e-3, epochs=2)
    for _ in train(base, data, iter([config] * 2), [2], 2):
        together, fractions = drawn(base, num_slots=2), list[float]()
        text = base.encode_prompts(PROMPTS)
        slots = drawings(base, text, base.encode_empty(), SEEDS, SAMPLER, 2, fractions.append)
        for number, images in enumerate(slots):
            np.testing.assert_array_equal(images, together[number])
        assert fractions[-1] == 1 and fractions == sorted(fractions)
