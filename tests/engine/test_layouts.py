"""LoRA files as other trainers name them: each must draw here what it draws in diffusers' own pipeline."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DPMSolverMultistepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils import (
    convert_all_state_dict_to_peft,
    convert_state_dict_to_diffusers,
    convert_state_dict_to_kohya,
)
from latents import random_latents
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, adaptable_names, load_base, target_names
from bench.errors import UsageError
from bench.export import export
from bench.exported import DIFFUSERS_FILE, winner_of
from bench.naming import kohya_names, kohya_sd_names, sgm_names
from bench.run import Run
from bench.scoring.embed import load_scorer
from bench.scoring.generate import generate
from bench.sources import BUNDLED
from bench.space import Sampler
from trainers.adapters import attach, read_adapter
from trainers.loop import train
from trainers.lora import Slots, save_adapter

PROMPTS = ["a red apple", "a blue car, shiny"]
SEEDS = [11, 12]
SAMPLER = Sampler(steps=3, guidance=4)
Tensors = dict[str, torch.Tensor]
ENCODERS = ("text_encoder", "text_encoder_2")
EMOJI = Path(str(files("bench") / BUNDLED["emoji-xl"]))

SDXL_BLOCKS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.resnets.1": "input_blocks.2.0",
    "down_blocks.1.resnets.0": "input_blocks.4.0",
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1": "input_blocks.5.0",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.2.resnets.0": "input_blocks.7.0",
    "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.resnets.1": "input_blocks.8.0",
    "down_blocks.2.attentions.1": "input_blocks.8.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.resnets.2": "output_blocks.2.0",
    "up_blocks.0.attentions.2": "output_blocks.2.1",
    "up_blocks.1.resnets.0": "output_blocks.3.0",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.resnets.1": "output_blocks.4.0",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.resnets.2": "output_blocks.5.0",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.2.resnets.0": "output_blocks.6.0",
    "up_blocks.2.resnets.1": "output_blocks.7.0",
    "up_blocks.2.resnets.2": "output_blocks.8.0",
}
"""The UNet of SDXL in diffusers, and in Stability-AI's generative-models, as kohya's sd-scripts trains it."""
SDXL_MODULES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "conv_out": "out.2",
}
SDXL_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def in_sgm(module: str) -> str:
    """SGM's name of a module of SDXL, by the tables above alone."""
    if module in SDXL_MODULES:
        return SDXL_MODULES[module]
    block = next(block for block in SDXL_BLOCKS if module.startswith(f"{block}."))
    rest = module.removeprefix(f"{block}.")
    return f"{SDXL_BLOCKS[block]}.{SDXL_RESNET.get(rest, rest)}"


@pytest.fixture(scope="module")
def emoji() -> BaseModel:
    """The bundled base: its UNet has the blocks of SDXL's."""
    return load_base("emoji-xl", torch.device("cpu"))


def lora(modules: Mapping[str, torch.nn.Module], names: Iterable[str], rank: int = 4) -> Tensors:
    """Random A and B of linears and convolutions in PEFT's layout, as a training would leave them."""
    generator = torch.Generator().manual_seed(len(modules))
    tensors: Tensors = {}
    for name in names:
        weight = modules[name].weight
        assert isinstance(weight, torch.Tensor)
        ones = (1,) * (weight.ndim - 2)
        for side, shape in (("A", (rank, *weight.shape[1:])), ("B", (len(weight), rank, *ones))):
            size = 0.5 / weight[0].numel() ** 0.5
            tensors[f"{name}.lora_{side}.weight"] = torch.randn(shape, generator=generator) * size
    return tensors


def unet_lora(base: BaseModel, ending: str = "") -> Tensors:
    names = [name for name in adaptable_names(base.unet) if name.endswith(ending)]
    return {f"unet.{key}": tensor for key, tensor in lora(dict(base.unet.named_modules()), names).items()}


def clip_lora(base: BaseModel) -> Tensors:
    """Of both text encoders, under the names that files have."""
    tensors: Tensors = {}
    for part in ENCODERS:
        modules = {
            name if name.startswith("text_") else f"text_model.{name}": module
            for name, module in base.encoder(part).named_modules()
        }
        names = [name for name in modules if name.endswith(("_proj", "fc1", "fc2"))]
        tensors |= {f"{part}.{key}": 2 * tensor for key, tensor in lora(modules, names).items()}
    return tensors


