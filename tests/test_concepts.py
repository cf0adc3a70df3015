"""Data of several concepts: how they are named, held out, balanced and reported."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from bench.captions import write_captions
from bench.comparison import base_side, compare_all, winner_side
from bench.dataset import Dataset, Example, balanced, load_dataset
from bench.errors import UsageError
from bench.run import Run
from bench.scoring.concepts import ConceptScore, scores_by_concept
from reports import compare, compare_json, search


def write_pictures(folder: Path, num: int, first: int = 0, captions: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + num):
        pixels = np.random.default_rng(index).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        if captions:
            (folder / f"{index:03d}.txt").write_text(f"caption {index}")
    return folder


def write_rows(folder: Path, rows: list[dict[str, object]]) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def counts(dataset: Dataset) -> dict[str, Counter[str]]:
    return {
        split: Counter(example.concept for example in getattr(dataset, split))
        for split in ("train", "dev", "test")
    }


def examples(*concepts: str) -> list[Example]:
    return [
        Example(name=str(n), caption=str(n), digest=str(n), size=(9, 9), load=Image.Image, concept=concept)
        for n, concept in enumerate(concepts)
    ]


# Where they are named


@pytest.mark.parametrize("home", [".", "images", "train"])
def test_a_folder_a_concept(tmp_path: Path, home: str) -> None:
    write_pictures(tmp_path / home / "10_ohwx dog", 10)
    write_pictures(tmp_path / home / "cats", 4, first=20)
    write_pictures(tmp_path / home / ".hidden", 1, first=30)
    dataset = load_dataset(str(tmp_path))
    assert counts(dataset) == {
        "train": Counter({"ohwx dog": 6, "cats": 2}),
        "dev": Counter({"ohwx dog": 2, "cats": 1}),
        "test": Counter({"ohwx dog": 2, "cats": 1}),
    }


def test_a_folder_of_dreambooth_s_trainers_is_the_caption_of_pictures_without_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "10_ohwx_dog", 6, captions=False)
    write_pictures(tmp_path / "1_cat", 6, first=20)
    dataset = load_dataset(str(tmp_path / "..") + f"/{tmp_path.name}")
    captions = {example.caption for example in dataset.train if example.concept == "ohwx dog"}
    assert captions == {"ohwx dog"}


def test_another_folder_needs_captions(tmp_path: Path) -> None:
    write_pictures(tmp_path / "dogs", 6, captions=False)
    with pytest.raises(UsageError, match=r"dogs/000\.png: no caption: there is no 000\.txt"):
        load_dataset(str(tmp_path))


def test_pictures_of_the_folder_itself_come_first(tmp_path: Path) -> None:
    write_pictures(tmp_path, 8)
    write_pictures(tmp_path / "cats", 8, first=20)
    assert counts(load_dataset(str(tmp_path)))["train"] == Counter({"": 4})


def test_a_key_of_metadata_names_the_concept(tmp_path: Path) -> None:
    write_pictures(tmp_path, 9, captions=False)
    rows: list[dict[str, object]] = [
        {"file_name": f"{n:03d}.png", "text": f"caption {n}", "concept": " a  dog" if n < 5 else "cat"}
        for n in range(9)
    ]
    assert counts(load_dataset(str(write_rows(tmp_path, rows))))["train"] == Counter({"a dog": 3, "cat": 2})
    rows[2]["concept"] = 3
    with pytest.raises(UsageError, match=r"metadata\.jsonl line 3: concept must be text, got 3"):
        load_dataset(str(write_rows(tmp_path, rows)))


def test_a_column_of_a_table_names_the_concept(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8, captions=False)
    images = [{"bytes": file.read_bytes()} for file in sorted(pictures.glob("*.png"))]
    names = ["dog", "cat"] * 4
    table = {"image": images, "concept": names, "text": [f"caption {n}" for n in range(8)]}
    features = datasets.Features(
        {"image": datasets.Image(), "concept": datasets.Value("string"), "text": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "data.parquet"))
    assert counts(load_dataset(str(tmp_path)))["train"] == Counter({"dog": 2, "cat": 2})


def test_written_captions_keep_the_concepts(tmp_path: Path) -> None:
    write_pictures(tmp_path / "10_ohwx dog", 4, captions=False)
    write_pictures(tmp_path / "5_cat", 4, first=20, captions=False)
    write_captions(tmp_path)
    assert counts(load_dataset(str(tmp_path)))["train"] == Counter({"ohwx dog": 2, "cat": 2})


def test_a_concept_of_too_few_pictures_is_trained_on_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path / "dogs", 8)
    write_pictures(tmp_path / "cats", 2, first=20)
    write_pictures(tmp_path / "owls", 3, first=30)
    found = counts(load_dataset(str(tmp_path)))
    assert found["dev"] == found["test"] == Counter({"dogs": 1, "owls": 1})
    assert found["train"] == Counter({"dogs": 6, "owls": 1, "cats": 2})


def test_concepts_of_too_few_pictures_are_held_out_together(tmp_path: Path) -> None:
    for n in range(5):
        write_pictures(tmp_path / f"concept {n}", 2, first=10 * n)
    assert {split: found.total() for split, found in counts(load_dataset(str(tmp_path))).items()} == {
        "train": 6,
        "dev": 2,
        "test": 2,
    }


def test_the_concept_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    found = []
    for concept in (None, "dog"):
        write_pictures(tmp_path, 8, captions=False)
        rows: list[dict[str, object]] = [
            {"file_name": f"{n:03d}.png", "text": f"caption {n}", "concept": concept} for n in range(8)
        ]
        found.append(load_dataset(str(write_rows(tmp_path, rows))))
    names = [[example.name for example in dataset.train] for dataset in found]
    assert names[0] == names[1] and found[0].fingerprint != found[1].fingerprint


# How often each is shown


def test_one_concept_is_shown_as_it_is() -> None:
    assert balanced(examples(*["dog"] * 5)) == [1] * 5


@pytest.mark.parametrize("sizes", [(7, 3), (10, 1), (4, 4, 9), (5,)])
def test_every_concept_is_shown_as_often_as_the_largest(sizes: tuple[int, ...]) -> None:
    listed = examples(*(f"concept {n}" for n, size in enumerate(sizes) for _ in range(size)))
    repeats = balanced(listed[::-1])
    shown: Counter[str] = Counter()
    for example, times in zip(listed[::-1], repeats, strict=True):
        shown[example.concept] += times
    assert set(shown.values()) == {max(sizes)}
    for name in shown:
        own = [r for e, r in zip(listed[::-1], repeats, strict=True) if e.concept == name]
        assert max(own) - min(own) <= 1


# The report


def test_the_report_says_what_was_learned_of_each_concept(make_run: Callable[..., Run]) -> None:
    run = make_run("a")
    assert "Is every concept learned?" not in search.render(run)
    prompts = run.metadata.prompts
    names = ["dog"] + ["<b>cat</b>"] * (len(prompts["test"]) - 1)
    test = [replace(prompt, concept=name) for prompt, name in zip(prompts["test"], names, strict=True)]
    run = Run.create(run.path, replace(run.metadata, prompts={**prompts, "test": test}))
    result = run.result()
    assert result
    found = search.concepts.panel(run, result)
    assert found and [title for title, _ in found.heads] == ["Base model", "Default config", "Trial 2"]
    assert [(row.concept, row.num_prompts) for row in found.rows] == [
        ("dog", 1),
        ("<b>cat</b>", len(names) - 1),
    ]
    assert all(not row.cells[0].gain and row.cells[2].gain.startswith("+") for row in found.rows)
    assert "±" in found.rows[1].cells[1].text and "±" not in found.rows[0].cells[1].text
    page = search.render(run)
    assert "Is every concept learned?" in page and "<b>cat</b>" not in page


def test_a_comparison_tells_each_concept(make_run: Callable[..., Run]) -> None:
    runs = []
    for name in ("a", "b"):
        run = make_run(name)
        prompts = run.metadata.prompts
        test = [replace(prompt, concept=f"<i>{n % 2}") for n, prompt in enumerate(prompts["test"])]
        runs.append(Run.create(run.path, replace(run.metadata, prompts={**prompts, "test": test})))
    sides = [winner_side(runs[0]), winner_side(runs[1]), base_side(runs[0])]
    comparisons = compare_all(sides, "similarity")
    page = compare.render(sides, comparisons)
    assert "Is every concept learned?" in page and "<i>0" not in page and "&lt;i&gt;0" in page
    found = compare_json.as_json(sides, comparisons, "page.html")["sides"][0]["concepts"]
    values = sides[0].per_prompt("similarity")
    assert found["<i>1"]["similarity"]["value"] == pytest.approx(values[1::2].mean())
    assert found["<i>1"]["similarity"]["num_prompts"] == len(values[1::2])


def test_scores_of_concepts_are_means_over_their_prompts() -> None:
    values, base = {"similarity": [1.0, 2.0, 4.0]}, {"similarity": [0.0, 1.0, 2.0]}
    found = scores_by_concept(["dog", "cat", "cat"], values, base)
    assert found["dog"]["similarity"] == ConceptScore(value=1, stderr=None, num_prompts=1, gain=1)
    assert found["cat"]["similarity"] == ConceptScore(
        value=3, stderr=1, num_prompts=2, gain=1.5, gain_stderr=0.5
    )
    assert scores_by_concept(["dog"] * 3, values, base) == {}
