"""SearchSpace: a YAML file -> Optuna distributions, objectives, rungs and budget."""

import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from bench import yaml
from bench.config import FOUND, MAX_CLASS_IMAGES, NO_CLASS, NUM_CLASS_IMAGES, PRESETS, TrialConfig
from bench.errors import UsageError
from bench.shipped import shipped_spaces
from bench.variants import Variants, all_variants
from bench.yaml import Number, Spec

METRIC_NAMES = Literal[
    "clip_score", "diversity", "vendi", "similarity", "kd", "cmmd", "centroid", "fid", "drift"
]
CHOOSING = Literal["similarity", "clip_score", "diversity", "kd"]
"""Metrics of which a WIN can be said: the others are biased, redundant or best for what learned nothing."""


class Range(Spec):
    """Values between two bounds, both included; uniform in the logarithm if `log`."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low > 0, got {self.low:g}")
        return self


class Choices(Spec):
    """One of the listed values."""

    choices: Annotated[tuple[Number, ...], Field(min_length=1)]


class AlphaRatio(Spec):
    """Alpha as a multiple of the rank: the parameter `alpha` is sampled as alpha / rank."""

    ratio: Annotated[tuple[Number, ...], Field(min_length=1)]


def _modules(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Modules = Annotated[str | tuple[str, ...], BeforeValidator(_modules)]


class ModuleChoices(Spec):
    """One of the named presets, or of explicit lists of module-name endings."""

    choices: Annotated[tuple[Modules, ...], Field(min_length=1)]


class WordChoices(Spec):
    """One of the listed words."""

    choices: Annotated[tuple[str, ...], Field(min_length=1)]


class Flags(Spec):
    """On, off, or both: [true, false]."""

    choices: Annotated[tuple[bool, ...], Field(min_length=1)]


class IntChoices(Spec):
    """One of the listed whole numbers."""

    choices: Annotated[tuple[int, ...], Field(min_length=1)]


class IntRange(Spec):
    """Whole numbers between two bounds, both included."""

    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low}, high={self.high}")
        return self


def _kind(value: Any) -> str:
    """Which way of writing a parameter this is, so that an error speaks of that one alone."""
    if isinstance(value, Spec):
        return type(value).__name__
    keys = value if isinstance(value, dict) else {}
    return "AlphaRatio" if "ratio" in keys else "Choices" if "choices" in keys else "Range"


def _int_kind(value: Any) -> str:
    return value.__class__.__name__ if isinstance(value, Spec) else f"Int{_kind(value)}"


AnyRange = Annotated[Range, Tag("Range")]
AnyChoices = Annotated[Choices, Tag("Choices")]
Numbers = Annotated[AnyRange | AnyChoices, Discriminator(_kind)]
Integers = Annotated[
    Annotated[IntChoices, Tag("IntChoices")] | Annotated[IntRange, Tag("IntRange")], Discriminator(_int_kind)
]
Alphas = Annotated[AnyRange | AnyChoices | Annotated[AlphaRatio, Tag("AlphaRatio")], Discriminator(_kind)]


class Parameters(Spec):
    """What is searched; a parameter that is left out keeps the value of `default`."""

    rank: Integers | None = None
    alpha: Alphas | None = None
    learning_rate: Numbers | None = None
    dropout: Numbers | None = None
    epochs: IntChoices | None = None
    target_modules: ModuleChoices | None = None
    optimizer: WordChoices | None = None
    text_encoder_learning_rate: Numbers | None = None
    weight_decay: Numbers | None = None
    max_grad_norm: Numbers | None = None
    warmup_steps: Integers | None = None
    lr_scheduler: WordChoices | None = None
    lora_plus: Numbers | None = None
    rank_down: Integers | None = None
    rank_mid: Integers | None = None
    rank_up: Integers | None = None
    ema: Numbers | None = None
    rslora: Flags | None = None
    dora: Flags | None = None
    min_snr_gamma: Numbers | None = None
    noise_offset: Numbers | None = None
    caption_dropout: Numbers | None = None
    flip: Flags | None = None
    crops: IntChoices | None = None
    shuffle_caption: Flags | None = None
    keep_tags: IntChoices | None = None
    prior_weight: Numbers | None = None


class Sampler(Spec):
    """How images are drawn for scoring: DPM-Solver++ (2M) with classifier-free guidance."""

    steps: int = Field(20, ge=1, le=1000)
    """Of each image."""
    guidance: Number = Field(5.0, ge=0)
    """Scale of classifier-free guidance."""
    rung_steps: int | None = Field(None, ge=1, le=1000)
    """Steps on the dev prompts, which only choose; `steps` if left out."""

    @model_validator(mode="after")
    def _at_most_all(self) -> "Sampler":
        if self.rung_steps is not None and self.rung_steps > self.steps:
            raise ValueError(f"rung_steps must be at most steps, {self.steps}, got {self.rung_steps}")
        return self

    @property
    def at_rungs(self) -> "Sampler":
        """As images are drawn on the dev prompts."""
        return self.model_copy(update={"steps": self.rung_steps or self.steps})


MIN_UNRELATED = 32
"""Fewer unrelated prompts measure no preservation."""


def _off_or_enough(unrelated: int) -> int:
    if unrelated != 0 and unrelated < MIN_UNRELATED:
        raise ValueError(f"must be 0 (off) or at least {MIN_UNRELATED}, got {unrelated}")
    return unrelated


class Prompts(Spec):
    """How many prompts of each kind are drawn at most, each with how many fixed seeds."""

    dev: int = Field(24, ge=2)
    """Held-out captions that trials are scored on."""
    test: int = Field(48, ge=2)
    """Held-out captions that the search never sees; only they confirm a winner."""
    seeds: int = Field(2, ge=2)
    """Images of each held-out caption."""
    training: int = Field(8, ge=0)
    """Captions of training pictures, drawn for confirmed adapters only: shows what was memorised."""
    altered: int = Field(8, ge=0)
    """The data's subjects in other compositions, likewise: shows whether an adapter still obeys the text."""
    style: int = Field(8, ge=0)
    """The trigger alone and with subjects that the data does not show, likewise."""
    unrelated: Annotated[int, AfterValidator(_off_or_enough)] = MIN_UNRELATED
    """Prompts that have nothing to do with the data, likewise: preservation is measured on them. 0 turns the
    measure off."""
    probe_seeds: int = Field(1, ge=1)
    """Images of each prompt of these four kinds."""
    file: str | None = Field(None, min_length=1)
    """A YAML file, from the working directory, that lists texts by kind; kinds that it leaves out are bundled
    or made from the data."""


