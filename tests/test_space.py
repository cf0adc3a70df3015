"""Search spaces: what is shipped, what a user may write, and what is refused with which words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bench.config import PRESETS, TrainingConfig, TrialConfig
from bench.errors import UsageError
from bench.session import resolve
from bench.shipped import shipped_spaces
from bench.space import SearchSpace, load_space
from bench.yaml import Number, Spec, parse

SPACE: dict[str, Any] = {
    "base": "emoji-xl",
    "parameters": {
        "rank": {"choices": [4, 8]},
        "alpha": {"ratio": [1, 2]},
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
    },
    "default": {"rank": 8, "alpha": 16, "learning_rate": "1e-4", "epochs": 2},
}


def space(**changes: Any) -> SearchSpace:
    return parse(json.dumps({**SPACE, **changes}), SearchSpace, "my.yaml")


def test_options_of_a_training_are_searched_and_prodigy_finds_its_rate() -> None:
    parameters = {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "optimizer": {"choices": ["adamw", "adamw8bit", "prodigy"]},
        "lr_scheduler": {"choices": ["constant", "cosine"]},
        "rslora": {"choices": [True, False]},
        "dora": {"choices": [True, False]},
        "min_snr_gamma": {"choices": [0, 5]},
        "rank_up": {"choices": [4, 16]},
        "ema": {"low": 0, "high": 0.99},
        "text_encoder_learning_rate": {"choices": [0, 1e-5]},
    }
    default = {"rank": 8, "alpha": 8, "learning_rate": 1e-3, "epochs": 2, "rank_up": 4}
    mine = space(parameters=parameters, default=default)
    found = {"learning_rate": 2e-3, "text_encoder_learning_rate": 1e-5}
    point = mine.parameters_of(mine.default) | {"optimizer": "prodigy", **found}
    config = mine.config_of(point)
    assert (config.optimizer, config.learning_rate, config.trains_text) == ("prodigy", 1, False)
    assert mine.trains_text and not space().trains_text
    assert mine.config_of(mine.parameters_of(config)) == config
    for name in ("adamw", "adamw8bit"):
        config = mine.config_of(point | {"optimizer": name})
        assert (config.learning_rate, config.text_encoder_learning_rate) == (2e-3, 1e-5)


def test_tags_that_stay_are_searched_where_tags_are_shuffled() -> None:
    flags, kept = {"choices": [False, True]}, {"choices": [1, 2]}
    default = {"rank": 8, "alpha": 8, "learning_rate": 1e-3, "epochs": 2}
    mine = space(parameters={"shuffle_caption": flags, "keep_tags": kept}, default=default)
    shuffled, plain = (
        [mine.config_of({"shuffle_caption": on, "keep_tags": number}) for number in (1, 2)]
        for on in (True, False)
    )
    assert [config.keep_tags for config in shuffled] == [1, 2]
    assert plain == [mine.default, mine.default]
    for config in (*shuffled, *plain):
        assert mine.config_of(mine.parameters_of(config)) == config
    ranks = {"choices": [4, 8]}
    never = space(parameters={"rank": ranks, "keep_tags": kept}, default=default)
    assert list(never.distributions) == ["rank"]
    always = space(
        parameters={"rank": ranks, "keep_tags": kept},
        default=default | {"shuffle_caption": True, "keep_tags": 1},
    )
    assert list(always.distributions) == ["rank", "keep_tags"]


@pytest.mark.parametrize(
    ("name", "choices", "words"),
    [
        ("optimizer", ["adam"], "parameters.optimizer: trial: optimizer: "),
        ("lr_scheduler", ["cosin"], "'constant', 'linear' or 'cosine'"),
        ("rank_mid", [0], "parameters.rank_mid"),
        ("ema", [1], "parameters.ema"),
    ],
)
def test_a_choice_that_no_training_takes_is_refused(name: str, choices: list[Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        space(parameters={name: {"choices": choices}})


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_shipped_space_is_valid_and_named_as_its_file(name: str) -> None:
    assert load_space(name).name == name


def test_shipped_spaces_try_the_guide_s_point() -> None:
    for name in shipped_spaces():
        default = load_space(name).default
        assert (default.rank, default.alpha, default.learning_rate, default.dropout) == (8, 16, 1e-4, 0.1)


@pytest.mark.parametrize("devices", [0, 65, "all", 1.5])
def test_devices_are_auto_or_a_number(devices: Any) -> None:
    assert (space().devices, space(devices=2).devices) == ("auto", 2)
    with pytest.raises(UsageError, match="devices"):
        space(devices=devices)


def test_a_space_file_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(pyyaml.safe_dump(SPACE))
    assert load_space(str(tmp_path / "mine.yaml")).name == "mine"


def test_distributions_are_what_was_written() -> None:
    parameters = {
        **SPACE["parameters"],
        "rank": {"low": 2, "high": 16, "log": True},
        "target_modules": {"choices": ["attention", ["to_q", "to_v"]]},
    }
    assert space(parameters=parameters).distributions == {
        "rank": IntDistribution(2, 16, log=True),
        "alpha": CategoricalDistribution((1.0, 2.0)),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "target_modules": CategoricalDistribution(["attention", "to_q,to_v"]),
    }


def test_alpha_as_a_ratio_is_relative_to_the_rank() -> None:
    config = space().config_of({"rank": 4, "alpha": 2.0, "learning_rate": 1e-3})
    assert (config.rank, config.alpha) == (4, 8)


def test_alpha_may_be_absolute() -> None:
    parameters = {**SPACE["parameters"], "alpha": {"choices": [8, 16]}}
    config = space(parameters=parameters).config_of({"rank": 4, "alpha": 16.0, "learning_rate": 1e-3})
    assert (config.rank, config.alpha) == (4, 16)


@pytest.mark.parametrize("modules", ["all", ["to_q", "to_v"], ["to_q"]])
def test_a_configuration_and_its_point_are_inverse(modules: Any) -> None:
    parameters = {**SPACE["parameters"], "target_modules": {"choices": ["attention", modules]}}
    mine = space(parameters=parameters, default={**SPACE["default"], "target_modules": modules})
    assert mine.config_of(mine.parameters_of(mine.default)) == mine.default


def test_a_ratio_survives_division() -> None:
    parameters = {**SPACE["parameters"], "rank": {"choices": [3]}, "alpha": {"ratio": [0.1]}}
    mine = space(parameters=parameters, default={**SPACE["default"], "rank": 3, "alpha": 0.3})
    assert mine.parameters_of(mine.default)["alpha"] == 0.1


def test_rungs_are_the_choices_of_epochs() -> None:
    parameters = {**SPACE["parameters"], "epochs": {"choices": [8, 2, 4]}}
    assert space(parameters=parameters).rungs == (2, 4, 8)
    assert space().rungs == (2,)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), (60, 60)])
def test_a_budget_is_a_duration(text: Any, seconds: float) -> None:
    assert space(budget=text).budget == seconds


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"rnak": {"choices": [4]}}}, "parameters.rnak: unknown key; known keys: rank, alpha"),
        ({"parameters": {"rank": {"choices": ["x"]}}}, "parameters.rank.choices.0: Input should be"),
        ({"parameters": {"dropout": {"choices": ["x"]}}}, "parameters.dropout.choices.0"),
        ({"parameters": {"rank": {"chioces": [4]}}}, "parameters.rank.low: required key is missing"),
        (
            {"parameters": {"rank": {"choices": [4], "log": True}}},
            "parameters.rank.log: unknown key; known keys: choices",
        ),
        ({"parameters": {"rank": 4}}, "parameters.rank: "),
        ({"Rank": 4}, "Rank: unknown key"),
        ({"start_points": [{"rnak": 4}]}, "start_points: rnak: unknown key; known keys: rank"),
        ({"start_points": [{"rank": 5}]}, "start_points.0: rank=5 is not in the space"),
        ({"sampler": {"step": 4}}, "sampler.step: unknown key; known keys: steps, guidance"),
        ({"trails": 4}, "trails: unknown key; known keys: name, base"),
        ({"default": {"rank": 8}}, "default.alpha: required key is missing"),
        ({"parameters": {}}, "parameters: nothing to search"),
        ({"parameters": {"learning_rate": {"low": 1e-2, "high": 1e-4}}}, "low must be below high"),
        ({"parameters": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "needs low > 0"),
        ({"parameters": {"learning_rate": {"low": 1e-5, "high": 2}}}, "parameters.learning_rate"),
        ({"parameters": {"learning_rate": {"low": "small", "high": 1}}}, "parameters.learning_rate"),
        ({"parameters": {"learning_rate": {"low": ".nan", "high": 1}}}, "parameters.learning_rate"),
        ({"parameters": {"dropout": {"choices": [0, 1]}}}, "parameters.dropout"),
        ({"parameters": {"target_modules": {"choices": ["attn"]}}}, "attn"),
        ({"parameters": {"rank": {"choices": [4, 16]}}}, "default: rank=8 is not in the space"),
        ({"objectives": ["beauty"]}, "objectives.0"),
        ({"objectives": ["kd", "kd"]}, "names an objective twice"),
        ({"select_by": "kd"}, "select_by: must be one of the objectives"),
        ({"select_by": "drift", "objectives": ["drift"]}, "select_by"),
        ({"floor": 1}, "floor: a spread needs at least 2 trainings"),
        ({"name": "../x"}, "name"),
        ({"trials": 0}, "trials"),
        ({"budget": "soon"}, "budget"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        space(**changes)
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("just text", "expected keys and values"),
        ("", "expected keys and values"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("base: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("trials: 2024-99-99", "not valid YAML"),
        ("trials: !!bool abc", "not valid YAML"),
    ],
)
def test_text_that_is_no_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, SearchSpace, "my.yaml")


def test_an_unknown_space_names_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="no such space; shipped are default, sd15, sdxl, smoke"):
        load_space("defualt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml: no such file"):
        load_space(str(tmp_path / "nowhere.yaml"))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.yaml").write_text("#" * 1_000_001)
    with pytest.raises(UsageError, match="larger than 1000000 bytes"):
        load_space(str(tmp_path / "huge.yaml"))


def test_flags_override_the_space() -> None:
    assert resolve(space(), {"trials": 3, "data": "x", "budget": "1m", "base": None}).budget == 60
    with pytest.raises(UsageError, match="--budget: budget"):
        resolve(space(), {"budget": "soon"})


def test_pyyaml_reads_1e_4_as_text() -> None:
    assert pyyaml.safe_load("lr: 1e-4") == {"lr": "1e-4"}


class Numbered(Spec):
    """A model with one number."""

    value: Number


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_every_spelling_of_a_number_is_the_same(text: str) -> None:
    assert parse(f"value: {text}", Numbered, "x").value == 1e-4


@pytest.mark.parametrize("text", ["small", "nan", ".inf", "[1]"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="^x: value"):
        parse(f"value: {text}", Numbered, "x")


def test_the_guide_s_names_are_aliases() -> None:
    guide = "lora_rank: 8\nlora_alpha: 16\nlearning_rate: 1e-4\nlora_dropout: 0.1\nnum_train_epochs: 3\n"
    assert parse(guide, TrialConfig, "x") == TrialConfig(
        rank=8, alpha=16, learning_rate=1e-4, dropout=0.1, epochs=3
    )


def test_a_training_config_is_written_with_the_guide_s_names_and_read_back() -> None:
    config = TrainingConfig(
        rank=8, alpha=16, learning_rate=1e-4, epochs=3, target_modules="all", model_name="m", dataset_name="d"
    )
    text = config.guide_yaml()
    assert pyyaml.safe_load(text)["lora_rank"] == 8
    read = parse(text, TrainingConfig, "x")
    assert read.module_endings == PRESETS["all"]
    assert read.model_copy(update={"target_modules": "all"}) == config


def test_rungs_may_be_drawn_with_fewer_steps() -> None:
    assert space(sampler={"steps": 12, "rung_steps": 6}).sampler.at_rungs.steps == 6
    assert space(sampler={"steps": 12}).sampler.at_rungs.steps == 12
    with pytest.raises(UsageError, match="sampler: .*rung_steps must be at most steps, 12, got 13"):
        space(sampler={"steps": 12, "rung_steps": 13})


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"fraction": 0.9}, "prune.fraction: .*less than or equal to 0.5"),
        ({"after": 1}, "prune.after: .*greater than or equal to 2"),
        ({"controls": -1}, "prune.controls"),
        ({"quickly": True}, "prune.quickly"),
    ],
)
def test_pruning_is_gentle_or_off(prune: dict[str, Any], message: str) -> None:
    assert space(prune={"fraction": 0}).prune.fraction == 0
    with pytest.raises(UsageError, match=message):
        space(prune=prune)
