"""The parts of the training recipe that can be held to an exact answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("resvg_py", reason="needs the extra bench[recipe]")

from bench.builtin.recipe.contrast import contrastive_loss  # noqa: E402
from bench.builtin.recipe.examples import (  # noqa: E402
    Examples,
    base_rows,
    caption_variants,
    concept_of,
    draw_pool,
    is_withheld,
    judge_rows,
    scorer_rows,
    target_concepts,
    withheld_concepts,
)
from bench.builtin.recipe.judge import Pairs, instance_loss  # noqa: E402
from bench.builtin.recipe.loop import Machine, Schedule, train  # noqa: E402
from bench.builtin.recipe.splits import read_splits  # noqa: E402
from bench.builtin.recipe.tokenizer import (  # noqa: E402
    END_ID,
    VOCABULARY_SIZE,
    encode,
    load_tokenizer,
    train_tokenizer,
)
from bench.builtin.recipe.train import Work, make_judge  # noqa: E402
from bench.builtin.recipe.vae import build_vae, whiten  # noqa: E402
from bench.builtin.recipe.views import box_blurred, damaged, damages, viewed  # noqa: E402
from bench.scoring.judge import load_judge  # noqa: E402


def examples(others: tuple[str, str] = ("1f34e", "1f468-200d-1f527")) -> Examples:
    """A concept of the test prompts, one for validation and two others, in four sets each."""
    splits = read_splits()
    codes = [splits.test[0], sorted(splits.val)[0], *others]
    sets = [("noto", "base"), ("twemoji", "base"), ("streamline", "target"), ("fluent-3d", "target")]
    rows = [(code, vendor, role) for code in codes for vendor, role in sets]
    people = ["people-body" if code == codes[3] else "objects" for code, _, _ in rows]
    return Examples(
        images=np.zeros((len(rows), 64, 64, 3), dtype=np.uint8),
        set=np.array([vendor for _, vendor, _ in rows]),
        role=np.array([role for _, _, role in rows]),
        split=np.array(["val" if code in splits.val else "train" for code, _, _ in rows]),
        name=np.array([f"name of {code}" for code, _, _ in rows]),
        caption=np.array([f"name of {code}, first tag, second tag" for code, _, _ in rows]),
        style=np.array([f"{vendor} style" for _, vendor, _ in rows]),
        codepoint=np.array([code for code, _, _ in rows]),
        group=np.array(people),
        flip_ok=np.ones(len(rows), dtype=bool),
    )


def test_a_concept_is_its_code_points_without_the_colour_selector() -> None:
    assert concept_of("2764-fe0f", "red heart") == concept_of("2764", "heart") == "2764"
    assert concept_of("", "cracking face") == "cracking face"


def test_the_base_sees_no_target_style_and_no_validation_concept() -> None:
    rows = base_rows(examples())
    assert set(rows.set.tolist()) == {"noto", "twemoji"}
    assert len(set(rows.codepoint.tolist())) == 3


def test_the_scorer_sees_no_target_picture_of_a_test_concept() -> None:
    everything = examples()
    rows = scorer_rows(everything, withheld_concepts(everything))
    held = rows.where(rows.codepoint == read_splits().test[0])
    assert set(held.set.tolist()) == {"noto", "twemoji"}
    assert set(rows.set.tolist()) == {"noto", "twemoji", "streamline", "fluent-3d", "pixel16"}
    assert "val" not in rows.split


IN_NO_SPLIT = ("1f34f", "1f9ff")


def test_the_judge_sees_no_picture_of_a_target_or_validation_concept() -> None:
    everything = examples((IN_NO_SPLIT[0], "1f34e"))  # a green apple; a red one is drawn for training
    rows = judge_rows(everything)
    assert set(rows.codepoint.tolist()) == {IN_NO_SPLIT[0]}
    assert set(rows.set.tolist()) == {"noto", "twemoji", "streamline", "fluent-3d", "pixel16"}
    splits = read_splits()
    for codepoint in (*splits.dev, *(code for codes in splits.train.values() for code in codes)):
        renamed = replace(everything, codepoint=np.full(len(everything), codepoint))
        assert is_withheld(renamed, target_concepts(renamed)).all()


def test_people_are_drawn_half_as_often() -> None:
    rows = examples()
    counts = np.bincount(draw_pool(rows))
    assert set(counts[rows.group == "people-body"]) == {1}
    assert set(counts[rows.group != "people-body"]) == {2}


def test_a_variant_keeps_the_name_and_says_whether_it_names_the_style() -> None:
    rows = examples()
    variants = caption_variants(rows, 20, keep_all=0.5, keep_style=0.5, seed=0)
    for i, texts in enumerate(variants.texts):
        assert all(text.startswith(str(rows.name[i])) for text in texts)
        assert [text.endswith(str(rows.style[i])) for text in texts] == variants.names_style[i].tolist()


def test_the_tokenizer_ends_with_its_highest_id(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 8)) for _ in range(600)]
    train_tokenizer([" ".join(words)], tmp_path)
    tokens = encode(load_tokenizer(tmp_path), [words[0].upper(), "漢 🍎", ""])
    assert tokens.shape == (3, 32) and tokens.max() == END_ID == VOCABULARY_SIZE - 1
    assert (tokens != END_ID).sum(1).tolist()[2] == 1
    assert (tokens[1] != END_ID).sum() > 4  # unknown letters become bytes, not the end of the text


def test_all_matching_pictures_share_the_target() -> None:
    vectors = torch.eye(4)[[0, 0, 1, 2]]
    matches = vectors @ vectors.T > 0.5
    scale = torch.tensor(50.0).log()
    alone = contrastive_loss(vectors, vectors, torch.eye(4, dtype=torch.bool), scale)
    shared = contrastive_loss(vectors, vectors, matches, scale)
    assert shared.item() == pytest.approx(np.log(2) / 2, abs=1e-4) == alone.item()
    apart = torch.eye(4)
    assert contrastive_loss(apart, apart, matches, scale) > contrastive_loss(vectors, vectors, matches, scale)


def test_other_rows_of_an_instance_count_neither_way() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 8), torch.randn(4, 8)
    both, instances = torch.cat([first, second]), torch.arange(4).repeat(2)
    twice = torch.cat([first, first[:1], second, second[:1]])
    instances_twice = torch.tensor([0, 1, 2, 3, 0]).repeat(2)
    unit = torch.nn.functional.normalize(both, dim=-1)
    logits = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
    rows = -torch.log_softmax(logits, 1)[torch.arange(8), torch.arange(8).roll(4)]
    assert instance_loss(both, instances, 0.2).item() == pytest.approx(rows.mean().item(), rel=1e-5)
    separate = instance_loss(twice, torch.arange(5).repeat(2), 0.2)
    assert instance_loss(twice, instances_twice, 0.2) < separate


def test_views_of_white_are_white_and_views_come_in_order() -> None:
    rows = examples()
    white = torch.zeros(4, 3, 64, 64)
    assert viewed(white, torch.ones(4, dtype=torch.bool)).abs().max() == 0
    pairs = Pairs(replace(rows, images=np.full_like(rows.images, 255)), size=4, device=torch.device("cpu"))
    views, instances = pairs.draw()
    assert views.shape == (16, 3, 64, 64) and views.min() >= -1 and views.max() <= 1
    assert (instances[:8] == instances[8:]).all()
    assert (instances[:4] + len(rows) == instances[4:8]).all()  # damaged copies are others
    assert (views[:4] == 1).all() and (views[8:12] == 1).all()


def test_damage_changes_a_picture_and_is_the_same_for_all_its_views() -> None:
    torch.manual_seed(0)
    ink = box_blurred(torch.rand(8, 3, 64, 64))
    harm = replace(damages(ink), kind=torch.tensor([0, 1, 2, 3] * 2)[:, None, None, None])
    first, second = damaged(ink, harm), damaged(ink, harm)
    assert (first - ink).abs().flatten(1).mean(1).min() > 0.005
    same = (first == second).flatten(1).all(1)
    assert same.tolist() == [False, True, True, True] * 2  # noise alone is drawn anew


def test_the_stage_of_the_judge_writes_what_is_loaded(tmp_path: Path) -> None:
    work = Work(
        examples=examples(IN_NO_SPLIT),
        withheld=frozenset(),
        out=tmp_path,
        machine=Machine(device=torch.device("cpu")),
        pace=1.0,
        smoke=True,
    )
    outcome = make_judge(work, tmp_path)
    features = load_judge(str(tmp_path), torch.device("cpu")).embed_images(examples().images[:2])
    assert outcome.steps == 2 and features.shape == (2, 224)


def test_whitening_changes_the_latents_and_not_the_picture() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    pixels = torch.randn(2, 3, 64, 64)
    mean, std = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        picture = vae.decode(before.mean).sample
        whiten(vae, mean, std)
        after = vae.encode(pixels).latent_dist
        again = vae.decode(after.mean).sample
    shift, scale = mean[:, None, None], std[:, None, None]
    torch.testing.assert_close(after.mean, (before.mean - shift) / scale, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.std, before.std / scale, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again, picture, atol=1e-4, rtol=1e-4)


def test_training_ends_with_the_averaged_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    wanted = torch.tensor([1.0, -2.0, 0.5])

    def loss() -> torch.Tensor:
        x = torch.randn(64, 3)
        return torch.mean((model(x)[:, 0] - x @ wanted).square())

    schedule = Schedule(seconds=60, learning_rate=0.05, max_steps=400, warm_up_steps=10, weight_decay=0.0)
    outcome = train("toy", [model], loss, schedule, Machine(device=torch.device("cpu")))
    assert outcome.steps == 400
    torch.testing.assert_close(model.weight[0].detach(), wanted, atol=0.05, rtol=0.05)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    schedule = Schedule(seconds=100, learning_rate=1.0, warm_up_steps=10)
    assert schedule.rate(0.0, 0) == pytest.approx(0.1)
    assert schedule.rate(0.0, 50) == pytest.approx(1.0)
    assert schedule.rate(1.0, 5000) == pytest.approx(0.0, abs=1e-9)
    assert schedule.progress(25, 10) == 0.25
