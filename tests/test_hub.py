"""Uploads to a stand-in of the Hub, a real HTTP server: what arrives, and what is said if it does not."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import HfApi
from PIL import Image

from bench.dataset import load_dataset
from bench.pictures import digest, read_bytes

ROOT = Path(__file__).parent.parent
PLACE = 0x8825
"""The tag of EXIF that says where a picture was taken."""
Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Seven photographs that say where they were taken."""
    folder = tmp_path / "mine"
    folder.mkdir()
    exif = Image.Exif()
    exif[PLACE] = {1: "N", 2: (52.0, 31.0, 12.0)}
    for index in range(7):
        pixels = np.random.default_rng(index).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", exif=exif)
        (folder / f"{index}.txt").write_text(f"ohwx, number {index}")
    return folder


@pytest.fixture
def push(hub: Any, tmp_path: Path) -> Push:
    """`bench data push …` in a process that knows the stand-in only; nothing it says or leaves is a token."""

    def run(
        *arguments: str, token: str | None = hub.token, answer: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        environment = hub.environment(tmp_path / "home", token) | {"PYTHONPATH": str(ROOT)} | more
        command = [sys.executable, "-m", "bench", "data", "push", *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, input=answer, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr
        assert "hf_" not in done.stdout + done.stderr
        left = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.name != "token"]
        assert not [path for path in left if hub.token.encode() in path.read_bytes()]
        return done

    return run


def rows(file: bytes) -> list[tuple[str, bytes]]:
    table = pd.read_parquet(io.BytesIO(file))
    return [(row.text, row.image["bytes"]) for row in table.itertuples()]


def test_pictures_and_captions_arrive_private(hub: Any, push: Push, mine: Path, tmp_path: Path) -> None:
    done = push("mine", "someone/mine", "--yes")
    assert done.returncode == 0 and done.stderr == ""
    assert "7 pictures (7 train), 0.0 MB -> someone/mine, private: only its owner sees it" in done.stdout
    assert f"Uploaded: {hub.endpoint}/datasets/someone/mine" in done.stdout
    repo = hub.repos["dataset", "someone/mine"]
    assert repo.private and set(repo.files) == {
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00001.parquet",
    }
    arrived = rows(repo.files["data/train-00000-of-00001.parquet"])
    assert [text for text, _ in arrived] == [f"ohwx, number {index}" for index in range(7)]
    pictures = {digest(read_bytes(content)) for _, content in arrived}
    dataset = load_dataset(str(mine))
    assert pictures == {example.digest for example in dataset.train + dataset.dev + dataset.test}
    assert not any(Image.open(io.BytesIO(content)).getexif() for _, content in arrived)
    (tmp_path / "back/data").mkdir(parents=True)
    (tmp_path / "back/data/train.parquet").write_bytes(repo.files["data/train-00000-of-00001.parquet"])
    assert load_dataset(str(tmp_path / "back")).fingerprint == dataset.fingerprint
    assert not any(hub.token.encode() in content for content in repo.files.values())


def test_splits_arrive_and_public_is_public(hub: Any, push: Push) -> None:
    done = push("emoji/pixel16", "someone/pixels", "--public", answer="y\n")
    assert "204 pictures (60 train, 48 validation, 96 test)" in done.stdout
    assert "public: everyone sees it" in done.stdout and done.returncode == 0
    repo = hub.repos["dataset", "someone/pixels"]
    sizes = {
        name.partition("-")[0]: len(rows(file)) for name, file in repo.files.items() if "parquet" in name
    }
    assert not repo.private and sizes == {"data/train": 60, "data/validation": 48, "data/test": 96}


@pytest.mark.parametrize("answer", ["\n", ""])
def test_nothing_is_sent_without_a_yes(hub: Any, push: Push, mine: Path, answer: str) -> None:
    done = push("mine", "someone/mine", answer=answer)
    assert done.returncode == 1 and "Upload? [y/N]" in done.stdout
    assert hub.requests == [] and hub.repos == {}


def test_the_saved_login_is_used(hub: Any, push: Push, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(hub.token)
    done = push("mine", "someone/mine", "--yes", token=None, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    assert done.returncode == 0 and hub.repos["dataset", "someone/mine"].private


@pytest.mark.parametrize(
    ("target", "token", "message"),
    [
        (
            "someone/mine",
            None,
            "no token of the Hub on this machine: `hf auth login` keeps one, or set HF_TOKEN",
        ),
        ("someone/mine", "hf_wrong", "someone/mine: the Hub refuses the token: "),
        ("other/mine", "", "other/mine: the token may not write to other"),
        ("someone/a--b", "", "someone/a--b: Cannot have -- or .. in repo_id"),
    ],
)
def test_what_goes_wrong_is_one_line(
    hub: Any, push: Push, mine: Path, target: str, token: str | None, message: str
) -> None:
    done = push("mine", target, "--yes", token=hub.token if token == "" else token)
    assert done.returncode == 2 and hub.repos == {}
    assert done.stderr.startswith(f"bench: {message}") and len(done.stderr.splitlines()) == 1


def test_no_network_is_one_line(push: Push, mine: Path) -> None:
    done = push("mine", "someone/mine", "--yes", HF_ENDPOINT="http://127.0.0.1:1")
    assert done.returncode == 2
    assert re.fullmatch(
        r"bench: someone/mine: the Hub cannot be reached, or broke off: \w+: .*\n", done.stderr
    )


def test_a_name_that_is_taken_stays_as_it_is(hub: Any, push: Push, mine: Path) -> None:
    assert push("mine", "someone/mine", "--yes").returncode == 0
    before = dict(hub.repos["dataset", "someone/mine"].files)
    done = push("mine", "someone/mine", "--public", "--yes")
    assert done.returncode == 2
    assert done.stderr.startswith("bench: someone/mine: there is one of that name already")
    assert hub.repos["dataset", "someone/mine"].files == before


def test_an_upload_that_broke_off_is_sent_again(hub: Any, push: Push, mine: Path) -> None:
    hub.broken = re.compile("POST .*/commit/")
    done = push("mine", "someone/mine", "--yes")
    assert done.returncode == 2 and "cannot be reached, or broke off" in done.stderr
    assert set(hub.repos["dataset", "someone/mine"].files) == {".gitattributes"}
    hub.broken = None
    assert push("mine", "someone/mine", "--public", "--yes").returncode == 2  # it is a private one
    assert push("mine", "someone/mine", "--yes").returncode == 0
    assert "README.md" in hub.repos["dataset", "someone/mine"].files


def test_data_that_cannot_be_used_is_not_sent(hub: Any, push: Push, mine: Path) -> None:
    (mine / "3.txt").unlink()
    done = push("mine", "someone/mine", "--yes")
    assert done.returncode == 2 and "3.jpg: no caption" in done.stderr and hub.requests == []


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the Hub's own library
def test_the_stand_in_takes_a_folder_of_a_model(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    (tmp_path / "images").mkdir()
    contents = {
        "adapter.safetensors": b"\x08weights",
        "README.md": b"---\ntags: [lora]\n---\n# A\n",
        "images/a.png": b"x",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("someone/lora", private=True)
    api.upload_folder(repo_id="someone/lora", folder_path=tmp_path, commit_message="A LoRA")
    repo = hub.repos["model", "someone/lora"]
    assert repo.private and repo.messages == ["initial commit", "A LoRA"]
    assert contents.items() <= repo.files.items()
    assert api.list_repo_files("someone/lora") == list(repo.files)
    got = api.hf_hub_download("someone/lora", "images/a.png", cache_dir=tmp_path / "cache")
    assert Path(got).read_bytes() == b"x"
