import re
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
import yaml
from PIL import Image
from transformers import CLIPTokenizer

from bench.dataset import BUILTIN, Dataset, Example, load_dataset
from bench.errors import UsageError
from bench.prompts import Kind, Prompt, fingerprint, held_out_prompts, probe_prompts, scored_text
from bench.space import Prompts


def example(caption: str, number: int = 0) -> Example:
    name = f"{number}.png"
    return Example(
        name=name,
        caption=caption,
        digest=f"{number:064d}",
        size=(16, 16),
        load=lambda: Image.new("RGB", (16, 16)),
    )


def dataset(*captions: str) -> Dataset:
    held_out = tuple(example(caption, number) for number, caption in enumerate(captions))
    return Dataset(name="x", train=(example("in train"),), dev=held_out, test=held_out)


TEN = dataset(*(f"caption {number}" for number in range(10)))


def test_all_captions_with_their_pictures() -> None:
    prompts = held_out_prompts(TEN, "dev", 20, 2)
    assert [prompt.text for prompt in prompts] == [f"caption {number}" for number in range(10)]
    assert [prompt.example for prompt in prompts] == list(TEN.dev)


@pytest.mark.parametrize(("count", "numbers"), [(1, [0]), (3, [0, 3, 6]), (5, [0, 2, 4, 6, 8])])
def test_fewer_are_spread_over_the_split(count: int, numbers: list[int]) -> None:
    texts = [prompt.text for prompt in held_out_prompts(TEN, "dev", count, 2)]
    assert texts == [f"caption {number}" for number in numbers]


def test_equal_captions_are_one_prompt() -> None:
    prompts = held_out_prompts(dataset("a", "b", "a"), "test", 9, 2)
    assert [(prompt.text, prompt.example and prompt.example.name) for prompt in prompts] == [
        ("a", "0.png"),
        ("b", "1.png"),
    ]


def test_seeds_are_fixed() -> None:
    """These numbers are part of every recorded run: a change makes old runs incomparable."""
    (prompt,) = held_out_prompts(dataset("a cat"), "dev", 1, 3)
    assert prompt.seeds == SEEDS_OF_A_CAT


SEEDS_OF_A_CAT = (1409601093, 188821125, 65039324)


def test_seeds_differ_between_splits_prompts_and_draws() -> None:
    prompts = held_out_prompts(TEN, "dev", 10, 4) + held_out_prompts(TEN, "test", 10, 4)
    seeds = [seed for prompt in prompts for seed in prompt.seeds]
    assert len(set(seeds)) == 80
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_do_not_depend_on_the_other_prompts_or_on_their_number() -> None:
    alone = held_out_prompts(dataset("a"), "dev", 1, 2)[0].seeds
    assert held_out_prompts(dataset("b", "a"), "dev", 2, 3)[1].seeds[:2] == alone


def test_fingerprint_follows_texts_seeds_and_order() -> None:
    a, b = Prompt(text="a", seeds=(1, 2)), Prompt(text="b", seeds=(1, 2))
    variants = [[a, b], [b, a], [a], [Prompt(text="a", seeds=(1, 3)), b], []]
    assert len({fingerprint(prompts) for prompts in variants}) == len(variants)


def test_fingerprint_does_not_read_pictures() -> None:
    (prompt,) = held_out_prompts(dataset("a"), "dev", 1, 2)
    assert fingerprint([prompt]) == fingerprint([Prompt(text="a", seeds=prompt.seeds)])


def test_fingerprint_follows_the_kinds_of_probes_and_is_the_old_one_without_them() -> None:
    kinds: tuple[Kind, ...] = get_args(Kind)
    assert len({fingerprint([Prompt(text="a", seeds=(1,), kind=kind)]) for kind in kinds}) == len(kinds)
    assert fingerprint([Prompt(text="a", seeds=(1, 2))]) == FINGERPRINT_OF_A


FINGERPRINT_OF_A = "c36e6d8e3892651fa175a276ddda9bbdcdf50c5ffcad3239bcfd483b7c44f646"


