"""Series: which files are checkpoints of one training, by the names that trainers give them."""

from pathlib import Path

import pytest

from bench.errors import MissingError, UsageError
from bench.series import find_series


def written(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("names", "series"),
    [
        (
            ["fox.safetensors", "fox-000010.safetensors", "fox-000002.safetensors"],
            {"fox": ["epoch 2", "epoch 10", "the end"]},
        ),
        (
            ["fox-step00000500.safetensors", "fox-step00001000.safetensors"],
            {"fox": ["step 500", "step 1000"]},
        ),
        (["fox_000000500.safetensors", "fox.safetensors"], {"fox": ["step 500", "the end"]}),
        (
            [
                "fox2026-01-31_12-00-00-save-500-4-0.safetensors",
                "fox2026-01-31_13-10-09-save-1000-8-0.safetensors",
            ],
            {"fox": ["epoch 4", "epoch 8"]},
        ),
        (
            [
                "checkpoint-1000/pytorch_lora_weights.safetensors",
                "checkpoint-500/pytorch_lora_weights.safetensors",
                "checkpoint-500/model.safetensors",
                "pytorch_lora_weights.safetensors",
            ],
            {"out": ["step 500", "step 1000", "the end"]},
        ),
        (["epoch-04/adapter.safetensors", "epoch-04/features.safetensors"], {"out": ["epoch 4"]}),
        (["fox-v2.safetensors", "owl-10.safetensors"], {"fox-v2": ["the end"], "owl-10": ["the end"]}),
        (["fox-260131.safetensors"], {"fox-260131": ["the end"]}),
    ],
)
def test_names_of_trainers_are_read(tmp_path: Path, names: list[str], series: dict[str, list[str]]) -> None:
    found = find_series([written(tmp_path / "out", *names)])
    assert {each.name: [c.title for c in each.checkpoints] for each in found} == series


def test_a_copy_counts_once(tmp_path: Path) -> None:
    written(tmp_path, "fox-000002.safetensors")
    (tmp_path / "fox.safetensors").write_bytes((tmp_path / "fox-000002.safetensors").read_bytes())
    (series,) = find_series([tmp_path, tmp_path / "fox.safetensors"])
    assert [checkpoint.title for checkpoint in series.checkpoints] == ["epoch 2"]


def test_trainings_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    written(tmp_path, "a/fox.safetensors", "b/fox.safetensors", "b/fox-000001.safetensors")
    found = find_series([tmp_path / "a", tmp_path / "b"])
    assert [each.name for each in found] == [str(tmp_path / "a" / "fox"), str(tmp_path / "b" / "fox")]


def test_what_holds_no_adapter_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "fox.ckpt", "checkpoint-5/optimizer.bin", ".hidden.safetensors")
    with pytest.raises(UsageError, match=r"fox.ckpt: not a .safetensors file; others are not read"):
        find_series([tmp_path / "fox.ckpt"])
    with pytest.raises(UsageError, match="holds no adapters"):
        find_series([tmp_path])
    with pytest.raises(MissingError, match="owl: no such file or folder"):
        find_series([tmp_path / "owl"])
