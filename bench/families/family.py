"""Family: what differs between kinds of models; everything else knows a model by its BaseModel alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

Prediction = Literal["epsilon", "v_prediction"]
"""What a UNet predicts: the noise, or the velocity (Salimans & Ho 2022, arXiv 2202.00512)."""
Config = Mapping[str, Any]
"""What a part's config.json says."""
MODELS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""Of every family: their classes in diffusers."""
LDM = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
"""How their names begin in the code of Rombach et al. 2022 and its successors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Weights of a family in one file, named as its authors did, and the configurations they are for."""

    name: str
    key: str
    """A tensor that only such files have."""
    prefixes: Mapping[str, str]
    """How the names of a part's tensors begin."""
    configs: Mapping[str, Config]
    """Of the UNet, the VAE and the text encoders."""
    pads: Mapping[str, str]
    """The token that each tokenizer fills prompts up with."""
    prediction: Prediction | None
    """Of files that do not say it themselves; None where they differ."""
    pixels: Mapping[Prediction, int]
    """Side of the images that the models were trained on."""
    index: Config = field(default_factory=dict)
    """What model_index.json says beside its parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Models whose UNets are conditioned in the same way.

    `hidden` is (n, tokens, width) and `pooled` (n, width); a family without the latter has (n, 0), so that
    nothing else must know.
    """

    pipeline: str
    """Its class in diffusers, which model_index.json names."""
    text_encoders: Mapping[str, str]
    """Their classes in transformers, by part."""
    encode: Callable[[Any, list[str]], tuple[torch.Tensor, torch.Tensor]]
    """A pipeline with its text encoders and prompts -> `hidden` and `pooled`."""
    read: Callable[[Sequence[nn.Module], torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """Text encoders and tokens (n, encoders, length) -> the same, with gradients."""
    conditions: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], dict[str, Any]]
    """`hidden`, `pooled` and time ids (n, …) -> what the UNet takes beside latents and timesteps."""
    pooled_width: Callable[[Any], int] = lambda config: 0
    """Of the UNet's config."""
    time_ids: Callable[[int, int], tuple[int, ...]] = lambda height, width: ()
    """What a UNet is told of the size of an image, in pixels."""
    options: Config = field(default_factory=dict)
    """Of the pipeline's class."""
    layouts: tuple[Layout, ...] = ()
    """Of single files; a family may have none."""

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.text_encoders)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Parts that are loaded when they are first used."""
        return (*self.text_encoders, "vae")

    @property
    def parts(self) -> tuple[str, ...]:
        return ("unet", "scheduler", *self.encoders, *self.tokenizers)

    def blank(self, part: str, config: Config) -> Any:
        """The UNet, the VAE or a text encoder that a config.json describes, without weights."""
        import diffusers
        import transformers

        with torch.device("meta"):
            if part in self.text_encoders:
                kind = getattr(transformers, self.text_encoders[part])
                return kind(kind.config_class.from_dict(dict(config)))
            return getattr(diffusers, MODELS[part]).from_config(dict(config))
