"""against_script.py of tests/speed: what it reads off the script's progress, the arithmetic of its table."""

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tqdm import tqdm


def _script() -> ModuleType:
    file = Path(__file__).parent / "speed" / "against_script.py"
    spec = importlib.util.spec_from_file_location("against_script", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


against = _script()
Mark = against.Mark
MEASURED = {"start-up": 10.0, "training": 20.0, "drawing": 30.0, "scoring": 1.0}


def settings(**changes: object) -> object:
    values = {
        "base": "emoji-xl",
        "data": "emoji/pixel16",
        "configs": 4,
        "steps": 100,
        "batch": 4,
        "images": 8,
        "sampler_steps": 20,
        "resolution": 64,
        "dtype": "float32",
    }
    return against.Settings(**{**values, **changes})


def side(factor: float, measured: int = 4, measured_steps: int = 100) -> object:
    return against.Side(
        seconds={stage: factor * number for number, stage in enumerate(against.STAGES)},
        pace=2.0,
        images=3.0,
        measured=measured,
        measured_steps=measured_steps,
        record={"machine": "a machine"},
    )


def test_steps_are_read_off_a_real_bar_also_before_its_line_ends(tmp_path: Path) -> None:
    output = io.StringIO()
    with tqdm(range(3), desc="Steps", file=output, mininterval=0, miniters=1) as bar:
        for _ in bar:
            bar.set_postfix(step_loss=0.5, lr=1e-4)
    stream = io.BytesIO(b"Loading: 100%|###| 7/7 [00:00<00:00]\n" + output.getvalue().encode())
    lines = list(against.lines_of(stream, tmp_path / "log"))
    steps = [step for line in lines if (step := against.parse_step(line))]
    assert list(dict.fromkeys(steps)) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "log").read_bytes() == stream.getvalue()


def test_a_bar_is_seen_when_it_is_drawn() -> None:
    class Stalling(io.RawIOBase):
        """A pipe whose writer is busy after each bar."""

        parts = [b"\rSteps:   0%|    | 0/2 [00:00<?]", b"\rSteps:  50%|##  | 1/2 [00:01<00:01]", b""]

        def read1(self, size: int) -> bytes:
            return self.parts.pop(0)

    seen = [against.parse_step(line) for line in against.lines_of(Stalling(), Path("/dev/null"))]
    assert seen[0] == (0, 2) and seen[-1] == (1, 2)


@pytest.mark.parametrize(
    "line",
    ["", "Steps", "Loading weights: 100%|####| 52/52 [00:00<00:00]", "  Total optimization steps = 10"],
)
def test_other_lines_are_no_steps(line: str) -> None:
    assert against.parse_step(line) is None


def test_the_pace_leaves_start_and_warm_up_out() -> None:
    marks = [Mark(5.0, 0), Mark(25.0, 1), Mark(26.0, 2), *(Mark(26 + 0.5 * i, 2 + i) for i in range(1, 9))]
    assert against.pace_of(marks) == pytest.approx(9 / 5)
    assert against.pace_of([Mark(40.0 + done / 2, done) for done in range(41)]) == pytest.approx(2.0)


@pytest.mark.parametrize("marks", [[], [Mark(1.0, 0)], [Mark(1.0, 0), Mark(2.0, 1)]])
def test_too_few_steps_have_no_pace(marks: list[object]) -> None:
    with pytest.raises(ValueError, match="2 are needed"):
        against.pace_of(marks)


def test_a_short_training_is_extended_at_its_pace() -> None:
    assert against.extended(30.0, 2.0, 40, 200) == pytest.approx(30 + 160 / 2)
    assert against.extended(30.0, 2.0, 40, 40) == 30.0


def test_measured_configurations_stand_for_all() -> None:
    other = {stage: 3 * seconds for stage, seconds in MEASURED.items()}
    assert against.multiplied([MEASURED], 4) == {stage: 4 * value for stage, value in MEASURED.items()}
    assert against.multiplied([MEASURED, other], 2) == {stage: 4 * v for stage, v in MEASURED.items()}


@pytest.mark.parametrize(
    ("available", "steps", "batch", "expected"),
    [(60, 120, 4, 60), (60, 200, 1, 50), (60, 10, 4, 40), (60, 7, 1, 7), (3, 10, 4, 0)],
)
def test_pictures_make_whole_epochs(available: int, steps: int, batch: int, expected: int) -> None:
    number = against.num_pictures(available, steps, batch)
    assert number == expected <= available
    assert number == 0 or (number % batch == 0 and steps * batch % number == 0)


def test_the_table_has_every_side_its_ratio_and_what_was_not_run() -> None:
    public = side(6.0, measured=1, measured_steps=40)
    text = against.table(settings(), {"public": public, "bench": side(2.0)})
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["| stage", "public, s", "bench, s", "public / bench |"]
    assert rows[2] == ["| start-up", "0.0", "0.0", "- |"]
    assert rows[3] == ["| training", "6.0", "2.0", "3.0 |"]
    assert rows[-1] == ["| all", "60.0", "20.0", "3.0 |"]
    assert "1 of 4 configurations measured and multiplied" in text
    assert "40 of 100 steps measured" in text
    assert text.count("measured and multiplied") == 1


def test_a_side_alone_has_no_ratio() -> None:
    assert "/ bench" not in against.table(settings(), {"public": side(1.0)})


def test_results_gather_and_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert against.read_sides(file, settings()) == {}
    against.write_sides(file, settings(), {"bench": side(2.0)})
    assert against.read_sides(file, settings()) == {"bench": side(2.0)}
    with pytest.raises(SystemExit, match="another steps, dtype; give another --work"):
        against.read_sides(file, settings(steps=7, dtype="bfloat16"))
