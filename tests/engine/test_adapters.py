"""Adapter files: ours, those of plain PEFT, and those that must be refused."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, TextEmbedding
from bench.config import TrialConfig
from bench.errors import UsageError
from bench.scoring.generate import generate
from bench.space import Sampler
from trainers.adapters import attach
from trainers.lora import Attached, Slots, save_adapter

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
    if base.attached:
        base.attached.focus(range(num_slots))
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
        base.attached = Attached(slots, [0])
        attached = generate(base, *one)
        base.attached = None
    np.testing.assert_array_equal(through_file, attached)


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            ("unet.", "model."),
            r"keys are not of a LoRA of an SDXL in the layout of diffusers .*, such as model\.",
        ),
        (("unet.", "transformer."), "holds an adapter of another family, such as FLUX, .*: transformer."),
        (("lora_A", "lora_C"), "keys are not of a LoRA"),
        (("lora_A", "lora_B"), "lacks lora_A"),
        (("conv1.lora_A", "conv1.lora_A.default"), None),
        (("conv1.lora_A", "conv\n1.lora_A"), r"keys are not of a LoRA .*\.conv 1\.lora_A"),
        (("conv1.", "norm1."), r"linear or convolutional modules are not in .*such as .*norm1"),
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


@pytest.mark.fault(9, 13)
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


Change = Callable[[torch.Tensor], torch.Tensor]


def refused(base: BaseModel, file: Path) -> str:
    with pytest.raises(UsageError) as caught, attach(base, [file]):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("endings", "change", "message"),
    [
        (("lora_A.weight",), lambda _: torch.tensor(1.0), r"conv1.lora_A.weight has shape \(\); two or more"),
        (("lora_B.weight",), lambda _: torch.ones(4), r"conv1.lora_B.weight has shape \(4,\); two or more"),
        (
            ("lora_A.weight",),
            lambda a: a[:0],
            "conv1: lora_A has rank 0 and lora_B 4; only one rank is allowed",
        ),
        (("lora_A.weight", "lora_B.weight"), lambda t: t[:0, :0], "conv1: rank 0; 1 to 1024 are allowed"),
        (
            ("lora_A.weight", "lora_B.weight"),
            lambda t: torch.zeros(1025, 1025),
            "conv1: rank 1025; 1 to 1024 are",
        ),
        (
            ("lora_A.weight",),
            lambda a: a[:2],
            "conv1: lora_A has rank 2 and lora_B 4; only one rank is allowed",
        ),
        (("alpha",), lambda _: torch.ones(4), r"conv1.alpha has shape \(4,\); one number is allowed"),
        (("alpha",), lambda _: torch.ones(0), r"conv1.alpha has shape \(0,\); one number is allowed"),
        (("alpha",), lambda _: torch.tensor(0.0), "conv1.alpha is 0; a number above 0 is allowed"),
        (("alpha",), lambda _: torch.tensor(float("inf")), "conv1.alpha holds values that are not finite"),
        (("alpha",), lambda _: torch.tensor(float("nan")), "conv1.alpha holds values that are not finite"),
        (
            ("alpha",),
            lambda _: torch.tensor(3e38),
            "conv1: lora_B times alpha / rank is not finite: alpha is 3e",
        ),
    ],
)
def test_malformed_tensors_are_named(
    base: BaseModel, tmp_path: Path, endings: tuple[str, ...], change: Change, message: str
) -> None:
    file = written(base, tmp_path / "a.safetensors")
    tensors = load_file(file)
    module = "unet.down_blocks.0.resnets.0.conv1"
    tensors[f"{module}.alpha"] = torch.tensor(8.0)
    tensors[f"{module}.lora_B.weight"] *= 100
    for ending in endings:
        tensors[f"{module}.{ending}"] = change(tensors[f"{module}.{ending}"]).contiguous()
    save_file(tensors, file)
    with pytest.raises(UsageError, match=f"a.safetensors: .*{message}"):
        raise UsageError(refused(base, file))


def test_the_highest_rank_is_read(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors", CONFIG.model_copy(update={"target_modules": ("conv2",)}))
    tensors = load_file(file)
    for key, tensor in tensors.items():
        tensors[key] = torch.cat([tensor] * 256, dim=0 if "lora_A" in key else 1)
    save_file(tensors, file)
    with attach(base, [file]):
        assert not torch.isnan(predicted(base, 1)).any()


BAD_DESCRIPTIONS = [
    ({"lora_alpha": float("nan")}, "lora_alpha: Input should be a finite number, got nan"),
    ({"lora_alpha": float("inf")}, "lora_alpha: Input should be a finite number, got inf"),
    ({"lora_alpha": 0}, "lora_alpha: Input should be greater than 0, got 0"),
    ({"lora_alpha": -8.0}, "lora_alpha: Input should be greater than 0, got -8.0"),
    ({"lora_alpha": "8"}, "lora_alpha: Input should be a valid number, got '8'"),
    ({"lora_alpha": None}, "lora_alpha: Input should be a valid number, got None"),
    ({"alpha_pattern": ["conv1"]}, "alpha_pattern: Input should be a valid dictionary, got ['conv1']"),
    ({"alpha_pattern": {"conv1": "8"}}, "alpha_pattern.conv1: Input should be a valid number, got '8'"),
    ({"alpha_pattern": {"conv1": float("nan")}}, "alpha_pattern.conv1: Input should be a finite number"),
    ({"alpha_pattern": {"conv(": 8}}, "alpha_pattern: names of modules and regular expressions are allowed"),
    ({"use_rslora": True}, "made with use_rslora, which is not supported; plain LoRA is allowed"),
    ({"use_dora": True}, "made with use_dora, but "),
    ({"init_lora_weights": "pissa_niter_4"}, "made with init_lora_weights=pissa_niter_4, which is not"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_DESCRIPTIONS)
def test_wrong_descriptions_are_named(
    base: BaseModel, tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    file = written(base, tmp_path / "a.safetensors")
    described = {f"unet.{key}": value for key, value in ({"lora_alpha": 8} | wrong).items()}
    save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps(described)})
    assert f"{file}: its metadata: {message}" in refused(base, file)


@pytest.mark.parametrize(("wrong", "message"), BAD_DESCRIPTIONS)
def test_wrong_configurations_of_peft_are_named(
    base: BaseModel, tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    renamed = ("unet.", "base_model.model.")
    file = changed(written(base, tmp_path / "a.safetensors"), tmp_path / "b.safetensors", renamed)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8} | wrong))
    assert f"{tmp_path / 'adapter_config.json'}: {message}" in refused(base, file)


def saved_by_peft(base: BaseModel, folder: Path, config: LoraConfig) -> PeftModel:
    """An adapter with random B as PEFT's own `save_pretrained` leaves it, and the model that it is in."""
    model = get_peft_model(copy.deepcopy(base.unet), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.5 * torch.rand(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_what_peft_saves_gives_what_peft_gives(base: BaseModel, tmp_path: Path, dora: bool) -> None:
    """Keys of alpha_pattern are endings, names and regular expressions."""
    pattern = {"to_q": 40.0, r"up_blocks\.\d.*conv1": 24.0, "mid_block.resnets.0.conv1": 2.0}
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["to_q", "to_k", "conv1"],
        alpha_pattern=pattern,
        rank_pattern={"to_k": 2},
        use_dora=dora,
    )
    model = saved_by_peft(base, tmp_path, config)
    file = tmp_path / "adapter_model.safetensors"
    assert all(key.startswith("base_model.model.") for key in load_file(file))
    with attach(base, [file]):
        ours = predicted(base, 1)
    plain = copy.copy(base)
    plain.unet = model.base_model.model
    torch.testing.assert_close(ours, predicted(plain, 1), rtol=1e-4, atol=1e-5)
    plain_alpha = json.loads((tmp_path / "adapter_config.json").read_text()) | {"alpha_pattern": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain_alpha))
    with attach(base, [file]):
        assert not torch.allclose(ours, predicted(base, 1), atol=1e-4)


