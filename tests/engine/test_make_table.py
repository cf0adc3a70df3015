"""The table that searches are replayed on, made of two configurations with a tiny SDXL."""

import io
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from bench.asked import command_of
from bench.progress import PlainProgress
from bench.session import open_session, packs_of

sys.path.insert(0, str(Path(__file__).parent.parent / "efficiency"))

from make_table import Maker, make_all  # noqa: E402
from table import EPOCHS, ROLES, Cell, read_pace, read_table  # noqa: E402

CELLS = [Cell(4, 1.0, 1e-3, 0.1, "attention"), Cell(8, 2.0, 1e-3, 0.1, "attention")]


@pytest.fixture
def space(tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).parent.parent / "efficiency" / "table.yaml"
    given: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    prompts = given["prompts"] | {"dev": 2, "test": 3}
    sampler = {"steps": 3, "guidance": 2, "rung_steps": 2}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**given, "base": str(tiny_sdxl), "prompts": prompts, "sampler": sampler}))
    return str(file)


def test_every_role_is_trained_once_and_scored_at_every_rung(space: str, tmp_path: Path) -> None:
    command = command_of(space, {}, None, 0, Console(file=io.StringIO()))
    with open_session(command, "table") as session:
        packs = packs_of(session, command.engine, PlainProgress(command.console))
        dev, test = session.exam("dev", packs), session.exam("test", packs)
        maker = Maker(
            file=tmp_path / "table.csv",
            trainer=command.engine.train,
            data=packs.data,
            dev=dev,
            dev_full=replace(dev, sampler=session.run.space.sampler),
            test=test,
            slots=1,
            ends=time.monotonic() + 3600,
        )
        make_all(maker, CELLS[:1])
        assert maker.trained == 3
        make_all(maker, CELLS)
        assert maker.trained == 6
        make_all(replace(maker, ends=0.0), CELLS)
    table = read_table(maker.file)
    assert set(table) == {(cell, role, epoch) for cell in CELLS for role in ROLES for epoch in EPOCHS}
    for (_, role, epoch), row in table.items():
        assert -1 <= row.similarity <= 1
        assert (row.held_out_loss > 0) is (role == "search")
        assert (row.full_similarity > -1) is (role == "search" and epoch == max(EPOCHS))
    steps = sum(15 * max(EPOCHS) for _ in CELLS for _ in ROLES)
    assert read_pace(maker.file)["trained sample", "attention"].units == 4 * steps
