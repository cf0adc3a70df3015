"""TrialConfig: everything that decides one LoRA's weights."""

import math
from dataclasses import replace
from importlib.util import find_spec
from typing import Annotated, Literal, get_args

import yaml
from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from bench.errors import UsageError
from bench.variants import Variants, all_variants
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
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Of a text encoder, what diffusers' scripts adapt."""
MAX_RANK, MAX_BATCH = 1024, 1024
MAX_CROPS, MAX_TAGS = 64, 1000
NUM_CLASS_IMAGES, MAX_CLASS_IMAGES = 64, 10_000
NO_CLASS = "needs class_prompt, as in: a dog; or a trigger, without which captions tell the class"
FOUND = {"learning_rate": 1, "lora_plus": 1, "text_encoder_learning_rate": 0}
"""What Prodigy leaves no choice of: it finds one rate for all weights."""
GUIDE_NAMES = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "epochs": "num_train_epochs",
    "target_modules": "lora_target_modules",
    "batch_size": "train_batch_size",
}
"""Our name of a field -> its name in the training guide."""
DTYPES = {"no": "float32", "fp16": "bfloat16", "bf16": "bfloat16"}
"""The guide's `mixed_precision` -> arithmetic of the frozen model."""


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
    batch_size: int = Field(4, ge=1, le=MAX_BATCH, validation_alias=_names("batch_size"))
    optimizer: Literal["adamw", "prodigy", "adamw8bit"] = "adamw"
    """Prodigy finds the rate itself: `learning_rate` is 1, and the text encoders stay frozen.
    Mishchenko & Defazio 2023 (arXiv 2306.06101). adamw8bit keeps moments in 8 bits and needs `bench[8bit]`.
    Dettmers et al. 2022 (arXiv 2110.02861)."""
    text_encoder_learning_rate: Number = Field(0.0, ge=0, le=1)
    """Of the adapters that the attention of the text encoders gets too, of the same rank and alpha; 0: none,
    the text encoders stay frozen."""
    weight_decay: Number = Field(0.01, ge=0)
    max_grad_norm: Number = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Over which the rate rises linearly."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up. Falling ones end at 0 with the last epoch: such a training is scored there alone."""
    lora_plus: Number = Field(1.0, ge=1, le=1000)
    """Learning rate of B over that of A, LoRA+: Hayou et al. 2024 (arXiv 2402.12354)."""
    rank_down: int | None = Field(None, ge=1, le=MAX_RANK)
    rank_mid: int | None = Field(None, ge=1, le=MAX_RANK)
    rank_up: int | None = Field(None, ge=1, le=MAX_RANK)
    """Another rank than `rank` in the down blocks, the middle or the up blocks, at the same scale."""
    ema: Number = Field(0.0, ge=0, lt=1)
    """Decay of the average of all weights so far, which is what is scored and kept; 0: the last weights."""
    rslora: bool = False
    """Scale adapters by alpha / √rank instead of alpha / rank: Kalajdzievski 2023 (arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of each output's weights apart from their direction: Liu et al. 2024 (arXiv
    2402.09353)."""
    min_snr_gamma: Number = Field(0.0, ge=0)
    """Most that the signal-to-noise ratio of a timestep counts; 0: the loss is not weighted.
    Hang et al. 2023 (arXiv 2303.09556)."""
    noise_offset: Number = Field(0.0, ge=0, le=1)
    """Standard deviation of a noise that is the same all over a channel, added to the other."""
    caption_dropout: Number = Field(0.0, ge=0, lt=1)
    """Probability of training a sample with the empty prompt."""
    flip: bool = False
    """Each sample is mirrored with probability 1/2."""
    crops: int = Field(1, ge=1, le=MAX_CROPS)
    """Of a picture, of which each sample shows one: the centre's, and others that lie anywhere. All are the
    same where it has the shape that is trained on."""
    shuffle_caption: bool = False
    """Each sample has the tags of its caption, which commas separate, in one of several orders."""
    keep_tags: int = Field(0, ge=0, le=MAX_TAGS)
    """Tags that stay in front while the others are shuffled."""
    prior_weight: Number = Field(0.0, ge=0, le=100)
    """What the loss of as many images of the class, drawn by the base, counts beside that of a batch; 0: none
    are trained on. DreamBooth: Ruiz et al. 2023 (arXiv 2208.12242)."""
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("target_modules")
    @classmethod
    def _at_least_one(cls, value: object) -> object:
        if value == ():
            raise ValueError("needs at least one module name")
        return value

    @model_validator(mode="after")
    def _found_rate(self) -> "TrialConfig":
        for name, value in FOUND.items() if self.optimizer == "prodigy" else ():
            if getattr(self, name) != value:
                given = getattr(self, name)
                raise ValueError(f"{name} must be {value} with optimizer prodigy, got {given:g}")
        return self

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders get adapters too."""
        return self.text_encoder_learning_rate > 0

    def rank_of(self, module: str) -> int:
        """Of a module by its name in the UNet, or of a text encoder's by its name in a file."""
        of_block = {"down": self.rank_down, "mid": self.rank_mid, "up": self.rank_up}
        return of_block.get(module.partition("_")[0]) or self.rank

    @property
    def highest_rank(self) -> int:
        return max(self.rank, self.rank_down or 0, self.rank_mid or 0, self.rank_up or 0)

    @property
    def nested(self) -> bool:
        """Whether a training of fewer epochs is the beginning of this one, to the bit."""
        return self.lr_scheduler == "constant"

    @property
    def variants(self) -> Variants:
        """Of pictures and captions that this training draws among."""
        return all_variants([self.flip], [self.crops], [self.shuffle_caption], [self.keep_tags])

    @property
    def module_endings(self) -> tuple[str, ...]:
        """Endings of the names of the modules that get an adapter."""
        modules = self.target_modules
        return PRESETS[modules] if isinstance(modules, str) else modules