def in_diffusers(folder: Path, base: BaseModel, file: Path, weight: float = 1.0) -> NDArray[np.uint8]:
    """PROMPTS drawn by the pipeline with the adapter."""
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, dtype=torch.float32)
    pipeline.watermark = None
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="it")
    pipeline.set_adapters("it", weight)
    noise = [torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(s)) for s in SEEDS]
    images = [
        pipeline(
            prompt,
            num_inference_steps=SAMPLER.steps,
            guidance_scale=SAMPLER.guidance,
            latents=latents[None],
            height=base.resolution,
            width=base.resolution,
            output_type="np",
        ).images[0]
        for prompt, latents in zip(PROMPTS, noise, strict=True)
    ]
    return (np.stack(images) * 255).round().astype(np.uint8)


def drawn(base: BaseModel, *files: Path, weight: float = 1.0) -> NDArray[np.uint8]:
    """PROMPTS drawn here, (files, prompts, …); without files by the base."""
    asked = (base.encode_prompts(PROMPTS), base.encode_empty(), SEEDS, SAMPLER)
    if not files:
        return generate(base, *asked)
    with attach(base, files, weight):
        assert base.attached is not None
        own = {slot: reader(PROMPTS) for slot, reader in base.attached.readers.items()}
        return generate(base, *asked, len(files), own=own)


def assert_same(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def with_alpha(tensors: Tensors, alpha: float) -> Tensors:
    """kohya's layout, each module's alpha replaced."""
    return {key: torch.tensor(alpha) if key.endswith(".alpha") else t for key, t in tensors.items()}


def renamed(tensors: Tensors, prefix: str, name: Callable[[str], str], sides: tuple[str, str]) -> Tensors:
    """Of `unet.` keys."""
    found = {}
    for key, tensor in tensors.items():
        module, side, _ = key.removeprefix("unet.").rsplit(".", 2)
        found[f"{prefix}{name(module)}.{dict(zip(('lora_A', 'lora_B'), sides, strict=True))[side]}"] = tensor
    return found


def kohya_sgm(tensors: Tensors, alpha: float) -> Tensors:
    """As sd-scripts trains SDXL, LyCORIS' convolutions (LoCon) included."""
    sides = ("lora_down.weight", "lora_up.weight")
    found = renamed(tensors, "lora_unet_", lambda name: in_sgm(name).replace(".", "_"), sides)
    alphas = {
        key.replace("lora_down.weight", "alpha"): torch.tensor(alpha) for key in found if "down." in key
    }
    return found | alphas


# Names


def test_every_module_of_sdxl_has_sgms_name(emoji: BaseModel) -> None:
    names = adaptable_names(emoji.unet)
    assert sgm_names(names, 2) == {name: in_sgm(name) for name in names}
    expected = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert kohya_names("unet", names, 2)[attention] == expected


def test_text_encoders_have_kohyas_names() -> None:
    names = kohya_names("text_encoder", ["encoder.layers.0.self_attn.q_proj"], 2)
    assert names == {
        "encoder.layers.0.self_attn.q_proj": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    }
    names = kohya_names("text_encoder_2", ["text_model.encoder.layers.1.mlp.fc1", "text_projection"], 2)
    assert list(names.values()) == [
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
        "lora_te2_text_projection",
    ]


def test_an_sd_has_one_text_encoder_in_kohyas_layout() -> None:
    names = kohya_sd_names("text_encoder", ["encoder.layers.0.self_attn.q_proj"])
    assert list(names.values()) == ["lora_te_text_model_encoder_layers_0_self_attn_q_proj"]


# The UNet


@pytest.mark.parametrize("ending", ["", ".attn1.to_q", ".conv1"])
def test_kohyas_files_draw_what_they_draw_in_diffusers(emoji: BaseModel, tmp_path: Path, ending: str) -> None:
    tensors = unet_lora(emoji, ending)
    sgm, plain = tmp_path / "sgm.safetensors", tmp_path / "plain.safetensors"
    save_file(kohya_sgm(tensors, 2.0), sgm, {"ss_network_dim": "4", "format": "pt"})
    save_file(with_alpha(convert_state_dict_to_kohya(tensors), 2.0), plain)
    ours = drawn(emoji, sgm, plain)
    theirs = in_diffusers(EMOJI, emoji, sgm)
    assert (ours[0] != drawn(emoji)[0]).any()
    np.testing.assert_array_equal(ours[0], ours[1])
    assert_same(ours[0], theirs)


def test_a_unet_of_other_depth_has_the_names_that_diffusers_gives_it(
    tiny_sdxl: Path, base: BaseModel, tmp_path: Path
) -> None:
    tensors, file = unet_lora(base), tmp_path / "a.safetensors"
    names = kohya_names("unet", adaptable_names(base.unet), base.unet.config.layers_per_block)  # type: ignore[union-attr, arg-type]
    sides = ("lora_down.weight", "lora_up.weight")
    save_file(renamed(tensors, "", names.__getitem__, sides), file)
    assert_same(drawn(base, file)[0], in_diffusers(tiny_sdxl, base, file))


SPELLINGS: dict[str, tuple[str, Callable[[str], str], tuple[str, str]]] = {
    "OneTrainer, kohya's names": (
        "lora_unet_",
        lambda name: name.replace(".", "_"),
        ("lora_down.weight", "lora_up.weight"),
    ),
    "OneTrainer, diffusers' names": ("lora_unet.", str, ("lora_down.weight", "lora_up.weight")),
    "OneTrainer, OMI": ("unet.", in_sgm, ("lora_down.weight", "lora_up.weight")),
    "ComfyUI": ("diffusion_model.", in_sgm, ("lora_down.weight", "lora_up.weight")),
    "ai-toolkit": ("unet.", str, ("lora_A.weight", "lora_B.weight")),
    "diffusers, older": ("unet.", str, ("lora.down.weight", "lora.up.weight")),
}


@pytest.mark.parametrize("layout", SPELLINGS)
def test_other_spellings_are_the_same_adapter(emoji: BaseModel, tmp_path: Path, layout: str) -> None:
    tensors = unet_lora(emoji)
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, plain)
    save_file(renamed(tensors, *SPELLINGS[layout]), other)
    np.testing.assert_array_equal(*drawn(emoji, plain, other))