@pytest.mark.parametrize(
    ("text", "trigger", "scored"),
    [
        ("sks", "sks", ""),
        ("sks, a red fox", "sks", "a red fox"),
        ("a photo of SKS dog", "sks", "a photo of dog"),
        ("a fox, sks, at night", "sks", "a fox, at night"),
        ("a fox in the style of sks", " sks ", "a fox in the style of"),
        ("1,000 foxes , sks", "sks", "1,000 foxes"),
        ("c++ style, a fox", "c++ style", "a fox"),
        ("skss, a  fox", "sks", "skss, a  fox"),
        ("a  fox,", None, "a  fox,"),
        ("a  fox,", " ", "a  fox,"),
    ],
)
def test_the_trigger_is_not_scored(text: str, trigger: str | None, scored: str) -> None:
    assert scored_text(text, trigger) == scored


# Probes of the bundled data


@cache
def bundled(name: str, trigger: str | None = None) -> Dataset:
    return load_dataset(name, trigger)


EVERYTHING = Prompts(training=999, altered=999, style=999, unrelated=999)


def texts(prompts: list[Prompt], kind: Kind) -> list[str]:
    return [prompt.text for prompt in prompts if prompt.kind == kind]


def names(dataset: Dataset) -> set[str]:
    """All words of its captions."""
    captions = (e.caption for e in dataset.train + dataset.dev + dataset.test)
    return {word for caption in captions for word in re.findall(r"\w+", caption)}


@pytest.mark.parametrize("name", BUILTIN)
def test_bundled_probes_by_kind(name: str) -> None:
    prompts = probe_prompts(bundled(name), Prompts(), None)
    kinds = [prompt.kind for prompt in prompts]
    assert kinds == ["training"] * 8 + ["altered"] * 8 + ["style"] * 8 + ["unrelated"] * 32
    assert all(len(prompt.seeds) == 1 for prompt in prompts)
    assert prompts == probe_prompts(bundled(name), Prompts(), None)


@pytest.mark.parametrize("name", BUILTIN)
def test_bundled_lists_are_long_enough_for_more(name: str) -> None:
    numbers = Counter(prompt.kind for prompt in probe_prompts(bundled(name), EVERYTHING, None))
    assert numbers == {"training": 60, "altered": 16, "style": 17, "unrelated": 40}


@pytest.mark.parametrize("name", BUILTIN)
def test_bundled_texts_carry_the_phrase_of_the_set_and_unrelated_ones_one_of_the_base(name: str) -> None:
    prompts = probe_prompts(bundled(name), EVERYTHING, None)
    phrase = bundled(name).train[0].caption.rpartition(", ")[2]
    assert texts(prompts, "style")[0] == phrase
    for text in texts(prompts, "altered") + texts(prompts, "style")[1:]:
        assert text.endswith(f", {phrase}")
    base = {"noto style", "twemoji style", "fluent flat style", "emojione style", "fxemoji style"}
    for spec in (EVERYTHING, Prompts()):
        drawn = texts(probe_prompts(bundled(name), spec, None), "unrelated")
        assert {text.rpartition(", ")[2] for text in drawn} == base


@pytest.mark.parametrize("name", BUILTIN)
def test_bundled_style_and_unrelated_subjects_are_in_no_caption(name: str) -> None:
    prompts = probe_prompts(bundled(name), EVERYTHING, None)
    for text in texts(prompts, "style")[1:] + texts(prompts, "unrelated"):
        subject = text.partition(",")[0]
        assert not set(re.findall(r"\w+", subject)) - {"and"} & names(bundled(name)), text


@pytest.mark.parametrize("name", BUILTIN)
def test_bundled_altered_prompts_are_no_captions(name: str) -> None:
    dataset = bundled(name)
    captions = {example.caption for example in dataset.train + dataset.dev + dataset.test}
    assert not captions & set(texts(probe_prompts(dataset, EVERYTHING, None), "altered"))


@pytest.mark.parametrize("name", BUILTIN)
def test_bundled_probes_are_read_whole_by_the_bundled_base(name: str) -> None:
    """Its tokenizer falls back to letters in words that it was not trained on."""
    tokenizer = CLIPTokenizer.from_pretrained(str(files("bench") / "builtin/emoji-xl/tokenizer"))
    for prompt in probe_prompts(bundled(name), EVERYTHING, None):
        assert len(tokenizer(prompt.text).input_ids) <= tokenizer.model_max_length
        for word in re.findall(r"\w+", prompt.text):
            assert len(tokenizer(word, add_special_tokens=False).input_ids) <= 5, word


