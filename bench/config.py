"""TrialConfig: everything that decides one LoRA's weights."""

from typing import Literal, get_args

import yaml
from pydantic import AliasChoices, Field, field_validator

from bench.yaml import Number, Spec

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)
Preset = Literal["attention", "attention+ff", "all"]
PRESETS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "attention+ff": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS,
}
assert set(PRESETS) == set(get_args(Preset))
MAX_RANK = 1024
GUIDE_NAMES = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "epochs": "num_train_epochs",
    "target_modules": "lora_target_modules",
    "batch_size": "train_batch_size",
}
"""Our name of a field -> its name in the training guide."""


def _names(field: str) -> AliasChoices:
    return AliasChoices(field, GUIDE_NAMES[field])


class TrialConfig(Spec):
    """One LoRA training. Field names are the parameter names of a search space.

    The names of the training guide (`lora_rank`, `num_train_epochs`, …) are accepted as aliases.
    """

    rank: int = Field(ge=1, le=MAX_RANK, validation_alias=_names("rank"))
    alpha: Number = Field(gt=0, validation_alias=_names("alpha"))
    """Absolute; the adapter is scaled by alpha / rank."""
    learning_rate: Number = Field(gt=0, le=1)
    dropout: Number = Field(0.0, ge=0, lt=1, validation_alias=_names("dropout"))
    """Probability of zeroing an element of an adapter's input, as in PEFT."""
    epochs: int = Field(ge=1, le=10_000, validation_alias=_names("epochs"))
    target_modules: Preset | tuple[str, ...] = Field("attention", validation_alias=_names("target_modules"))
    """A preset, or endings of module names as PEFT takes them."""
    batch_size: int = Field(4, ge=1, le=1024, validation_alias=_names("batch_size"))
    weight_decay: Number = Field(0.01, ge=0)
    max_grad_norm: Number = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, then a constant rate: only so are the epochs of one training nested."""
    caption_dropout: Number = Field(0.0, ge=0, lt=1)
    """Probability of training a sample with the empty prompt."""
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("target_modules")
    @classmethod
    def _at_least_one(cls, value: object) -> object:
        if value == ():
            raise ValueError("needs at least one module name")
        return value

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def module_endings(self) -> tuple[str, ...]:
        """Endings of the names of the modules that get an adapter."""
        modules = self.target_modules
        return PRESETS[modules] if isinstance(modules, str) else modules


class TrainingConfig(TrialConfig):
    """A training_config.yaml: one training with the base and the data it is for."""

    model_name: str
    dataset_name: str
    revision: str | None = None
    resolution: int | None = None
    dtype: str | None = None
    trigger: str | None = None

    def guide_yaml(self) -> str:
        """As YAML under the training guide's names, target modules listed in full."""
        data = self.model_dump(mode="json", exclude_none=True)
        data["target_modules"] = list(self.module_endings)
        first = ("model_name", "dataset_name")
        ordered = {name: data[name] for name in first} | {k: v for k, v in data.items() if k not in first}
        renamed = {GUIDE_NAMES.get(name, name): value for name, value in ordered.items()}
        return yaml.safe_dump(renamed, sort_keys=False, allow_unicode=True)