def test_attention_processors_of_old_diffusers_are_read(
    tiny_sdxl: Path, base: BaseModel, tmp_path: Path
) -> None:
    tensors, file = (
        unet_lora(base, ".attn2.to_out.0") | unet_lora(base, ".attn1.to_q"),
        tmp_path / "a.safetensors",
    )
    old = {
        key.replace("attn1.", "attn1.processor.")
        .replace("attn2.", "attn2.processor.")
        .replace("to_out.0.", "to_out.")
        .replace(".lora_A", "_lora.down")
        .replace(".lora_B", "_lora.up"): tensor
        for key, tensor in tensors.items()
    }
    save_file(old, file)
    assert any(key.endswith(".attn1.processor.to_q_lora.down.weight") for key in old)
    assert_same(drawn(base, file)[0], in_diffusers(tiny_sdxl, base, file))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(base: BaseModel, tmp_path: Path, dtype: torch.dtype) -> None:
    half = {key: tensor.to(dtype) for key, tensor in unet_lora(base).items()}
    save_file(half, tmp_path / "half.safetensors")
    save_file({key: tensor.float() for key, tensor in half.items()}, tmp_path / "float.safetensors")
    np.testing.assert_array_equal(*drawn(base, tmp_path / "half.safetensors", tmp_path / "float.safetensors"))


@pytest.mark.parametrize("weight", [0.4, 1.2])
def test_a_weight_is_that_of_set_adapters(
    tiny_sdxl: Path, base: BaseModel, tmp_path: Path, weight: float
) -> None:
    # The pipeline loses add_embedding under these names.
    tensors = {key: t for key, t in unet_lora(base).items() if "add_embedding" not in key}
    file = tmp_path / "a.safetensors"
    save_file(convert_state_dict_to_kohya(tensors | clip_lora(base)), file)
    assert_same(drawn(base, file, weight=weight)[0], in_diffusers(tiny_sdxl, base, file, weight))


