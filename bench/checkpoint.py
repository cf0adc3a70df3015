"""A checkpoint: a whole pipeline in one .safetensors file, named as its authors named it before diffusers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.errors import UsageError
from bench.families import FAMILIES
from bench.families.clip import clip_tokenizer
from bench.families.family import MODELS, Config, Family, Layout, Prediction
from bench.pipeline import INDEX, loading, refuse_channels, vae_scale
from bench.weights import Header, digest, read_header, refuse_incomplete

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""The UNet's first convolution."""
REFINER = "conditioner.embedders.0.model.text_projection"
VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors by which trainers mark what a UNet predicts, and that its noise ends without signal."""
EDM = {"edm_mean", "edm_vpred.sigma_max"}
"""Tensors of SDXLs that were trained on the noise of Karras et al. 2022 (arXiv 2206.00364)."""
DESCRIBED = "modelspec.prediction_type"
"""In the metadata: `epsilon` or `v`, as the ModelSpec of Stability AI says."""
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""All families' noise; which sampler draws is not read from here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A file in the layout of a family; see `bench.sources.Source`."""

    path: Path
    name: str
    """As the user gave it; errors name it."""
    dtype: torch.dtype
    family: Family
    layout: Layout
    header: Header
    prediction: Prediction

    def check(self) -> int:
        """Count every part's weights; returns the VAE's scale. Raises UsageError for what is incomplete."""
        for part, prefix in self.layout.prefixes.items():
            blank = self.blank(part)
            needed = sum(parameter.numel() for parameter in blank.parameters())
            refuse_incomplete(f"base {self.name}: {part}", self.header.count(prefix), needed)
        return self._scale

    @property
    def _scale(self) -> int:
        return vae_scale(self.blank("vae"))

    def resolution(self) -> int:
        """Pixels of a side of the images that its models were trained on."""
        return self.layout.pixels[self.prediction]

    def blank(self, part: str) -> Any:
        """The UNet, the VAE or a text encoder without weights."""
        return self.family.blank(part, self.layout.configs[part])

    def load(self, *parts: str) -> Any:
        """A pipeline on the CPU that has only these parts of its family's. Raises UsageError."""
        import diffusers

        absent = set(self.family.parts) - set(parts)
        tokenizers = {part: clip_tokenizer(pad) for part, pad in self.layout.pads.items()}
        with loading(self.name), self._reporting(parts), self._configs() as folder:
            return getattr(diffusers, self.family.pipeline).from_single_file(
                str(self.path),
                config=str(folder),
                dtype=self.dtype,
                local_files_only=True,
                **self.family.options,
                **(tokenizers | dict.fromkeys(absent)),
            )

    def fingerprint(self) -> str:
        """sha256 of the file."""
        return digest(self.path).hex()

    @contextmanager
    def _reporting(self, parts: tuple[str, ...]) -> Iterator[None]:
        """Weights that the converter did not find have no data, and torch cannot move them."""
        try:
            yield
        except NotImplementedError:
            where = f"base {self.name}: {', '.join(sorted(self.layout.prefixes.keys() & set(parts)))}"
            raise UsageError(
                f"{where}: weights are missing, or not named as those of {self.layout.name}"
            ) from None

    @contextmanager
    def _configs(self) -> Iterator[Path]:
        """A folder like the pipeline's, without weights."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            for file, config in self._files().items():
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_text(json.dumps(config))
            yield folder

    def _files(self) -> dict[str, Config]:
        classes = {part: ["diffusers", kind] for part, kind in MODELS.items()}
        classes |= {part: ["transformers", kind] for part, kind in self.family.text_encoders.items()}
        classes |= {part: ["transformers", "CLIPTokenizer"] for part in self.layout.pads}
        classes["scheduler"] = ["diffusers", str(SCHEDULER["_class_name"])]
        index = {"_class_name": self.family.pipeline, **self.layout.index, **classes}
        configs = {f"{part}/config.json": config for part, config in self.layout.configs.items()}
        sample_size = self.layout.pixels[self.prediction] // self._scale
        configs["unet/config.json"] = {**self.layout.configs["unet"], "sample_size": sample_size}
        return {INDEX: index, "scheduler/scheduler_config.json": self._schedule(), **configs}

    def _schedule(self) -> Config:
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        ending = zero_snr if ZERO_SNR in self.header.shapes else {}
        return {**SCHEDULER, "prediction_type": self.prediction, **ending}


def open_checkpoint(path: Path, name: str, dtype: torch.dtype, prediction: Prediction | None) -> Checkpoint:
    """Raises UsageError for a file that is no checkpoint of a supported family."""
    if not path.is_file():
        raise UsageError(f"base {name}: no such file")
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"base {name}: cannot be read: {' '.join(str(error).split())}") from None
    layouts = [(family, layout) for family in FAMILIES.values() for layout in family.layouts]
    found = [pair for pair in layouts if {pair[1].key, FIRST} <= header.shapes.keys()]
    if not found or EDM & header.shapes.keys():
        known = ", ".join(layout.name for _, layout in layouts)
        raise UsageError(f"base {name}: {_what(header)}; supported are checkpoints of {known}")
    refuse_channels(name, header.shapes[FIRST][1])
    family, layout = found[0]
    return Checkpoint(
        path=path,
        name=name,
        dtype=dtype,
        family=family,
        layout=layout,
        header=header,
        prediction=prediction or _prediction(header, layout, name),
    )


def _prediction(header: Header, layout: Layout, name: str) -> Prediction:
    if VELOCITY in header.shapes or header.metadata.get(DESCRIBED) == "v":
        return "v_prediction"
    if header.metadata.get(DESCRIBED) == "epsilon":
        return "epsilon"
    if layout.prediction is None:
        raise UsageError(
            f"base {name}: a checkpoint of {layout.name} does not tell what it predicts: give "
            "prediction: v_prediction (models of 768 pixels) or prediction: epsilon (of 512) in the space"
        )
    return layout.prediction


def _what(header: Header) -> str:
    """What a file seems to be that cannot be a base."""
    names = list(header.shapes)
    if EDM & header.shapes.keys():
        return "trained on the noise of EDM"
    if any("lora" in name for name in names):
        return "a LoRA, which needs a base itself"
    if REFINER in names:
        return "a refiner, which only finishes images"
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.", "text_model.")) for name in names):
        return "one part of a diffusers folder: give the folder"
    such = f", such as {names[0][:80]!r}" if names else ""
    return f"no checkpoint that is known: it holds {len(names)} tensors{such}"
