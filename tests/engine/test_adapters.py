"""Adapter files: ours, those of plain PEFT, and those that must be refused."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, TextEmbedding
from bench.config import TrialConfig
from bench.errors import UsageError
from bench.scoring.generate import generate
from bench.space import Sampler
from trainers.adapters import attach
from trainers.lora import Slots, save_adapter

CONFIG = TrialConfig(rank=4, alpha=8, learning_rate=1e-3, epochs=1, target_modules="all", seed=3)


def written(base: BaseModel, path: Path, config: TrialConfig = CONFIG) -> Path:
    """An adapter with random B, as a training would leave it."""
    generator = torch.Generator().manual_seed(config.seed)
    with Slots(base.unet, [config]) as slots:
        adapter = slots.adapter(0)
    for key, tensor in adapter.items():
        if "lora_B" in key:
            tensor.normal_(0, 0.1, generator=generator)
    save_adapter(path, adapter, config)
    return path


def changed(path: Path, target: Path, rename: tuple[str, str] = ("", "")) -> Path:
    """A copy without metadata, with keys renamed."""
    save_file({key.replace(*rename): tensor for key, tensor in load_file(path).items()}, target)
    return target


def predicted(base: BaseModel, num_slots: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *base.latent_shape, generator=generator).repeat(num_slots, 1, 1, 1)
    text = base.encode_prompts(["a red apple", "a blue car"] * num_slots)
    with torch.no_grad():
        output = base.predict(latents, torch.full((len(latents),), 500), text)
    return output.view(num_slots, 2, *output.shape[1:])


def test_several_files_side_by_side_draw_what_each_draws_alone(base: BaseModel, tmp_path: Path) -> None:
    other = CONFIG.model_copy(update={"rank": 2, "alpha": 3.0, "target_modules": "attention", "seed": 5})
    files = [written(base, tmp_path / "a.safetensors"), written(base, tmp_path / "b.safetensors", other)]
    with attach(base, files):
        together = predicted(base, 2)
    for slot, file in enumerate(files):
        with attach(base, [file]):
            torch.testing.assert_close(predicted(base, 1)[0], together[slot])


def test_a_file_gives_what_peft_gives(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors")
    with attach(base, [file]):
        ours = predicted(base, 1)[0]
    plain = copy.deepcopy(base)
    names = sorted({key.rsplit(".lora_", 1)[0].removeprefix("unet.") for key in load_file(file)})
    plain.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=names))
    parameters = dict(plain.unet.named_parameters())
    with torch.no_grad():
        for key, tensor in load_file(file).items():
            parameters[key.removeprefix("unet.").replace(".weight", ".default.weight")].copy_(tensor)
    torch.testing.assert_close(ours, predicted(plain, 1)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, predicted(base, 1)[0])


def test_without_metadata_alpha_is_the_rank_and_alpha_keys_count(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors")
    bare = changed(file, tmp_path / "bare.safetensors")
    keyed = tmp_path / "keyed.safetensors"
    tensors = load_file(file)
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for key in tensors if "lora_A" in key}
    save_file(tensors | alphas, keyed)
    with attach(base, [file, keyed, bare]):
        described, with_keys, without = predicted(base, 3)
    torch.testing.assert_close(described, with_keys)
    assert not torch.allclose(described, without)


def test_the_older_names_of_diffusers_are_read(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors")
    bare = changed(file, tmp_path / "bare.safetensors")
    older = changed(bare, tmp_path / "x.safetensors", ("lora_A", "lora.down"))
    older = changed(older, tmp_path / "older.safetensors", ("lora_B", "lora.up"))
    with attach(base, [bare, older]):
        first, second = predicted(base, 2)
    torch.testing.assert_close(first, second)


def test_the_base_is_as_before_afterwards(base: BaseModel, tmp_path: Path) -> None:
    before = predicted(base, 1)
    with attach(base, [written(base, tmp_path / "a.safetensors")]):
        pass
    torch.testing.assert_close(predicted(base, 1), before, rtol=0, atol=0)


def test_images_through_files_are_those_of_the_attached_slots(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors")
    text, empty = base.encode_prompts(["a red apple"]), base.encode_empty()
    one = (TextEmbedding(text.hidden, text.pooled), empty, [7], Sampler(steps=2, guidance=2), 1)
    with attach(base, [file]):
        through_file = generate(base, *one)
    with Slots(base.unet, [CONFIG]) as slots:
        slots.load(0, {key.removeprefix("unet."): tensor for key, tensor in load_file(file).items()})
        slots.eval()
        attached = generate(base, *one)
    np.testing.assert_array_equal(through_file, attached)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            ("unet.", "lora_unet_"),
            r"keys are not of a UNet adapter of diffusers or PEFT .*as lora_unet_",
        ),
        (("unet.", "transformer."), "such as transformer."),
        (("lora_A", "lora_C"), "keys are not of a UNet adapter"),
        (("conv1.lora_A", "conv1.lora_A.default"), None),
        (("mid_block", "side_block"), r"modules are not in .*such as side_block"),
    ],
)
def test_keys_that_do_not_fit_are_named(
    base: BaseModel, tmp_path: Path, rename: tuple[str, str], message: str | None
) -> None:
    file = changed(written(base, tmp_path / "a.safetensors"), tmp_path / "b.safetensors", rename)
    if message is None:
        with attach(base, [file]):
            return
    with pytest.raises(UsageError, match=message) as caught, attach(base, [file]):
        pass
    assert "b.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_named(base: BaseModel, tmp_path: Path) -> None:
    whole = written(base, tmp_path / "a.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(whole.read_bytes()[:-100])
    broken = tmp_path / "broken.safetensors"
    tensors = load_file(whole)
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, broken)
    strange = tmp_path / "strange.safetensors"
    save_file(load_file(whole), strange, {"lora_adapter_metadata": json.dumps(["x"])})
    for file, message in [
        (torn, "not a readable adapter"),
        (broken, "values that are not finite"),
        (strange, "no lora_alpha that can be read"),
        (tmp_path / "none.safetensors", "not a readable adapter"),
    ]:
        with pytest.raises(UsageError, match=message) as caught, attach(base, [file]):
            pass
        assert file.name in str(caught.value)


def test_shapes_that_do_not_fit_are_named(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lora_A.weight"))
    tensors[key] = torch.zeros(4, 3)
    save_file(tensors, file)
    with pytest.raises(UsageError, match="a.safetensors: does not fit"), attach(base, [file]):
        pass
