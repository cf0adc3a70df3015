"""TrialConfig: everything that decides one LoRA's weights."""

from typing import Literal

from pydantic import AliasChoices, Field, field_validator

from bench.yaml import Number, Spec

Preset = Literal["attention", "attention+ff", "all"]


class TrialConfig(Spec):
    """One LoRA training. Field names are the parameter names of a search space.

    The names of the training guide (`lora_rank`, `num_train_epochs`, …) are accepted as aliases.
    """

    rank: int = Field(ge=1, le=1024, validation_alias=AliasChoices("rank", "lora_rank"))
    alpha: Number = Field(gt=0, validation_alias=AliasChoices("alpha", "lora_alpha"))
    """Absolute; the adapter is scaled by alpha / rank."""
    learning_rate: Number = Field(gt=0, le=1)
    dropout: Number = Field(0.0, ge=0, lt=1, validation_alias=AliasChoices("dropout", "lora_dropout"))
    """Probability of zeroing an element of an adapter's input, as in PEFT."""
    epochs: int = Field(ge=1, le=10_000, validation_alias=AliasChoices("epochs", "num_train_epochs"))
    target_modules: Preset | tuple[str, ...] = Field(
        "attention", validation_alias=AliasChoices("target_modules", "lora_target_modules")
    )
    """A preset, or endings of module names as PEFT takes them."""
    batch_size: int = Field(4, ge=1, le=1024, validation_alias=AliasChoices("batch_size", "train_batch_size"))
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
