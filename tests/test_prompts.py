import pytest
from PIL import Image

from bench.dataset import Dataset, Example
from bench.prompts import Prompt, fingerprint, held_out_prompts


def example(caption: str, number: int = 0) -> Example:
    name = f"{number}.png"
    return Example(
        name=name, caption=caption, digest=f"{number:064d}", load=lambda: Image.new("RGB", (16, 16))
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
