"""Checkpoints: a pipeline in one file gives what its folder gives, and what is no checkpoint is named."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from open_clip import SimpleTokenizer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bench import checkpoint
from bench.base import BaseModel, load_base
from bench.errors import UsageError
from bench.families import FAMILIES, sd, sdxl
from bench.families.clip import END, clip_tokenizer
from bench.families.family import Family, Layout, Prediction
from bench.scoring.generate import generate
from bench.space import Sampler
from bench.weights import Header

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "b, c", ""]
Tensors = dict[str, torch.Tensor]

# The published names: CompVis' ldm, Stability's generative-models and open_clip, from diffusers' and
# transformers'.


def unet_blocks(unet: Mapping[str, Any]) -> dict[str, str]:
    """Of a UNet's config: one row of blocks down and one up there, levels with layers here."""
    levels, layers = len(unet["down_block_types"]), unet["layers_per_block"]
    blocks = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    down, up = 1, 0
    for level in range(levels):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{down}.0"
            blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{down}.1"
            down += 1
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{down}.0.op"
        down += level < levels - 1
        for layer in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{up}.0"
            blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{up}.1"
            up += 1
        place = 2 if "CrossAttn" in unet["up_block_types"][level] else 1
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{up - 1}.{place}.conv"
    return blocks


