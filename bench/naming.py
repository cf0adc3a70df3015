"""How LoRA files name what they hold: tables of the layouts that trainers write, read key by key.

A key is a prefix that says which network, the name of a module as that layout spells it, and an ending that
says which tensor. A UNet's modules have diffusers' names or those of Stability-AI's generative-models (SGM),
with their dots or with underscores instead:

    diffusers, ai-toolkit      unet.down_blocks.1.attentions.0.….to_q.lora_A.weight
    PEFT's save_pretrained     base_model.model.down_blocks.1.….to_q.lora_A.weight
    kohya's sd-scripts, SDXL   lora_unet_input_blocks_4_1_….to_q.lora_down.weight, lora_te1_…, lora_te2_…
      SD 1.x and 2.x           lora_unet_down_blocks_1_attentions_0_….to_q.lora_down.weight, lora_te_…
    OneTrainer                 lora_unet_down_blocks_1_attentions_0_….to_q.lora_down.weight, lora_te1_…, or
    (and its OMI format)       unet.input_blocks.4.1.….to_q.lora_down.weight, clip_l.…, clip_g.…
    ComfyUI                    diffusion_model.input_blocks.4.1.….to_q.lora_up.weight
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Part = Literal["unet", "text_encoder", "text_encoder_2"]
Tensor = Literal["down", "up", "alpha", "magnitude"]

PEFT_PREFIX = "base_model.model."
PREFIXES: dict[str, Part] = {
    "unet.": "unet",
    PEFT_PREFIX: "unet",
    "diffusion_model.": "unet",
    "lora_unet_": "unet",
    "lora_unet.": "unet",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te1.": "text_encoder",
    "clip_l.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
    "lora_te2.": "text_encoder_2",
    "clip_g.": "text_encoder_2",
}
ENDINGS: dict[str, Tensor] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",  # diffusers' attention processors: ….attn1.processor.to_q_lora.down.weight
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude",  # PEFT's DoRA
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".dora_scale": "magnitude",  # LyCORIS's and OneTrainer's
}
OTHER_KINDS = {
    r"\.magnitude$": "DoRA of another layout",
    r"\.hada_(w|t)\d": "LoHa",
    r"\.lokr_(w|t)\d": "LoKr",
    r"\.(oft_|boft_)": "OFT",
    r"\.lora_mid\.weight$": "LoCon with a Tucker decomposition",
    r"\.diff(_b)?$": "whole differences of weights",
    r"\.lora_(B|up)\.bias$": "biases beside LoRA",
    r"^bundle_emb\.|^emb_params$": "an embedding (textual inversion) beside LoRA",
    r"^(lora_)?transformer[._]|[._](double|single)_blocks[._]": "an adapter of another family, such as FLUX",
}
"""What a key like these says that the file is, other than a LoRA of an SDXL."""
WHOLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
IN_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
IN_BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.((?P<block>\d+)\.)?"
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
PROCESSOR = re.compile(r"(.+\.attn\d)\.(to_(?:q|k|v|out))(\.0)?")
CLIP_ATTENTION = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")
CLIP_PREFIX = "text_model."
"""Before the names of a CLIPTextModel's modules in files, and not in those of newer versions of it."""


class Key(NamedTuple):
    """A key of a file, taken apart."""

    part: Part
    module: str
    """As the file spells it."""
    tensor: Tensor


def parse_key(key: str) -> Key | None:
    """None for a key of no layout above."""
    if not key.isprintable():
        return None
    prefix = max((prefix for prefix in PREFIXES if key.startswith(prefix)), key=len, default=None)
    ending = max((ending for ending in ENDINGS if key.endswith(ending)), key=len, default=None)
    if prefix is None or ending is None:
        return None
    module = key[len(prefix) : -len(ending)]
    return Key(PREFIXES[prefix], module, ENDINGS[ending]) if module else None