# diffusers' own training scripts


def scripts_adapter(folder: Path, into: Path) -> tuple[Path, Path]:
    """What train_text_to_image_lora_sdxl.py writes, and what its converter makes of that for kohya's tools.

    Configuration, way to save and conversion are the script's; B is random, as after a training.
    """
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=torch.float32)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for key, parameter in unet.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(0, 0.05, generator=generator)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionXLPipeline.save_lora_weights(into, unet_lora_layers=layers)
    written, kohya = into / DIFFUSERS_FILE, into / "pytorch_lora_weights_kohya.safetensors"
    save_file(convert_state_dict_to_kohya(convert_all_state_dict_to_peft(load_file(written))), kohya)
    return written, kohya


def test_what_diffusers_script_trains_scores_as_through_its_pipeline(
    emoji: BaseModel, tmp_path: Path
) -> None:
    """Also converted to kohya's format by diffusers: the same images, and the same scores of them."""
    written, kohya = scripts_adapter(EMOJI, tmp_path)
    keys = list(load_file(kohya))
    assert all(key.startswith("lora_unet_") for key in keys)
    ours, theirs = drawn(emoji, written, kohya), in_diffusers(EMOJI, emoji, kohya)
    assert (ours[0] != drawn(emoji)[0]).any()
    np.testing.assert_array_equal(ours[0], ours[1])
    assert_same(ours[1], theirs)
    assert_same(ours[1], in_diffusers(EMOJI, emoji, written))
    scorer = load_scorer("bundled", torch.device("cpu"))
    text = scorer.embed_texts(PROMPTS)
    scores = [(scorer.embed_images(images) * text).sum(axis=1) for images in (ours[1], theirs)]
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-3)


# The text encoders


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_text_encoders_are_adapted_as_in_diffusers(emoji: BaseModel, tmp_path: Path, layout: str) -> None:
    unet, clip = unet_lora(emoji, "to_v"), clip_lora(emoji)
    file, without = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    written = {
        "kohya": lambda: with_alpha(convert_state_dict_to_kohya(unet | clip), 2.0),
        "diffusers": lambda: unet | convert_state_dict_to_diffusers(clip),
        "peft": lambda: unet | clip,
    }[layout]()
    save_file(written, file)
    save_file({key: t for key, t in written.items() if key.startswith(("unet.", "lora_unet_"))}, without)
    if layout != "peft":
        assert any("lora_te2_" in key or "q_proj.lora_linear_layer.down" in key for key in written)
    ours, of_unet = drawn(emoji, file, without)
    assert (ours != of_unet).any()
    assert_same(ours, in_diffusers(EMOJI, emoji, file))
    assert_same(drawn(emoji, without)[0], of_unet)


def test_onetrainers_names_of_text_encoders_are_read(emoji: BaseModel, tmp_path: Path) -> None:
    tensors = unet_lora(emoji, "to_v") | clip_lora(emoji)
    plain, omi = tmp_path / "plain.safetensors", tmp_path / "omi.safetensors"
    save_file(tensors, plain)
    names = (
        ("text_encoder.", "clip_l."),
        ("text_encoder_2.", "clip_g."),
        ("lora_A", "lora_down"),
        ("lora_B", "lora_up"),
    )
    other = dict(tensors)
    for old, new in names:
        other = {key.replace(old, new): tensor for key, tensor in other.items()}
    save_file(other, omi)
    np.testing.assert_array_equal(*drawn(emoji, plain, omi))


def test_a_dora_of_text_encoders_draws_what_it_draws_in_diffusers(
    tiny_sdxl: Path, base: BaseModel, tmp_path: Path
) -> None:
    """Under the names of its converter: of PEFT's own names it loses these."""
    tensors, file = unet_lora(base, "to_v") | clip_lora(base), tmp_path / "a.safetensors"
    magnitudes = {
        key.replace("lora_B", "lora_magnitude_vector"): torch.linspace(0.3, 1, len(tensor))
        for key, tensor in tensors.items()
        if "lora_B" in key
    }
    save_file(tensors | magnitudes, file)
    of_unet = {key: tensor for key, tensor in (tensors | magnitudes).items() if key.startswith("unet.")}
    save_file(of_unet, tmp_path / "unet.safetensors")
    ours, without = drawn(base, file, tmp_path / "unet.safetensors")
    assert (ours != without).any()
    assert_same(ours, in_diffusers(tiny_sdxl, base, file))


