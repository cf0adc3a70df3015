"""What an installation holds: the wheel is built and looked into."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return wheel.namelist()


@pytest.mark.parametrize(
    "name",
    [
        "bench/cli.py",
        "search_spaces/default.yaml",
        "search_spaces/smoke.yaml",
        "search_spaces/sdxl.yaml",
        "search_spaces/sd15.yaml",
        "bench/families/sd.py",
        "trainers/loop.py",
        "reports/templates/search.html.j2",
        "reports/templates/compare.html.j2",
        "reports/templates/page.css",
        "bench/builtin/MODEL_CARD.md",
        "bench/builtin/emoji-xl/model_index.json",
        "bench/builtin/emoji-xl/unet/diffusion_pytorch_model.safetensors",
        "bench/builtin/emoji-xl/vae/diffusion_pytorch_model.safetensors",
        "bench/builtin/scorer/open_clip_config.json",
        "bench/builtin/scorer/open_clip_model.safetensors",
        "bench/builtin/judge/config.json",
        "bench/builtin/judge/model.safetensors",
        "bench/builtin/emoji/pixel16/train/metadata.jsonl",
        "bench/builtin/emoji/fluent-3d/test/metadata.jsonl",
        "bench/builtin/emoji/streamline/dev/metadata.jsonl",
    ],
)
def test_the_wheel_holds(names: list[str], name: str) -> None:
    assert name in names


def test_the_wheel_holds_all_pictures_of_the_built_in_data(names: list[str]) -> None:
    for style in ("pixel16", "fluent-3d", "streamline"):
        for split, count in (("train", 60), ("dev", 48), ("test", 96)):
            folder = f"bench/builtin/emoji/{style}/{split}/"
            assert sum(name.startswith(folder) and name.endswith(".png") for name in names) == count


def test_the_wheel_holds_nothing_else_at_the_top(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "bench",
        "search_spaces",
        "trainers",
        "reports",
    }


def test_the_wheel_carries_the_licences(names: list[str]) -> None:
    licences = [name for name in names if ".dist-info/licenses/" in name]
    assert any(name.endswith("THIRD_PARTY.md") for name in licences)
    assert any(name.endswith("CC-BY-4.0.txt") for name in licences)