def vae_blocks(vae: Mapping[str, Any]) -> dict[str, str]:
    """Of a VAE's config: the decoder's levels are counted from the other end there."""
    levels, layers = len(vae["down_block_types"]), vae["layers_per_block"]
    blocks = {}
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        ours = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        blocks |= {f"{ours[0]}.resnets.{layer}": f"{down}.block.{layer}" for layer in range(layers)}
        blocks |= {f"{ours[1]}.resnets.{layer}": f"{up}.block.{layer}" for layer in range(layers + 1)}
        blocks[f"{ours[0]}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        blocks[f"{ours[1]}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return blocks


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_NAMES = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def ldm_unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    blocks, result = unet_blocks(config), {}
    for name, tensor in tensors.items():
        block = next(block for block in blocks if name.startswith(f"{block}."))
        rest = name.removeprefix(block)
        result[blocks[block] + (renamed(rest, RESNET) if ".resnets." in block else rest)] = tensor
    return result


def ldm_vae(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Attention is a convolution of 1 × 1 there."""
    result = {}
    for name, tensor in tensors.items():
        new = renamed(name, vae_blocks(config) | VAE_NAMES)
        result[new] = tensor[..., None, None] if ".attn_1." in new and tensor.ndim == 2 else tensor
    return result


def open_clip(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """q, k and v are one product there; the last projection is the other way round."""
    result = {}
    for name, tensor in tensors.items():
        new = renamed(name.removeprefix("text_model."), OPEN_CLIP)
        if ".q_proj." in name:
            parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            result[new.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
        elif name == "text_projection.weight":
            result["text_projection"] = tensor.T.contiguous()
        elif "_proj." not in name or "out_proj" in name or "c_proj" in new:
            result[new] = tensor
    return result


def clip(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


Convert = Callable[[Tensors, Mapping[str, Any]], Tensors]
CONVERTERS: dict[str, dict[str, Convert]] = {
    "SD 1.x": {"unet": ldm_unet, "vae": ldm_vae, "text_encoder": clip},
    "SD 2.x": {"unet": ldm_unet, "vae": ldm_vae, "text_encoder": open_clip},
    "SDXL": {"unet": ldm_unet, "vae": ldm_vae, "text_encoder": clip, "text_encoder_2": open_clip},
}


def converted(pipeline: Any, layout: Layout) -> Tensors:
    """All weights of a pipeline under the names of a layout."""
    tensors = {}
    for part, convert in CONVERTERS[layout.name].items():
        model = getattr(pipeline, part)
        for name, tensor in convert(model.state_dict(), model.config).items():
            tensors[layout.prefixes[part] + name] = tensor
    return tensors


def clip_config(**fields: int) -> CLIPTextConfig:
    """Of a real vocabulary: a checkpoint brings no other."""
    return CLIPTextConfig(num_attention_heads=2, num_hidden_layers=2, intermediate_size=32, **fields)


def tiny_sd(folder: Path, layout: Layout, prediction: str) -> tuple[Any, Layout]:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.text_encoder = CLIPTextModel(clip_config(hidden_size=16)).eval()
    pipeline.tokenizer = clip_tokenizer(layout.pads["tokenizer"])
    return finished(pipeline, layout, prediction)


def tiny_xl(folder: Path) -> tuple[Any, Layout]:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.text_encoder = CLIPTextModel(clip_config(hidden_size=8)).eval()
    second = clip_config(hidden_size=24, projection_dim=16)
    pipeline.text_encoder_2 = CLIPTextModelWithProjection(second).eval()
    pipeline.tokenizer, pipeline.tokenizer_2 = clip_tokenizer(END), clip_tokenizer("!")
    return finished(pipeline, sdxl.BASE, "epsilon")


def finished(pipeline: Any, layout: Layout, prediction: str) -> tuple[Any, Layout]:
    """With a checkpoint's schedule, and a layout with the pipeline's sizes."""
    schedule = {**checkpoint.SCHEDULER, "prediction_type": prediction}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(schedule)
    models = {part: getattr(pipeline, part).config for part in layout.prefixes}
    configs = {p: c.to_dict() if isinstance(c, CLIPTextConfig) else dict(c) for p, c in models.items()}
    return pipeline, replace(layout, configs=configs, pixels={"epsilon": 32, "v_prediction": 32})


@pytest.fixture(scope="module", params=["SD 1.x", "SD 2.x", "SDXL"])
def tiny(request: pytest.FixtureRequest) -> tuple[Any, Layout]:
    torch.manual_seed(1)
    if request.param == "SDXL":
        return tiny_xl(request.getfixturevalue("tiny_sdxl"))
    if request.param == "SD 1.x":
        return tiny_sd(request.getfixturevalue("tiny_sd1"), sd.SD_1, "epsilon")
    return tiny_sd(request.getfixturevalue("tiny_sd2"), sd.SD_2, "v_prediction")


@pytest.fixture
def tensors(tiny: tuple[Any, Layout], monkeypatch: pytest.MonkeyPatch) -> Tensors:
    """The tiny pipeline's checkpoint, whose sizes are known as its layout's."""
    pipeline, layout = tiny
    family = FAMILIES[type(pipeline).__name__]
    monkeypatch.setitem(FAMILIES, family.pipeline, replace(family, layouts=(layout,)))
    return converted(pipeline, layout)


@pytest.fixture
def file(tensors: Tensors, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"modelspec.prediction_type": "v"} if is_sd2(tensors) else None)
    return path


def is_sd2(tensors: Tensors) -> bool:
    return sd.SD_2.key in tensors


def drawn(base: BaseModel) -> Any:
    text, empty = base.encode_prompts(PROMPTS), base.encode_empty()
    return generate(base, text, empty, [1, 2, 3], Sampler(steps=4, guidance=4))


# Loading


def test_a_checkpoint_gives_what_its_folder_gives(
    tiny: tuple[Any, Layout], file: Path, tmp_path: Path
) -> None:
    tiny[0].save_pretrained(tmp_path / "folder")
    plain, base = load_base(str(tmp_path / "folder"), CPU), load_base(str(file), CPU)
    for ours, theirs in zip(base.unet.state_dict().items(), plain.unet.state_dict().items(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])
    ours, theirs = base.encode_prompts(PROMPTS), plain.encode_prompts(PROMPTS)
    assert torch.equal(ours.hidden, theirs.hidden) and torch.equal(ours.pooled, theirs.pooled)
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(base.encode_images(images)[0], plain.encode_images(images)[0])
    assert (drawn(base) == drawn(plain)).all()


def test_a_checkpoint_is_loaded_in_the_number_format_asked_for(file: Path) -> None:
    base = load_base(str(file), CPU, dtype="bfloat16")
    assert {parameter.dtype for parameter in base.unet.parameters()} == {torch.bfloat16}
    assert base.encode_prompts(["a"]).hidden.dtype == torch.bfloat16


def test_a_checkpoint_is_known_by_its_content(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(file, other)
    before = load_base(str(other), CPU).fingerprint
    assert before == load_base(str(file), CPU).fingerprint
    content = other.read_bytes()
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_base(str(other), CPU).fingerprint != before


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_all_its_weights_is_refused(
    tiny: tuple[Any, Layout], tensors: Tensors, tmp_path: Path, part: str
) -> None:
    prefix = tiny[1].prefixes[part]
    kept = {name: tensor for name, tensor in tensors.items() if name in {tiny[1].key, checkpoint.FIRST}}
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    save_file(kept | others, tmp_path / "a.safetensors", {"modelspec.prediction_type": "v"})
    with pytest.raises(UsageError, match=rf"a\.safetensors: {part}: incomplete: its weights are "):
        load_base(str(tmp_path / "a.safetensors"), CPU)


def test_weights_under_unknown_names_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    name = "model.diffusion_model.time_embed.0.weight"
    tensors[name + "s"] = tensors.pop(name)
    save_file(tensors, tmp_path / "a.safetensors", {"modelspec.prediction_type": "v"})
    with pytest.raises(UsageError, match=r"unet: weights are missing, or not named as those of SD"):
        load_base(str(tmp_path / "a.safetensors"), CPU)


# What the UNet predicts


@pytest.mark.parametrize(
    ("marks", "metadata", "prediction"),
    [
        ((), {}, None),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction"),
        (("v_pred",), {}, "v_prediction"),
        (("v_pred", "ztsnr"), {}, "v_prediction"),
    ],
)
def test_what_a_checkpoint_predicts_is_read_from_it(
    tensors: Tensors, tmp_path: Path, marks: tuple[str, ...], metadata: dict[str, str], prediction: str | None
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(tensors | {mark: torch.empty(0) for mark in marks}, file, metadata)
    if prediction is None and is_sd2(tensors):
        with pytest.raises(UsageError, match="does not tell what it predicts: give prediction: v_prediction"):
            load_base(str(file), CPU)
        assert load_base(str(file), CPU, prediction="epsilon").scheduler_config.prediction_type == "epsilon"
        return
    config = load_base(str(file), CPU).scheduler_config
    assert config.prediction_type == (prediction or "epsilon")
    assert config.rescale_betas_zero_snr == ("ztsnr" in marks)


# Sizes


@pytest.mark.parametrize(
    ("layout", "prediction", "pixels"),
    [(sd.SD_1, "epsilon", 512), (sd.SD_2, "epsilon", 512), (sd.SD_2, "v_prediction", 768)],
)
def test_images_are_as_large_as_those_that_it_was_trained_on(
    layout: Layout, prediction: Prediction, pixels: int
) -> None:
    of_this = {"path": Path("a"), "name": "a", "dtype": torch.float32, "header": Header({}, {})}
    opened = checkpoint.Checkpoint(**of_this, family=sd.FAMILY, layout=layout, prediction=prediction)
    assert opened._files()["unet/config.json"]["sample_size"] * 8 == pixels


@pytest.mark.parametrize(
    ("family", "layout", "part", "number"),
    [
        (sd.FAMILY, sd.SD_1, "unet", 859_520_964),
        (sd.FAMILY, sd.SD_1, "vae", 83_653_863),
        (sd.FAMILY, sd.SD_1, "text_encoder", 123_060_480),
        (sd.FAMILY, sd.SD_2, "unet", 865_910_724),
        (sd.FAMILY, sd.SD_2, "text_encoder", 340_387_840),
        (sdxl.FAMILY, sdxl.BASE, "unet", 2_567_463_684),
        (sdxl.FAMILY, sdxl.BASE, "vae", 83_653_863),
        (sdxl.FAMILY, sdxl.BASE, "text_encoder_2", 694_659_840),
    ],
)
def test_full_sizes_are_those_that_were_published(
    family: Family, layout: Layout, part: str, number: int
) -> None:
    blank = family.blank(part, layout.configs[part])
    assert sum(parameter.numel() for parameter in blank.parameters()) == number


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize(
    ("family", "layout"), [(sd.FAMILY, sd.SD_1), (sd.FAMILY, sd.SD_2), (sdxl.FAMILY, sdxl.BASE)]
)
def test_full_sizes_are_converted_to_what_diffusers_has(family: Family, layout: Layout, part: str) -> None:
    blank = family.blank(part, layout.configs[part])
    theirs = CONVERTERS[layout.name][part](blank.state_dict(), blank.config)
    convert = convert_ldm_unet_checkpoint if part == "unet" else convert_ldm_vae_checkpoint
    back = convert({layout.prefixes[part] + name: tensor for name, tensor in theirs.items()}, blank.config)
    shapes = {name: tensor.shape for name, tensor in blank.state_dict().items()}
    assert {name: tensor.shape for name, tensor in back.items()} == shapes


@pytest.mark.parametrize("text", ["a photo of a cat, isn't it?", "Héllo wörld 日本語 🦊 123", "", "x" * 300])
def test_the_tokenizer_is_that_of_clip(text: str) -> None:
    ids = clip_tokenizer("!")(text, padding="max_length", truncation=True).input_ids
    assert ids == SimpleTokenizer()(text)[0].tolist()
    assert clip_tokenizer(END).pad_token_id == 49407


# What is no checkpoint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "a LoRA, which needs a base itself"),
        (["unet.down_blocks.0.attn1.to_q.lora_A.weight"], "a LoRA, which needs a base itself"),
        ([checkpoint.REFINER, checkpoint.FIRST], "a refiner, which only finishes images"),
        ([sdxl.BASE.key, checkpoint.FIRST, "edm_mean"], "trained on the noise of EDM"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one part of a diffusers folder: give the folder"),
        (
            ["double_blocks.0.img_attn.\x1b[31m"],
            r"it holds 1 tensors, such as 'double_blocks.0.img_attn.\\x1b",
        ),
        ([], "it holds 0 tensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    file = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(4, 4) for name in names}, file)
    with pytest.raises(UsageError, match=message) as caught:
        load_base(str(file), CPU)
    assert str(caught.value).endswith("; supported are checkpoints of SDXL, SD 1.x, SD 2.x")


def test_an_inpainting_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({sd.SD_1.key: torch.zeros(77, 768), checkpoint.FIRST: torch.zeros(320, 9, 3, 3)}, file)
    with pytest.raises(UsageError, match="its UNet takes 9 channels, as inpainting and editing models do"):
        load_base(str(file), CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04" + b"\xff" * 100, r"no safetensors file: its header would have [\d,]+ bytes"),
        ((17 * 1024**2).to_bytes(8, "little"), "no safetensors file: its header would have 17,825,792 bytes"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_base(str(file), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UsageError, match="is a pickle, and may run any code; give a .safetensors file"):
        load_base(str(tmp_path / f"model{suffix}"), CPU)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.safetensors: no such file$"):
        load_base(str(tmp_path / "nowhere.safetensors"), CPU)