def test_the_trigger_calls_the_style_of_bundled_data() -> None:
    prompts = probe_prompts(bundled("emoji/pixel16", "sks"), EVERYTHING, "sks")
    assert texts(prompts, "style")[:2] == ["sks", "sks, butterfly, bug, insect, pixel art style"]
    assert all(text.startswith("sks, ") for text in texts(prompts, "altered") + texts(prompts, "training"))
    assert not any("sks" in text for text in texts(prompts, "unrelated"))


@pytest.mark.parametrize("name", BUILTIN)
def test_seeds_of_probes_are_nowhere_else(name: str) -> None:
    dataset, spec = bundled(name), EVERYTHING.model_copy(update={"probe_seeds": 2})
    probes = probe_prompts(dataset, spec, None)
    held_out = held_out_prompts(dataset, "dev", 48, 2) + held_out_prompts(dataset, "test", 96, 2)
    seeds = [seed for prompt in probes + held_out for seed in prompt.seeds]
    assert len(set(seeds)) == len(seeds) == 2 * (60 + 16 + 17 + 40 + 48 + 96)


def test_seeds_of_probes_depend_on_kind_and_text_alone() -> None:
    """These numbers are part of every recorded run, too."""
    few = Prompts(training=1, altered=0, style=0, unrelated=0, probe_seeds=3)
    (prompt,) = probe_prompts(bundled("emoji/pixel16"), few, None)
    same = probe_prompts(bundled("emoji/pixel16"), EVERYTHING, None)[0]
    assert prompt.text == same.text == "wrapped gift, celebration, box, surprise, pixel art style"
    assert prompt.seeds[0] == same.seeds[0] == 1828735487
    assert len(set(prompt.seeds)) == 3


# Probes of a user's own data


def own(*captions: str) -> Dataset:
    train = tuple(example(caption, number) for number, caption in enumerate(captions))
    return Dataset(name="my-images", train=train, dev=(example("a windmill", 98),), test=(example("b", 99),))


FOXES = own("a fox in a wood.", "a fox with a teapot", "a red fox")


def test_training_prompts_carry_the_true_pictures() -> None:
    prompts = probe_prompts(FOXES, Prompts(), None)[:3]
    assert [(prompt.kind, prompt.example) for prompt in prompts] == [("training", e) for e in FOXES.train]
    assert [prompt.text for prompt in prompts] == [example.caption for example in FOXES.train]
    assert all(prompt.example is None for prompt in probe_prompts(FOXES, Prompts(), None)[3:])


def test_altered_prompts_change_the_composition_of_each_caption() -> None:
    altered = texts(probe_prompts(FOXES, Prompts(altered=5), None), "altered")
    assert altered == [
        "a fox in a wood, seen from above",
        "a fox with a teapot, at night under a full moon",
        "two of them side by side: a red fox",
        "a fox in a wood, at night under a full moon",
        "two of them side by side: a fox with a teapot",
    ]


def test_altered_prompts_end_when_every_caption_was_changed_in_every_way() -> None:
    altered = texts(probe_prompts(FOXES, EVERYTHING, None), "altered")
    assert len(altered) == len(set(altered)) == 3 * 12


def test_braces_in_captions_are_only_characters() -> None:
    altered = texts(probe_prompts(own("a {0} {caption}", "b"), Prompts(), None), "altered")
    assert altered[0] == "a {0} {caption}, seen from above"


def test_style_prompts_are_subjects_that_no_caption_mentions() -> None:
    style = texts(probe_prompts(FOXES, EVERYTHING, None), "style")
    assert style[:2] == ["a bicycle", "a lighthouse on a cliff"]
    assert not {"a teapot", "a windmill"} & set(style)
    assert texts(probe_prompts(FOXES, EVERYTHING, "sks"), "style")[:2] == ["sks", "sks, a bicycle"]


def test_a_phrase_that_ends_every_caption_calls_the_style() -> None:
    watercolours = own("a fox, in watercolour", "a hare, a hedge, in watercolour")
    style = texts(probe_prompts(watercolours, Prompts(), None), "style")
    assert style[0] == "in watercolour"
    assert all(text.endswith(", in watercolour") for text in style[1:])


def test_unrelated_prompts_leave_out_the_main_words_of_the_data() -> None:
    sheep = own("a sheep in snow", "sheep", "two sheep", "an owl")
    unrelated = texts(probe_prompts(sheep, EVERYTHING, None), "unrelated")
    assert not any("sheep" in text for text in unrelated)
    assert "an owl sitting on a fence post" in unrelated  # one caption is not what the data is about
    assert 40 <= len(unrelated) < 48


