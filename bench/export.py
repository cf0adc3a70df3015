"""Export: an adapter of a run -> a folder to share, with its scores and what reproduces it in every file.

    runs/NAME/export/
        pytorch_lora_weights.safetensors   diffusers' layout
        NAME.safetensors                   kohya's layout, which other tools read, with its `ss_` metadata
        training_config.yaml               trains it again
        README.md                          the model card
        images/                            of the card

Nothing in it names a folder of this machine.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import bench
from bench.base import adaptable_names
from bench.card import write_card, write_training_card
from bench.config import TrainingConfig, TrialConfig
from bench.errors import UsageError
from bench.exported import (
    DIFFUSERS_FILE,
    Exported,
    export_folder,
    previews_folder,
    shared_config,
    shared_name,
)
from bench.files import replacing, write_text
from bench.naming import Part, kohya_names, kohya_sd_names, parse_key
from bench.run import Run
from bench.sources import find_source

Layout = Literal["diffusers", "kohya"]
Tensors = dict[str, torch.Tensor]
OPTIMIZERS = {
    "adamw": "torch.optim.adamw.AdamW(weight_decay={decay:g})",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay={decay:g})",
    "prodigy": "prodigyopt.prodigy.Prodigy(weight_decay={decay:g},decouple=True,use_bias_correction=True,"
    "safeguard_warmup=True)",
}
"""As sd-scripts writes them: the class, and what it is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What kohya's sd-scripts, and Stability AI's model specification, call a base."""

    version: str
    architecture: str
    is_v2: bool = False
    num_blocks: tuple[int, int, int] = (12, 1, 12)
    """Down, in the middle and up, as sd-scripts counts them in `block_dims`."""


SDXL = Kind(
    version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base/lora",
    num_blocks=(10, 3, 10),  # with what is before the first and after the last
)
SD_1 = Kind(version="sd_v1", architecture="stable-diffusion-v1/lora")
SD_1_V = Kind(version="sd_v1_v", architecture="stable-diffusion-v1/lora")
SD_2 = Kind(version="sd_v2", architecture="stable-diffusion-v2-512/lora", is_v2=True)
SD_2_V = Kind(version="sd_v2_v", architecture="stable-diffusion-v2-768-v/lora", is_v2=True)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Target:
    """The base whose modules have the names to translate."""

    kind: Kind
    unet: torch.nn.Module
    """Without weights."""

    def names(self, part: Part, modules: Sequence[str]) -> dict[str, str]:
        """Modules in kohya's layout."""
        if part == "unet":
            modules = adaptable_names(self.unet)
        if self.kind is not SDXL:
            return kohya_sd_names(part, modules)
        layers: Any = self.unet.config
        return kohya_names(part, modules, layers.layers_per_block)


def export(exported: Exported, layouts: Collection[Layout]) -> Path:
    """Write the folder, in place of one that was there before; returns it.

    Raises UsageError for an adapter that cannot be read, MissingError if the base is not on this machine.
    """
    folder = export_folder(exported.run.path)
    making = _making(folder)
    tensors, described = _read(exported.adapter)
    config = exported.training_config.guide_yaml()
    if "diffusers" in layouts:
        _save(tensors, described | _own_metadata(exported, config), making / DIFFUSERS_FILE)
    if "kohya" in layouts:
        target = find_target(exported.run)
        renamed = to_kohya(tensors, exported.config, target)
        _save(
            renamed,
            kohya_metadata(exported, renamed, target.kind) | _own_metadata(exported, config),
            making / exported.kohya_file,
        )
    write_text(making / "training_config.yaml", config)
    write_card(exported, making)
    return _made(making, folder)


def export_training(config: TrainingConfig, output: Path, name: str, num_images: int, num_steps: int) -> Path:
    """Write the folder of one training, which nothing has scored, into its output; returns it."""
    folder = export_folder(output)
    making = _making(folder)
    shared = shared_config(config)
    making.mkdir()
    shutil.copyfile(output / DIFFUSERS_FILE, making / DIFFUSERS_FILE)
    write_text(making / "training_config.yaml", shared.guide_yaml())
    drawn = sorted(previews_folder(output, num_steps).glob("*.webp"))
    write_training_card(shared, name, num_images, drawn, making)
    return _made(making, folder)