def test_patterns_in_metadata_are_matched_as_peft_matches_them(base: BaseModel, tmp_path: Path) -> None:
    file = written(base, tmp_path / "a.safetensors")
    tensors = load_file(file)
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    alphas = {f"{name}.alpha": torch.tensor(20.0 if name.endswith(".to_q") else 8.0) for name in names}
    keyed, described = tmp_path / "keyed.safetensors", tmp_path / "described.safetensors"
    save_file(tensors | alphas, keyed)
    metadata = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 20}}
    save_file(tensors, described, {"lora_adapter_metadata": json.dumps(metadata)})
    with attach(base, [keyed, described, file]):
        first, second, without = predicted(base, 3)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, without)


def test_what_peft_saves_is_refused_without_its_configuration(base: BaseModel, tmp_path: Path) -> None:
    saved_by_peft(base, tmp_path / "whole", LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"]))
    file = tmp_path / "adapter_model.safetensors"
    shutil.copyfile(tmp_path / "whole" / file.name, file)
    config = tmp_path / "adapter_config.json"
    expected = f"{file}: its alpha is not known: it needs {config}, which PEFT writes with it"
    assert refused(base, file) == expected
    config.write_bytes(b"\xff")
    assert f"{config}: cannot be read" in refused(base, file)
    config.write_text("[1]")
    assert f"{config} has no lora_alpha that can be read" in refused(base, file)
    config.write_text("{}")
    assert f"{config}: lora_alpha: required key is missing" in refused(base, file)


def test_keys_of_both_layouts_in_one_file_are_refused(base: BaseModel, tmp_path: Path) -> None:
    renamed = ("unet.mid_block", "base_model.model.mid_block")
    file = changed(written(base, tmp_path / "a.safetensors"), tmp_path / "b.safetensors", renamed)
    message = refused(base, file)
    assert "PEFT (all base_model.model.<module>.lora_A.weight)" in message and "such as unet." in message


@pytest.mark.parametrize(("key", "shape"), [("lora_A", (4, 1)), ("lora_B", (1, 4))])
def test_a_side_of_one_is_not_spread_over_a_module(
    base: BaseModel, tmp_path: Path, key: str, shape: tuple[int, int]
) -> None:
    file = written(base, tmp_path / "a.safetensors")
    tensors = load_file(file)
    tensors[next(name for name in tensors if name.endswith(f"to_q.{key}.weight"))] = torch.ones(shape)
    save_file(tensors, file)
    message = refused(base, file)
    assert f"does not fit {base.name}" in message and f"to_q.{key}.weight" in message