def test_text_encoders_are_as_before_afterwards(base: BaseModel, tmp_path: Path) -> None:
    before = base.encode_prompts(PROMPTS)
    save_file(unet_lora(base, "to_v") | clip_lora(base), tmp_path / "a.safetensors")
    drawn(base, tmp_path / "a.safetensors")
    after = base.encode_prompts(PROMPTS)
    torch.testing.assert_close(after.hidden, before.hidden, rtol=0, atol=0)


def test_a_part_without_a_word_in_the_metadata_is_refused(base: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    metadata = {"lora_adapter_metadata": '{"unet.lora_alpha": 8, "text_encoder.lora_alpha": 8}'}
    save_file(unet_lora(base, "to_v") | clip_lora(base), file, metadata)
    assert refused(base, file) == f"{file}: its metadata: lora_alpha: required key is missing"


# What is not read


def refused(base: BaseModel, file: Path) -> str:
    with pytest.raises(UsageError) as caught, attach(base, [file]):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{KEY}.magnitude", "DoRA of another layout"),
        (f"{KEY}.hada_w1_a", "LoHa"),
        (f"{KEY}.lokr_w1", "LoKr"),
        (f"{KEY}.oft_blocks", "OFT"),
        (f"{KEY}.lora_mid.weight", "LoCon with a Tucker decomposition"),
        (f"{KEY}.diff", "whole differences of weights"),
        ("bundle_emb.style.clip_l", "an embedding (textual inversion) beside LoRA"),
        ("emb_params", "an embedding (textual inversion) beside LoRA"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_mid.weight", "LoCon"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "another family, such as FLUX"),
    ],
)
def test_other_kinds_of_adapters_are_named(base: BaseModel, tmp_path: Path, key: str, kind: str) -> None:
    file = tmp_path / "a.safetensors"
    save_file(unet_lora(base, "to_v") | {key: torch.ones(2, 2)}, file)
    message = refused(base, file)
    assert message.startswith(f"{file}: holds ") and kind in message and message.endswith(f": {key}")


def test_flux_in_kohyas_layout_is_not_in_the_base(base: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 2), f"{key}.lora_up.weight": torch.ones(2, 2)}, file)
    assert f"1 of its 1 linear or convolutional modules are not in {base.name}, such as double_" in refused(
        base, file
    )


