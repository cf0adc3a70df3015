"""`bench try`: what is drawn at weights 0 and 1, and the page as a browser of this machine gets it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench import cli
from bench.base import BaseModel, load_base
from bench.easel import easel_of, easel_with
from bench.errors import MismatchError, UsageError
from bench.exported import winner_of
from bench.run import Run
from bench.scoring.generate import generate
from trainers.adapters import attach

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def emoji() -> BaseModel:
    return load_base("emoji-xl", torch.device("cpu"))


@pytest.fixture
def searched(emoji: BaseModel, make_run: Callable[..., Run]) -> Run:
    """A run whose winner changes the value projections."""
    metadata = (("base", "emoji-xl"), ("base_fingerprint", emoji.fingerprint))
    run = make_run("runs/mine", metadata=metadata, space=(("sampler", {"steps": 2, "guidance": 2}),))
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in emoji.unet.named_modules():
        if name.endswith("attn1.to_v"):
            rows, columns = module.weight.shape  # type: ignore[union-attr, misc]
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) / 10  # type: ignore[arg-type]
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)  # type: ignore[arg-type]
    save_file(tensors, winner_of(run).adapter)
    return run


def test_weight_0_is_the_base_and_weight_1_what_scoring_draws(emoji: BaseModel, searched: Run) -> None:
    easel = easel_of(searched, attach)
    assert (easel.prompt, easel.seed) == ("a red apple, number 0", 1000)
    plain, through = easel.draw("a red fox", 7, 0)
    asked = (emoji.encode_prompts(["a red fox"]), emoji.encode_empty(), [7], searched.space.sampler)
    np.testing.assert_array_equal(plain, generate(emoji, *asked)[0, 0])
    np.testing.assert_array_equal(through, plain)
    again, through = easel.draw("a red fox", 7, 1)
    with attach(emoji, [winner_of(searched).adapter]):
        np.testing.assert_array_equal(through, generate(emoji, *asked)[0, 0])
    np.testing.assert_array_equal(again, plain)
    assert (through != plain).any()
    assert (easel.draw("a red fox", 7, 0.5)[1] != through).any()
    assert (easel.draw("a red fox", 8, 0)[0] != plain).any()
    with pytest.raises(UsageError, match="seed: must be a whole number from 0"):
        easel.draw("a red fox", -1, 1)


def test_a_file_and_a_base_will_do(searched: Run) -> None:
    file = winner_of(searched).adapter
    assert easel_with(file, "emoji-xl", attach).name == file.name


def test_another_base_is_refused(make_run: Callable[..., Run]) -> None:
    with pytest.raises(MismatchError, match="emoji-xl: is not the base that .* was made with"):
        easel_of(make_run(metadata=(("base", "emoji-xl"),)), attach)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.safetensors",), "a.safetensors: say with --base which model it is for"),
        (("mine", "--base", "emoji-xl"), "--base: only for a LoRA file (.safetensors); a run has its own"),
        (("none",), "none: no such run; in runs/ are: none"),
    ],
)
def test_what_cannot_be_tried_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "try", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    expected = (
        message
        if find_spec("gradio")
        else "bench try: gradio is not installed; get it with: pip install gradio"
    )
    assert (exit_.value.code, capsys.readouterr().err) == (2, f"bench: {expected}\n")


# The page


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address that `bench try mine --port 0` says, until Ctrl-C."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench", "try", "mine", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        said = process.stdout.readline()
        assert said.startswith("Open http://127.0.0.1:"), said
        yield said.removeprefix("Open ").rsplit(";", 1)[0]
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate()[0]
    assert (process.returncode, rest) == (0, "Stopped.\n")


def got(address: str, data: Any = None, **headers: str) -> tuple[bytes, Any]:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read(), response.headers


@pytest.mark.skipif(not find_spec("gradio"), reason="gradio is not installed")
@pytest.mark.skipif(not shutil.which("sh"), reason="has no Ctrl-C of another process")
def test_the_page_draws_for_this_machine_alone(searched: Run, tmp_path: Path) -> None:
    expected = easel_of(searched, attach).draw("a red fox", 7, 1)
    with serving(tmp_path) as opened:
        address, token = opened.split("/?token=")
        mine = {"Cookie": f"a=b; bench-{address.rpartition(':')[2]}={token}"}
        page, headers = got(address, **mine)
        assert b"mine: the winner" in page and b"fonts.googleapis.com/css" not in page
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "http" not in policy
        asked = json.loads(got(f"{address}/gradio_api/call/draw", {"data": ["a red fox", 7, 1]}, **mine)[0])
        events = got(f"{address}/gradio_api/call/draw/{asked['event_id']}", **mine)[0].decode()
        files = json.loads(events.split("event: complete\ndata: ")[1].splitlines()[0])
        for number, (file, image) in enumerate(zip(files, expected, strict=True)):
            drawn = tmp_path / f"{number}.png"
            drawn.write_bytes(got(file["url"], **mine)[0])
            np.testing.assert_array_equal(np.asarray(Image.open(drawn).convert("RGB")), image)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            got(address, Host="evil.example", **mine)
        for path in ("", "/config", "/gradio_api/info"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                got(address + path)