class Prune(Spec):
    """Which trials stop early: the last at a rung, by non-dominated rank. The default never does."""

    fraction: Number = Field(0.25, ge=0, le=0.5)
    """Of the trials scored at the same epoch, the last ones stop; 0 turns pruning off."""
    after: int = Field(8, ge=2)
    """Trials that must have been scored at that epoch before one stops."""
    controls: Number = Field(0.2, ge=0, le=1)
    """Share of trials that go on whatever their rank: they show what pruning would have missed."""
    held_out_loss: bool = False
    """Measure the denoising loss of held-out pictures too, and rank by it as by one more objective."""


class Confirm(Spec):
    """The end of a search: the best few and the default, retrained with fresh seeds."""

    finalists: int = Field(3, ge=1)
    """How many of the best."""
    seeds: int = Field(3, ge=1)
    """Trainings of each of them, and of the default."""


def _duration(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value)
    if not match:
        raise ValueError("a number of seconds, or text such as 90s, 20m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _different(weights: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(weights)) != len(weights):
        raise ValueError("names a weight twice")
    return weights


Weights = Annotated[
    tuple[Annotated[Number, Field(gt=0, le=10)], ...], Field(min_length=1), AfterValidator(_different)
]
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0, allow_inf_nan=False)]
"""Seconds; text such as 90s, 20m or 1.5h is accepted."""