def test_an_adapter_of_text_encoders_alone_is_refused(base: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(clip_lora(base), file)
    assert "adapts the text encoders alone" in refused(base, file)


def test_one_module_under_two_names_is_refused(emoji: BaseModel, tmp_path: Path) -> None:
    tensors, file = unet_lora(emoji, "attn1.to_q"), tmp_path / "a.safetensors"
    save_file(convert_state_dict_to_kohya(tensors) | kohya_sgm(unet_lora(emoji, "attn1.to_q"), 4.0), file)
    assert "twice, under two names; one of them is input_blocks_" in refused(emoji, file)


def test_a_tensor_twice_is_refused(base: BaseModel, tmp_path: Path) -> None:
    tensors, file = unet_lora(base, "to_v"), tmp_path / "a.safetensors"
    again = {key.replace("lora_A", "lora_down"): t.clone() for key, t in tensors.items() if "lora_A" in key}
    save_file(tensors | again, file)
    assert "has two tensors of one kind" in refused(base, file)


def test_a_file_of_another_depth_is_refused(emoji: BaseModel, base: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(convert_state_dict_to_kohya(unet_lora(emoji)), file)
    assert f"modules are not in {base.name}, such as " in refused(base, file)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02}", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", b"PK\x03\x04"]
)
def test_what_is_no_safetensors_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="a.safetensors: not a readable adapter: ") as caught:
        read_adapter(file)
    assert "\n" not in str(caught.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="holds no tensors"):
        read_adapter(tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors") == {}


# Ours, exported


@pytest.fixture
def searched(
    emoji: BaseModel, tmp_path: Path, make_run: Callable[..., Run], request: pytest.FixtureRequest
) -> Run:
    """A search on the bundled base, with a real adapter as its winner's."""
    run = make_run(metadata=(("base", "emoji-xl"),))
    config = winner_of(run).config.model_copy(update={"target_modules": request.param})
    names = target_names(adaptable_names(emoji.unet), config)
    tensors = lora(dict(emoji.unet.named_modules()), names, config.rank)
    save_adapter(winner_of(run).adapter, {key: 0.5 * tensor for key, tensor in tensors.items()}, config)
    return run


@pytest.fixture
def decomposed(tiny_sdxl: Path, base: BaseModel, tmp_path: Path, make_run: Callable[..., Run]) -> Run:
    """A search on the tiny SDXL whose winner is a DoRA of all modules."""
    run = make_run(metadata=(("base", str(tiny_sdxl)),))
    config = winner_of(run).config.model_copy(update={"target_modules": "all", "dora": True})
    generator = torch.Generator().manual_seed(1)
    with Slots(base.unet, [config]) as slots:
        adapter = slots.adapter(0)
    for key, tensor in adapter.items():
        if "lora_B" in key:
            tensor.normal_(0, 0.1, generator=generator)
        elif "magnitude" in key:
            tensor.mul_(1 + 0.5 * torch.rand(tensor.shape, generator=generator))
    save_adapter(winner_of(run).adapter, adapter, config)
    return run


def test_a_dora_draws_what_it_draws_in_diffusers_in_both_layouts_at_any_weight(
    tiny_sdxl: Path, base: BaseModel, decomposed: Run, tmp_path: Path
) -> None:
    """Of kohya's layout diffusers' pipeline leaves the magnitudes out; its converter takes every key."""
    winner = winner_of(decomposed)
    folder = export(winner, {"diffusers", "kohya"})
    plain, kohya = folder / DIFFUSERS_FILE, folder / winner.kohya_file
    other = tmp_path / "other.safetensors"
    save_file(unet_lora(base, "to_v"), other)
    ours = drawn(base, plain, kohya, other)
    assert_same(ours[0], ours[1])
    assert_same(ours[2], drawn(base, other)[0])
    assert_same(ours[0], in_diffusers(tiny_sdxl, base, plain))
    assert_same(drawn(base, plain, weight=0.4)[0], in_diffusers(tiny_sdxl, base, plain, 0.4))
    without = {key: t for key, t in load_file(plain).items() if "magnitude" not in key}
    save_file(without, other)
    assert (drawn(base, other)[0] != ours[0]).any()

    tensors = load_file(kohya)
    scales = {key: tensor for key, tensor in tensors.items() if key.endswith(".dora_scale")}
    downs = {key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")}
    assert {key.removesuffix(".dora_scale") for key in scales} == downs
    for key, scale in scales.items():
        up = tensors[key.replace("dora_scale", "lora_up.weight")]
        assert scale.shape == (len(up), *(1,) * (up.ndim - 1))
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), base.unet.config)  # type: ignore[no-untyped-call]
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped)  # type: ignore[no-untyped-call]
    assert sum(key.endswith(".lora_magnitude_vector.weight") for key in converted) == len(scales)


def test_magnitudes_of_all_outputs_of_all_modules_are_allowed(base: BaseModel, tmp_path: Path) -> None:
    file, tensors = tmp_path / "a.safetensors", unet_lora(base, "attn1.to_v")
    names = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    width = len(tensors[f"{names[0]}.lora_B.weight"])
    for shape, message in (
        (
            (1, width),
            f"has shape (1, {width}): one number of each output is allowed, (out, 1, …); a DoRA that ",
        ),
        ((width + 1, 1), f"has {width + 1} numbers; {width} are allowed"),
        ((width, 1), f"{names[1].removeprefix('unet.')} lacks a magnitude of DoRA, which other modules have"),
    ):
        save_file(tensors | {f"{names[0]}.dora_scale": torch.ones(shape)}, file)
        if shape[0] > width:
            save_file({f"{n}.dora_scale": torch.ones(shape) for n in names} | tensors, file)
        assert message in refused(base, file)