def _making(folder: Path) -> Path:
    """Where it is written, until it is whole."""
    making = folder.with_name(".export.tmp")
    shutil.rmtree(making, ignore_errors=True)
    return making


def _made(making: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    return folder


def _read(file: Path) -> tuple[Tensors, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file}: not a readable adapter: {error}") from None


def _save(tensors: Tensors, metadata: Mapping[str, str], file: Path) -> None:
    from safetensors.torch import save_file

    with replacing(file) as temporary:
        save_file(tensors, temporary, {"format": "pt", **metadata})


# kohya's layout


def find_target(run: Run) -> Target:
    """Of a run's base; raises MissingError if it is not on this machine."""
    source = find_source(run.metadata.base, run.space.revision, prediction=run.space.prediction)
    unet = source.blank("unet")
    if source.family.pipeline == "StableDiffusionXLPipeline":
        return Target(kind=SDXL, unet=unet)
    predicts = run.space.prediction or source.load("scheduler").scheduler.config.prediction_type
    if unet.config.use_linear_projection:  # by which sd-scripts' own UNet differs in 2.x
        return Target(kind=SD_2_V if predicts == "v_prediction" else SD_2, unet=unet)
    return Target(kind=SD_1_V if predicts == "v_prediction" else SD_1, unet=unet)


def to_kohya(tensors: Tensors, config: TrialConfig, target: Target) -> Tensors:
    """Of diffusers' keys, as kohya's sd-scripts writes them; alpha is such that the scale stays.

    DoRA's magnitudes, which sd-scripts does not train, are as LyCORIS writes them: (out, 1, …).
    """
    keys = {key: parse_key(key) for key in tensors}
    strange = [key for key, parsed in keys.items() if parsed is None or parsed.tensor == "alpha"]
    if strange:
        raise UsageError(
            f"kohya's layout has no name for {strange[0]}; --as diffusers writes the other alone"
        )
    names: dict[Part, dict[str, str]] = {}
    for part in {parsed.part for parsed in keys.values() if parsed}:
        modules = [parsed.module for parsed in keys.values() if parsed and parsed.part == part]
        names[part] = target.names(part, list(dict.fromkeys(modules)))
    renamed: Tensors = {}
    for key, parsed in keys.items():
        assert parsed is not None
        name = names[parsed.part][parsed.module]
        if parsed.tensor == "magnitude":
            others = (1,) * max(1, tensors[key].ndim - 1)
            renamed[f"{name}.dora_scale"] = tensors[key].reshape(-1, *others)
            continue
        renamed[f"{name}.lora_{parsed.tensor}.weight"] = tensors[key].contiguous()
        if parsed.tensor == "down":
            renamed[f"{name}.alpha"] = torch.tensor(config.scale * len(tensors[key]))
    return renamed


def kohya_metadata(exported: Exported, tensors: Tensors, kind: Kind) -> dict[str, str]:
    """What user interfaces show of a file; keys as sd-scripts writes them, and of its model specification."""
    config, run = exported.config, exported.run
    side = run.space.resolution
    said: dict[str, object] = {
        "ss_output_name": run.metadata.name,
        "ss_network_module": "lycoris.kohya" if config.dora else "networks.lora",
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.scale * config.rank,
        "ss_network_dropout": config.dropout,
        "ss_base_model_version": kind.version,
        "ss_sd_model_name": shared_name(run.metadata.base),
        "ss_v2": kind.is_v2,
        "ss_num_epochs": config.epochs,
        "ss_epoch": config.epochs,
        "ss_num_train_images": run.metadata.num_images["train"],
        "ss_num_reg_images": 0,
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size,
        "ss_enable_bucket": run.space.buckets,
        "ss_cache_latents": True,
        "ss_mixed_precision": "bf16" if run.space.dtype == "bfloat16" else "no",
        "ss_seed": config.seed,
        "ss_training_comment": comment(exported),
        "sshs_model_hash": _tensor_hash(tensors),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": kind.architecture,
        "modelspec.title": run.metadata.name,
    }
    said |= _of_optimizer(config) | _of_samples(config)
    if config.prior_weight:
        said |= {"ss_num_reg_images": run.space.class_images, "ss_prior_loss_weight": config.prior_weight}
    if side:
        said |= {"ss_resolution": f"({side}, {side})", "modelspec.resolution": f"{side}x{side}"}
    if run.space.trigger:
        said["modelspec.trigger_phrase"] = run.space.trigger
    has_conv = any(tensor.ndim == 4 and tensor.shape[-1] > 1 for tensor in tensors.values())
    if arguments := _network_args(config, kind, has_conv):
        said["ss_network_args"] = json.dumps(arguments)
    return {key: str(value) for key, value in said.items()}


def _of_optimizer(config: TrialConfig) -> dict[str, object]:
    warmed = config.lr_scheduler == "constant" and config.warmup_steps
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": config.text_encoder_learning_rate,
        "ss_lr_scheduler": "constant_with_warmup" if warmed else config.lr_scheduler,
        "ss_lr_warmup_steps": config.warmup_steps,
        "ss_optimizer": OPTIMIZERS[config.optimizer].format(decay=config.weight_decay),
        "ss_max_grad_norm": config.max_grad_norm,
    }