def other_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """What a file with these keys is, if it is known and no plain LoRA, and the key that says so."""
    found = ((kind, key) for key in keys for pattern, kind in OTHER_KINDS.items() if re.search(pattern, key))
    return next(found, None)


def unet_spellings(modules: Sequence[str], layers_per_block: int) -> dict[str, str]:
    """Each name that a layout may give to one of a UNet's modules -> diffusers' name."""
    sgm = sgm_names(modules, layers_per_block)
    dotted = {spelled: name for name in modules for spelled in (name, sgm[name], *_processor(name))}
    return _with_underscores(dotted)


def clip_spellings(modules: Sequence[str]) -> dict[str, str]:
    """The same of a text encoder's modules -> their names in transformers."""
    dotted: dict[str, str] = {}
    for name in modules:
        bare = name.removeprefix(CLIP_PREFIX)
        old = CLIP_ATTENTION.sub(r"\1.to_\2", bare)
        dotted |= {spelled: name for base in (bare, old) for spelled in (base, CLIP_PREFIX + base)}
    return _with_underscores(dotted)


def kohya_names(part: Part, modules: Sequence[str], layers_per_block: int) -> dict[str, str]:
    """Names of modules as kohya's sd-scripts writes them for an SDXL, prefix included."""
    if part == "unet":
        return {name: "lora_unet_" + _flat(sgm) for name, sgm in sgm_names(modules, layers_per_block).items()}
    prefix = "lora_te1_" if part == "text_encoder" else "lora_te2_"
    return {name: prefix + _flat(clip_name(name)) for name in modules}


def kohya_sd_names(part: Part, modules: Sequence[str]) -> dict[str, str]:
    """The same for an SD 1.x or 2.x, whose UNet's modules keep diffusers' names."""
    if part == "unet":
        return {name: "lora_unet_" + _flat(name) for name in modules}
    return {name: "lora_te_" + _flat(clip_name(name)) for name in modules}


def sgm_names(modules: Sequence[str], layers_per_block: int) -> dict[str, str]:
    """diffusers' name of a UNet's module -> SGM's; what has no other name there keeps its own."""
    found = (match for name in modules if (match := IN_BLOCK.fullmatch(name)))
    attending = {match["block"] for match in found if match["side"] == "up" and match["kind"] == "attentions"}
    return {name: _sgm_name(name, layers_per_block, attending) for name in modules}


def _sgm_name(name: str, layers: int, attending: set[str]) -> str:
    """SGM counts layers through all blocks, and samplers among them; the layers of a block are `layers` on
    the way down and one more on the way up, where only blocks in `attending` have attentions."""
    match = IN_BLOCK.fullmatch(name)
    if match is None:
        return WHOLE.get(name, name)
    kind, layer, block = match["kind"], int(match["layer"]), int(match["block"] or 0)
    rest = IN_RESNET.get(match["rest"], match["rest"]) if kind == "resnets" else match["rest"]
    place = 1 if kind == "attentions" else 0
    if match["side"] == "mid":
        return f"middle_block.{2 * layer + place}.{rest}"
    first = block * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if match['block'] in attending else 1}.conv"
    side, offset = ("input_blocks", 1) if match["side"] == "down" else ("output_blocks", 0)
    return f"{side}.{first + layer + offset}.{place}.{rest}"


def _processor(name: str) -> list[str]:
    """How diffusers named the projections of attention at first."""
    match = PROCESSOR.fullmatch(name)
    return [f"{match[1]}.processor.{match[2]}"] if match else []


def clip_name(name: str) -> str:
    """In files, of a text encoder's module; text_projection lies beside the text model."""
    inside = name.startswith((CLIP_PREFIX, "text_projection"))
    return name if inside else CLIP_PREFIX + name


def _with_underscores(dotted: Mapping[str, str]) -> dict[str, str]:
    return {**{_flat(spelled): name for spelled, name in dotted.items()}, **dotted}


def _flat(name: str) -> str:
    return name.replace(".", "_")
