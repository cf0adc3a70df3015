"""`bench score`: a tiny SDXL, real data, the bundled scorer, the command itself."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from bench import cli
from bench.base import BaseModel, adaptable_names
from bench.run import Run, image_files, read_adapter_record, read_evaluation
from reports import score_json

SPACE: dict[str, Any] = {
    "name": "tiny",
    "base": "replaced by --base",
    "data": "emoji/pixel16",
    "parameters": {"rank": {"choices": [2, 4]}},
    "default": {"rank": 4, "alpha": 8, "learning_rate": "1e-3", "epochs": 1, "batch_size": 20},
    "prompts": {"dev": 6, "test": 5, "seeds": 2, "training": 2, "altered": 0, "style": 0, "unrelated": 0},
    "sampler": {"steps": 2, "guidance": 2},
    "weights": ["0.5", 1],
    "judge": "none",
}
Score = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(
    tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Score:
    """`score("a.safetensors", …)` in tmp_path: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SPACE))

    def run(*arguments: str, verb: str = "score") -> tuple[int, str, str]:
        where = ["--space", "tiny.yaml", "--base", str(tiny_sdxl)]
        monkeypatch.setattr(sys, "argv", ["bench", verb, *arguments, *where])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def kohya(base: BaseModel, path: Path, seed: int, size: float = 1.0, clip: bool = False) -> Path:
    """A file as sd-scripts writes it, with random weights; `clip`: of the text encoders too."""
    generator = torch.Generator().manual_seed(seed)
    networks = {"lora_unet": base.unet}
    networks |= {"lora_te1": base.encoder("text_encoder")} if clip else {}
    tensors = {}
    for prefix, network in networks.items():
        modules = dict(network.named_modules())
        for name in adaptable_names(network):
            weight, key = modules[name].weight, f"{prefix}.{name}".replace(".", "_")
            assert isinstance(weight, torch.Tensor)
            down, up = (2, *weight.shape[1:]), (len(weight), 2, *(1,) * (weight.ndim - 2))
            tensors[f"{key}.lora_down.weight"] = torch.randn(down, generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(up, generator=generator) * size * 0.05
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


def images(run: Run, label: str, split: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([np.asarray(Image.open(file)) for file in image_files(run.adapter_folder(label) / split)])


def test_checkpoints_are_scored_at_weights_and_the_best_is_compared(
    score: Score, base: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for epoch in (2, 4):
        kohya(base, folder / f"fox-00000{epoch}.safetensors", epoch)
    code, output, errors = score("out", "--json")
    data = json.loads(output)
    assert (code, "Run: runs/adapters-tiny" in errors) == (0, True)
    (training,) = data["trainings"]
    asked = [(entry["epoch"], entry["weight"]) for entry in training["scored"]]
    assert (training["name"], asked) == ("fox", [(2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)])
    values = [entry["scores"]["similarity"]["value"] for entry in training["scored"]]
    best = training["scored"][int(np.argmax(values))]
    assert training["recommended"].items() <= best.items()
    run = Run.open(tmp_path / "runs" / "adapters-tiny")
    records = {path.name: read_adapter_record(path) for path in (run.path / "adapters").iterdir()}
    assert sorted(record.weight for record in records.values()) == [0.5, 0.5, 1.0, 1.0]
    examined = [label for label in records if (run.adapter_folder(label) / "test").exists()]
    assert len(examined) == 1 and records[examined[0]].weight == best["weight"]
    pair = data["comparison"]["pairs"][0]
    assert (pair["b"], pair["one_training"]) == (
        "base",
        [f"fox, epoch {best['epoch']} at {best['weight']:g}"],
    )
    expected = read_evaluation(run.adapter_folder(examined[0]) / "test").scores["similarity"].value
    assert training["test"]["similarity"]["value"] == pytest.approx(expected)
    documented = str(score_json.__doc__)
    keys = {*data, *training, *training["recommended"], *training["scored"][0]}
    assert all(re.search(rf"\b{key}\b", documented) for key in keys)


def test_data_of_several_concepts_are_scored_by_concept(
    score: Score, base: BaseModel, tmp_path: Path
) -> None:
    for concept, color in (("red fox", 200), ("<b>owl", 60)):
        (tmp_path / "two" / concept).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(color + number).integers(color, color + 50, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "two" / concept / f"{number}.png")
            (tmp_path / "two" / concept / f"{number}.txt").write_text(f"a {concept}, number {number}")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SPACE | {"data": "two"}))
    kohya(base, tmp_path / "fox.safetensors", 1)
    code, output, _ = score("fox.safetensors", "--json")
    data = json.loads(output)
    assert code == 0
    (training,), run = data["trainings"], Run.open(tmp_path / "runs" / "adapters-tiny")
    names = {record.concept for record in run.metadata.prompts["dev"]}
    for entry in training["scored"]:
        assert set(entry["concepts"]) == names == {"red fox", "<b>owl"}
        scores = [of_concept["similarity"] for of_concept in entry["concepts"].values()]
        weighed = sum(score["value"] * score["num_prompts"] for score in scores)
        whole = entry["scores"]["similarity"]["value"]
        assert weighed / len(run.metadata.prompts["dev"]) == pytest.approx(whole)
        assert all(score["gain_stderr"] > 0 for score in scores)
    (folder,) = (run.path / "adapters").glob("*/test")
    of_adapter, of_base = data["comparison"]["sides"]
    assert json.loads((folder / "scores.json").read_text())["concepts"] == of_adapter["concepts"]
    assert of_base["concepts"]["red fox"]["similarity"]["gain"] is None
    page = Path(data["report"]).read_text()
    assert "Is every concept learned?" in page and "&lt;b&gt;owl" in page and "<b>owl" not in page


def test_what_was_drawn_is_not_drawn_again(score: Score, base: BaseModel, tmp_path: Path) -> None:
    kohya(base, tmp_path / "fox.safetensors", 1)
    assert score("fox.safetensors", "--weights", "1")[0] == 0
    run = Run.open(tmp_path / "runs" / "adapters-tiny")
    (drawn,) = (run.path / "adapters").glob("*/dev/scores.json")
    before = drawn.stat().st_mtime_ns
    code, output, _ = score("fox.safetensors", "--weights", "0.3,1")
    assert (code, drawn.stat().st_mtime_ns) == (0, before)
    assert len(list((run.path / "adapters").glob("*/dev/scores.json"))) == 2
    tested = drawn.parent.parent / "test" / "scores.json"
    before = tested.stat().st_mtime_ns
    assert score("base", "fox.safetensors", verb="compare")[0] == 0
    assert tested.stat().st_mtime_ns == before


def test_the_page_shows_every_prompt_at_every_weight(score: Score, base: BaseModel, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    kohya(base, tmp_path / f"{name}.safetensors", 1)
    kohya(base, tmp_path / "owl.safetensors", 2)
    code, output, _ = score(f"{name}.safetensors", "owl.safetensors")
    assert code == 0
    assert "of 2 trainings are shown to beat the base" in output and "recommended" in output
    page = next((tmp_path / "runs" / "adapters-tiny").glob("score-*.html")).read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert page.count('class="cell winner"') == 2 * 6
    assert page.count('class="cell sampled"') == 2 * 6 and page.count('class="cell real"') == 2 * 6
    for shown in ("Who beats whom?", "figure-weight-similarity-1", "one training"):
        assert shown in page


def test_text_encoders_count_also_for_the_loss_gap(score: Score, base: BaseModel, tmp_path: Path) -> None:
    whole = kohya(base, tmp_path / "whole.safetensors", 1, clip=True)
    kohya(base, tmp_path / "unet.safetensors", 1)
    assert score("whole.safetensors", "unet.safetensors", "--weights", "1", "--name", "mine")[0] == 0
    run = Run.open(tmp_path / "runs" / "mine")
    labels = {read_adapter_record(path).file.name: path.name for path in (run.path / "adapters").iterdir()}
    assert (images(run, labels[whole.name], "dev") != images(run, labels["unet.safetensors"], "dev")).any()
    probes = {
        name: read_evaluation(run.adapter_folder(label) / "probe").scores for name, label in labels.items()
    }
    gaps = [probes[name]["loss_gap"].value for name in ("unet.safetensors", whole.name)]
    assert gaps[0] != gaps[1]


def test_what_cannot_be_scored_at_one_weight_is_said_and_at_all_is_refused(
    score: Score, base: BaseModel, tmp_path: Path
) -> None:
    kohya(base, tmp_path / "fox.safetensors", 1, size=0.01)
    code, output, _ = score("fox.safetensors", "--weights", "0.0000001,10", "--json")
    (training,) = json.loads(output)["trainings"]
    assert (code, training["recommended"]["weight"]) == (0, 10)
    assert training["refused"][0].startswith("fox.safetensors at 1e-07: cannot be scored: ")
    code, _, errors = score("fox.safetensors", "--weights", "0.0000001")
    assert code == 2 and errors.splitlines()[-1].startswith("bench: fox.safetensors at 1e-07: cannot be")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("0", "--weights: weights.0: Input should be greater than 0, got '0'"),
        ("much", "--weights: weights.0: could not convert string to float: 'much'"),
        ("1,1.0", "--weights: weights: names a weight twice"),
    ],
)
def test_weights_are_checked(
    score: Score, base: BaseModel, tmp_path: Path, weights: str, message: str
) -> None:
    kohya(base, tmp_path / "fox.safetensors", 1)
    code, _, errors = score("fox.safetensors", "--weights", weights)
    assert code == 2 and message in errors and len(errors.splitlines()) == 1