@pytest.mark.parametrize("modules", ["attention", "all"])
def test_exports_of_an_sd_draw_what_the_adapter_draws_here_and_in_diffusers(
    sd_folder: Path, sd: BaseModel, tmp_path: Path, make_run: Callable[..., Run], modules: str
) -> None:
    run = make_run(metadata=(("base", str(sd_folder)),))
    winner = winner_of(run)
    config = winner.config.model_copy(update={"target_modules": modules})
    names = target_names(adaptable_names(sd.unet), config)
    save_adapter(winner.adapter, lora(dict(sd.unet.named_modules()), names, config.rank), config)
    file = export(winner, {"kohya"}) / winner.kohya_file
    ours, kohya = drawn(sd, winner.adapter, file)
    assert (ours != drawn(sd)[0]).any()
    assert_same(kohya, ours)
    assert_same(in_diffusers(sd_folder, sd, file), ours)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{name}.alpha", f"{name}.lora_down.weight", f"{name}.lora_up.weight"} <= load_file(file).keys()
    with safe_open(file, framework="pt") as opened:
        said = opened.metadata()
    is_first = sd_folder.parent.name.startswith("tiny-sd1")
    assert (said["ss_base_model_version"], said["ss_v2"], said["modelspec.architecture"]) == (
        ("sd_v1", "False", "stable-diffusion-v1/lora")
        if is_first
        else ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora")
    )


@pytest.mark.parametrize("searched", ["attention", "all"], indirect=True)
def test_exports_draw_what_the_adapter_draws_here_and_in_diffusers(emoji: BaseModel, searched: Run) -> None:
    winner = winner_of(searched)
    assert winner.config.alpha != winner.config.rank
    folder = export(winner, {"diffusers", "kohya"})
    ours, plain, kohya = drawn(emoji, winner.adapter, folder / DIFFUSERS_FILE, folder / winner.kohya_file)
    assert (ours != drawn(emoji)[0]).any()
    np.testing.assert_array_equal(plain, ours)
    assert_same(kohya, ours)
    base = EMOJI
    for name in (DIFFUSERS_FILE, winner.kohya_file):
        assert_same(in_diffusers(base, emoji, folder / name), ours)
    assert all(key.startswith("lora_unet_") for key in load_file(folder / winner.kohya_file))


@pytest.mark.parametrize("folder", ["tiny_sdxl", "tiny_sd1"])
def test_trained_text_encoders_draw_the_same_from_every_file_and_in_diffusers(
    folder: str, tmp_path: Path, make_run: Callable[..., Run], request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(folder)
    base = load_base(str(source), torch.device("cpu"))
    run = make_run(metadata=(("base", str(source)),))
    winner = winner_of(run)
    given = {"learning_rate": 1e-2, "text_encoder_learning_rate": 5e-2, "target_modules": "all"}
    config = winner.config.model_copy(update=given)
    rungs = train(base, random_latents(base), iter([config]), [config.epochs], 1)
    next(rungs).save_adapter(0, winner.adapter)
    rungs.close()
    files = export(replace(winner, config=config), {"diffusers", "kohya"})
    diffusers, kohya = files / DIFFUSERS_FILE, files / winner.kohya_file
    of_unet = tmp_path / "unet.safetensors"
    save_file({key: t for key, t in load_file(kohya).items() if key.startswith("lora_unet_")}, of_unet)
    ours, again, in_kohya, without = drawn(base, winner.adapter, diffusers, kohya, of_unet)
    assert np.abs(ours.astype(int) - without).mean() > 1
    np.testing.assert_array_equal(again, ours)
    assert_same(in_kohya, ours)
    for file in (diffusers, kohya):
        assert_same(in_diffusers(source, base, file), ours)
    one, *_ = base.family.text_encoders
    layer = f"{one}.text_model.encoder.layers.0.self_attn.q_proj"
    assert f"{layer}.lora_A.weight" in load_file(diffusers)
    prefixes = {"lora_te1", "lora_te2"} if folder == "tiny_sdxl" else {"lora_te"}
    assert {key.partition("_text_model_")[0] for key in load_file(kohya) if "_text_model_" in key} == prefixes
    assert "text_encoder_learning_rate: 0.05" in (files / "training_config.yaml").read_text()
    with safe_open(kohya, framework="pt") as opened:
        assert opened.metadata()["ss_text_encoder_lr"] == "0.05"