def _one_of_each(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("names an objective twice")
    return names


class SearchSpace(Spec):
    """Everything that decides a search; `run.json` keeps it as resolved."""

    name: str = Field("space", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Of its runs; the file's name if left out."""
    base: str
    """`emoji-xl` (bundled), a diffusers folder, a .safetensors checkpoint or a model id on the Hub."""
    revision: str | None = None
    """Commit of a Hub model."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the base predicts, if it does not say it or is wrong."""
    data: str | None = None
    """A bundled data set, a folder, or a data set id on the Hub."""
    trigger: str | None = None
    """Text put in front of every caption, in training and in prompts."""
    scorer: str = "bundled"
    """`bundled`, a folder in open_clip's format, or `hf-hub:…`."""
    judge: str = "auto"
    """The network that confirms: `bundled`, a folder in timm's or open_clip's format, `hf-hub:…`, `none`;
    `auto`: the bundled one beside the bundled scorer, else DINOv2 if it is on this machine."""
    resolution: int | None = Field(None, ge=8, le=4096)
    """Pixels of a side; the base's own if left out."""
    buckets: bool = False
    """Train on crops of several aspect ratios, each picture on the nearest; on squares if not."""
    class_prompt: str | None = Field(None, min_length=1)
    """What images of the class show, for `prior_weight`; the captions without the trigger if left out."""
    class_images: int = Field(NUM_CLASS_IMAGES, ge=1, le=MAX_CLASS_IMAGES)
    balance: bool = True
    """Train on each concept of the data equally often; on each picture if not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the frozen base; adapters are always float32."""
    parameters: Parameters
    """What is searched."""
    default: TrialConfig
    """The configuration to beat: enqueued first, retrained at the end."""
    start_points: tuple[dict[str, Any], ...] = ()
    """Tried right after the default: each holds the fields in which it differs from it."""
    objectives: Annotated[tuple[METRIC_NAMES, ...], Field(min_length=1), AfterValidator(_one_of_each)] = (
        "similarity",
        "clip_score",
        "diversity",
    )
    """What the sampler improves, all at once."""
    select_by: CHOOSING = "similarity"
    """The objective that ranks finalists and names the winner."""
    prompts: Prompts = Prompts()
    """What is drawn."""
    sampler: Sampler = Sampler()
    """How it is drawn."""
    prune: Prune = Prune()
    """Which trials stop early."""
    confirm: Confirm = Confirm()
    """What is trained again at the end."""
    floor: int = Field(3, ge=0, le=1000)
    """Trainings of the default that the noise floor is measured from, two at least; 0 measures none."""
    weights: Weights = (0.4, 0.7, 1.0, 1.2)
    """At which `bench score` draws through adapter files; a search trains and draws at 1."""
    trials: int = Field(16, ge=1)
    """How many configurations are tried in all."""
    budget: Duration | None = None
    """Seconds, or text such as 20m, for the whole search; no pack of trials starts that would not end in
    time, but the first."""
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = 8
    """Trials trained side by side on a device; `auto`: as many as fit and pay there, see `bench/fit.py`."""
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    """That work on the search: all visible GPUs, or at most so many; a processor counts as one, or as that
    number, which share its threads."""

    @model_validator(mode="after")
    def _consistent(self) -> "SearchSpace":
        if self.floor == 1:
            raise ValueError("floor: a spread needs at least 2 trainings, or 0 for no floor, got 1")
        if self.select_by not in self.objectives:
            raise ValueError(
                f"select_by: must be one of the objectives {list(self.objectives)}, got {self.select_by!r}"
            )
        if self.has_prior and not (self.class_prompt or self.trigger):
            raise ValueError(f"prior_weight: {NO_CLASS}")
        distributions = self.distributions
        if not distributions:
            raise ValueError("parameters: nothing to search; give at least one parameter")
        self._check_choices()
        self._check_point("default", self.default)
        for number, config in enumerate(self.starts):
            self._check_point(f"start_points.{number}", config)
        return self

    def _check_point(self, where: str, config: TrialConfig) -> None:
        values = self.parameters_of(config)
        for name, distribution in self.distributions.items():
            if not _contains(distribution, values[name]):
                raise ValueError(f"{where}: {name}={values[name]!r} is not in the space ({distribution})")

    def _check_choices(self) -> None:
        """Each listed value must be legal in a TrialConfig: fails here, not after hours of search."""
        for name, distribution in self.distributions.items():
            bounds = (
                distribution.choices
                if isinstance(distribution, CategoricalDistribution)
                else (distribution.low, distribution.high)  # type: ignore[attr-defined]
            )
            for value in bounds:
                params = {**self.parameters_of(self.default), name: value}
                try:
                    self.config_of(params)
                except UsageError as error:
                    raise ValueError(f"parameters.{name}: {error}") from None

    @property
    def num_slots(self) -> int:
        """`slots` of a space of a run that has begun, where `auto` has been resolved."""
        if self.slots == "auto":
            raise ValueError("slots: auto is not resolved yet")
        return self.slots

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions by parameter name."""
        searched = {name: getattr(self.parameters, name) for name in Parameters.model_fields}
        if not self._may_shuffle:
            del searched["keep_tags"]
        return {name: _distribution(spec) for name, spec in searched.items() if spec is not None}

    @property
    def _may_shuffle(self) -> bool:
        """Otherwise `keep_tags` decides nothing."""
        shuffle = self.parameters.shuffle_caption
        return any(shuffle.choices) if shuffle else self.default.shuffle_caption

    @property
    def starts(self) -> list[TrialConfig]:
        """The start points as full configurations."""
        default = self.default.model_dump()
        try:
            return [
                yaml.validate(default | point, TrialConfig, "start_points") for point in self.start_points
            ]
        except UsageError as error:
            raise ValueError(str(error)) from None

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epoch counts at which trials are scored, ascending."""
        epochs = self.parameters.epochs
        return tuple(sorted(set(epochs.choices))) if epochs else (self.default.epochs,)

    @property
    def has_prior(self) -> bool:
        """Whether any trial may train on images of the class."""
        return self.highest("prior_weight") > 0

    @property
    def trains_text(self) -> bool:
        """Whether any trial may train the text encoders."""
        return self.highest("text_encoder_learning_rate") > 0

    def highest(self, name: str) -> float:
        """Of a number, in any trial."""
        match getattr(self.parameters, name):
            case Range(high=most):
                return most
            case Choices(choices=listed):
                return max(listed)
            case _:
                value: float = getattr(self.default, name)
                return value

    @property
    def optimizers(self) -> tuple[str, ...]:
        """That any trial may have."""
        searched = self.parameters.optimizer
        return searched.choices if searched else (self.default.optimizer,)

    @property
    def variants(self) -> Variants:
        """Of pictures and captions that any trial may draw among."""
        names = ("flip", "crops", "shuffle_caption", "keep_tags")
        searched = {name: getattr(self.parameters, name) for name in names}
        values = {
            name: spec.choices if spec else (getattr(self.default, name),) for name, spec in searched.items()
        }
        return all_variants(**values, trigger=self.trigger)

    def config_of(self, params: dict[str, Any]) -> TrialConfig:
        """The full configuration of a sampled point; what is not searched comes from `default`."""
        data = {**self.default.model_dump(), **params}
        if "target_modules" in params:
            data["target_modules"] = modules_from_text(params["target_modules"])
        if isinstance(self.parameters.alpha, AlphaRatio):
            data["alpha"] = params["alpha"] * data["rank"]
        if data["optimizer"] == "prodigy":
            data |= FOUND
        if not data["shuffle_caption"]:
            data["keep_tags"] = self.default.keep_tags
        return yaml.validate(data, TrialConfig, "trial")

    def parameters_of(self, config: TrialConfig) -> dict[str, Any]:
        """The point of the space that gives `config`: the inverse of `config_of`."""
        distributions = self.distributions
        point = {name: getattr(config, name) for name in distributions}
        idle = set(FOUND) if config.optimizer == "prodigy" else set()
        if not config.shuffle_caption:
            idle.add("keep_tags")
        for name in idle & point.keys():
            point[name] = _any_of(distributions[name])
        if "alpha" in point and isinstance(self.parameters.alpha, AlphaRatio):
            ratio = config.alpha / config.rank
            # Division may miss a listed ratio by a rounding.
            listed = [r for r in self.parameters.alpha.ratio if math.isclose(r, ratio)]
            point["alpha"] = listed[0] if listed else ratio
        if "target_modules" in point:
            point["target_modules"] = modules_to_text(config.target_modules)
        return point


def modules_to_text(modules: str | tuple[str, ...]) -> str:
    """Target modules as one text: Optuna stores only scalars."""
    return modules if isinstance(modules, str) else ",".join(modules)


def modules_from_text(text: str) -> str | tuple[str, ...]:
    """Inverse of `modules_to_text`."""
    return text if text in PRESETS else tuple(part for part in text.split(",") if part)


def _any_of(distribution: Any) -> Any:
    """A value for a parameter that does not count."""
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else distribution.low


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def _distribution(spec: Any) -> BaseDistribution:
    match spec:
        case IntRange():
            return IntDistribution(spec.low, spec.high, log=spec.log)
        case Range():
            return FloatDistribution(spec.low, spec.high, log=spec.log)
        case AlphaRatio():
            return CategoricalDistribution(spec.ratio)
        case ModuleChoices():
            return CategoricalDistribution([modules_to_text(modules) for modules in spec.choices])
        case _:
            return CategoricalDistribution(spec.choices)


def load_space(name: str) -> SearchSpace:
    """A shipped space by name, or a YAML file by path; raises UsageError."""
    shipped = shipped_spaces()
    if name in shipped:
        source = files("search_spaces") / f"{name}.yaml"
        return yaml.parse(source.read_text(encoding="utf-8"), SearchSpace, f"{name}.yaml")
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        known = ", ".join(shipped)
        raise UsageError(f"--space {name}: no such space; shipped are {known}, or give a .yaml file")
    space = yaml.read(path, SearchSpace)
    return space if "name" in space.model_fields_set else space.model_copy(update={"name": path.stem})