def _of_samples(config: TrialConfig) -> dict[str, object]:
    """How they are drawn and weighed; what is off is None there where sd-scripts says so."""
    return {
        "ss_flip_aug": config.flip,
        "ss_random_crop": config.crops > 1,
        "ss_shuffle_caption": config.shuffle_caption,
        "ss_keep_tokens": config.keep_tags,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_noise_offset": config.noise_offset or None,
        "ss_min_snr_gamma": config.min_snr_gamma or None,
    }


def _network_args(config: TrialConfig, kind: Kind, has_conv: bool) -> dict[str, str]:
    """What sd-scripts would be given to make this adapter; its values are text. rsLoRA is in the alpha."""
    ranks = {part: config.rank_of(f"{part}_blocks") for part in ("down", "mid", "up")}
    said = {} if config.lora_plus == 1 else {"loraplus_lr_ratio": f"{config.lora_plus:g}"}
    if config.dora:  # which LyCORIS trains, sd-scripts' own networks do not
        said |= {"algo": "locon", "dora_wd": "True", "wd_on_output": "True"}
    parts = ("", "conv_") if has_conv else ("",)
    if set(ranks.values()) == {config.rank}:
        alpha = f"{config.scale * config.rank:g}"
        return said | ({"conv_dim": str(config.rank), "conv_alpha": alpha} if has_conv else {})
    dims = [rank for rank, number in zip(ranks.values(), kind.num_blocks, strict=True) for _ in range(number)]
    dim_text = ",".join(map(str, dims))
    alpha_text = ",".join(f"{config.scale * dim:g}" for dim in dims)
    for part in parts:
        said |= {f"{part}block_dims": dim_text, f"{part}block_alphas": alpha_text}
    return said


def comment(exported: Exported) -> str:
    """The score in one line."""
    name = exported.run.space.select_by
    score = exported.scores[name]
    gain = "" if score.gain is None else f", {score.gain:+.4f} ± {score.gain_stderr:.4f} over the base"
    return (
        f"bench {bench.__version__}, {exported.name}: {name} {score.value:.4f} ± {score.stderr:.4f}{gain} "
        f"on {score.num_prompts} {exported.split} prompts"
    )


def _own_metadata(exported: Exported, config: str) -> dict[str, str]:
    """In files of both layouts: what reproduces it, and all scores with their errors."""
    run, floor = exported.run, exported.run.floor()
    scores = {name: asdict(score) for name, score in exported.scores.items()}
    return {
        "bench_version": bench.__version__,
        "bench_training_config": config,
        "bench_scores": json.dumps(scores, sort_keys=True),
        "bench_scored_on": f"{exported.split} prompts",
        "bench_trainings": str(exported.num_trainings),
        "bench_noise_floor": json.dumps(asdict(floor), sort_keys=True) if floor else "",
        "bench_base_sha256": run.metadata.base_fingerprint,
        "bench_data_sha256": run.metadata.data_fingerprint,
    }


def _tensor_hash(tensors: Tensors) -> str:
    """sha256 of a file's tensors without its header, by which user interfaces know a LoRA."""
    from safetensors.torch import save

    data = save(tensors)
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