def refuse_missing_8bit() -> None:
    """Raises UsageError where `adamw8bit` cannot train."""
    if find_spec("bitsandbytes") is None:
        raise UsageError("optimizer adamw8bit needs bitsandbytes; install it with: pip install 'bench[8bit]'")


def _word(value: object) -> object:
    # YAML 1.1 reads the word no as false.
    return "no" if value is False else value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Tracker = Literal["tensorboard", "trackio", "wandb"]


class TrainingConfig(TrialConfig):
    """A training_config.yaml: one training with the base and the data it is for."""

    model_name: str
    """`emoji-xl`, a diffusers folder, a .safetensors checkpoint, or a model on the Hub."""
    vae_name: str | None = None
    """Another VAE than the model's own: a folder or a model on the Hub."""
    dataset_name: str
    """A bundled data set, a folder, or a data set on the Hub."""
    image_column: str | None = None
    caption_column: str | None = None
    """Of a table, or of metadata.jsonl; found by themselves if left out."""
    hold_out: bool = False
    """Leave out the pictures that a search of these data holds out; splits of the data's own always count."""
    trigger: str | None = None
    """Put in front of each caption that does not contain it."""
    revision: str | None = None
    """Commit of a model on the Hub."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the model predicts, if it does not say it or is wrong."""
    resolution: int | None = Field(None, ge=8, le=4096)
    """Pixels of a side; the model's own if left out."""
    buckets: bool = False
    """Train on crops of several aspect ratios, each picture on the nearest; on squares if not."""
    class_prompt: str | None = Field(None, min_length=1)
    """What images of the class show, for `prior_weight`; the captions without the trigger if left out."""
    class_images: int = Field(NUM_CLASS_IMAGES, ge=1, le=MAX_CLASS_IMAGES)
    balance: bool = True
    """Train on each concept of the data equally often; on each picture if not."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the frozen model; adapters are always float32."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"] | None, BeforeValidator(_word)] = None
    """The guide's word for `dtype`; fp16 trains in bfloat16."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_BATCH)
    """Parts of `batch_size` samples in each update."""
    output_dir: str = Field("outputs", min_length=1)
    save_steps: int = Field(500, ge=1)
    """Updates between checkpoints."""
    save_total_limit: int | None = Field(None, ge=1)
    """Checkpoints that are kept, the last ones; all if left out."""
    sample_prompts: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Drawn while it trains, as they are written, each with the same noise every time."""
    sample_steps: int | None = Field(None, ge=1)
    """Updates between these images; `save_steps` if left out."""
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_listed)] = ()
    hub_model_id: str | None = None
    """owner/name of the model on the Hub that the adapter is uploaded to at the end, privately."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        if (size := self.batch_size * self.gradient_accumulation_steps) > MAX_BATCH:
            raise ValueError(
                f"train_batch_size times gradient_accumulation_steps must be at most {MAX_BATCH}, got {size}"
            )
        if self.prior_weight and not (self.class_prompt or self.trigger):
            raise ValueError(f"prior_weight: {NO_CLASS}")
        if self.dtype and self.mixed_precision and self.dtype != DTYPES[self.mixed_precision]:
            raise ValueError(
                f"dtype {self.dtype} and mixed_precision {self.mixed_precision} differ; give one of them"
            )
        return self

    @property
    def trial(self) -> TrialConfig:
        """What decides the weights; its batch is all that an update sees."""
        fields = {name: getattr(self, name) for name in TrialConfig.model_fields}
        return TrialConfig(**fields | {"batch_size": self.batch_size * self.gradient_accumulation_steps})

    @property
    def arithmetic(self) -> str:
        """`dtype`, by whichever name it is given."""
        return self.dtype or DTYPES[self.mixed_precision or "no"]

    @property
    def variants(self) -> Variants:
        return replace(super().variants, trigger=self.trigger)

    def guide_yaml(self) -> str:
        """As YAML under the training guide's names, target modules listed in full."""
        data = self.model_dump(mode="json", exclude_none=True)
        data["target_modules"] = list(self.module_endings)
        first = ("model_name", "dataset_name")
        ordered = {name: data[name] for name in first} | {k: v for k, v in data.items() if k not in first}
        renamed = {GUIDE_NAMES.get(name, name): value for name, value in ordered.items()}
        return yaml.safe_dump(renamed, sort_keys=False, allow_unicode=True)