def test_there_are_enough_unrelated_prompts_for_data_about_everything() -> None:
    everything = texts(probe_prompts(own("a", "b"), EVERYTHING, None), "unrelated")
    assert len(everything) == 48
    unrelated = texts(probe_prompts(own(*everything, *everything), EVERYTHING, None), "unrelated")
    assert len(unrelated) >= 32


def test_a_number_of_zero_turns_a_kind_off() -> None:
    assert probe_prompts(FOXES, Prompts(training=0, altered=0, style=0, unrelated=0), None) == []


def test_probes_of_a_folder(tmp_path: Path) -> None:
    for number in range(10):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"fox number {number}")
    prompts = probe_prompts(load_dataset(str(tmp_path), "sks"), Prompts(), "sks")
    assert [texts(prompts, kind)[0].partition(" number")[0] for kind in ("training", "altered", "style")] == [
        "sks, fox",
        "sks, fox",
        "sks",
    ]


# Probes from a file


def from_file(path: Path, content: object, **numbers: int) -> Prompts:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return Prompts(file=str(path), **numbers)


def test_kinds_in_a_file_take_the_place_of_the_made_ones(tmp_path: Path) -> None:
    spec = from_file(tmp_path / "my.yaml", {"altered": ["a  blue fox"], "training": ["a red fox"]})
    prompts, made = probe_prompts(FOXES, spec, None), probe_prompts(FOXES, Prompts(), None)
    assert [(p.kind, p.text, p.example) for p in prompts[:2]] == [
        ("training", "a red fox", FOXES.train[2]),
        ("altered", "a blue fox", None),
    ]
    assert prompts[2:] == [prompt for prompt in made if prompt.kind in ("style", "unrelated")]


def test_at_most_as_many_as_asked_are_taken_from_a_file(tmp_path: Path) -> None:
    content = {"style": [str(n) + "!" for n in range(9)], "unrelated": [f"text {n}" for n in range(40)]}
    prompts = probe_prompts(FOXES, from_file(tmp_path / "my.yaml", content, style=3), None)
    assert texts(prompts, "style") == ["0!", "3!", "6!"]
    assert len(texts(prompts, "unrelated")) == 32


def test_training_captions_in_a_file_may_lack_the_trigger(tmp_path: Path) -> None:
    spec = from_file(tmp_path / "my.yaml", {"training": ["a fox", "sks, a hare"]})
    prompts = probe_prompts(own("sks, a fox", "sks, a hare"), spec, "sks")
    assert texts(prompts, "training") == ["sks, a fox", "sks, a hare"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"alterd": ["a"]}, "alterd: unknown key; known keys: training, altered, style, unrelated"),
        ({"altered": ["a", " "]}, "altered.1: empty text"),
        ({"altered": ["a", 5]}, "altered.1: Input should be a valid string, got 5"),
        ({"altered": "a"}, "altered: Input should be a valid tuple, got 'a'"),
        ({"altered": []}, "altered: Tuple should have at least 1 item after validation, not 0, got []"),
        ({"style": ["a", "b", "a"]}, "style: lists a text twice: 'a'"),
        ({"style": ["a" * 2001]}, "style.0: text of 2001 characters; at most 2000 are read"),
        ('style: ["\\ud800"]', "style.0: text is not valid Unicode"),
        ({"unrelated": ["a", "b"]}, "unrelated: at least 32 texts are needed, got 2"),
        ({"training": ["a cat"]}, "training.0: no training picture has the caption 'a cat'"),
        ("- a", "expected keys and values, got list"),
    ],
)
def test_a_bad_file_is_refused_on_one_line(tmp_path: Path, content: object, problem: str) -> None:
    spec = from_file(tmp_path / "my.yaml", content)
    with pytest.raises(UsageError) as error:
        probe_prompts(FOXES, spec, None)
    assert str(error.value) == f"{tmp_path / 'my.yaml'}: {problem}"


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^nowhere\.yaml: no such file$"):
        probe_prompts(FOXES, Prompts(file="nowhere.yaml"), None)


@pytest.mark.parametrize("number", [-1, 1, 31])
def test_too_few_unrelated_prompts_are_refused_where_they_are_asked_for(number: int) -> None:
    with pytest.raises(ValueError, match=rf"must be 0 \(off\) or at least 32, got {number}"):
        Prompts(unrelated=number)
