"""Frames of a run: what a report shows, in files that any reader loads."""

import csv
import io
import json
import math
from collections.abc import Callable

import pandas as pd
import pytest

from bench.config import TrialConfig
from bench.run import Run
from bench.scoring.metrics import METRICS
from reports import exports
from reports.trials import read_points
from reports.verdict import contests

MakeRun = Callable[..., Run]
FRAMES = {"trials": exports.trials, "scores": exports.scores, "prompts": exports.prompts}


def test_trials_are_the_points_of_the_report(make_run: MakeRun) -> None:
    run = make_run()
    frame, points = exports.trials(run), read_points(run)
    assert list(zip(frame.trial, frame.epoch.fillna(0), strict=True)) == [
        (point.label, point.epoch or 0) for point in points
    ]
    assert frame.similarity.fillna(9).tolist() == [
        9 if math.isnan(point.value("similarity")) else point.value("similarity") for point in points
    ]
    assert frame[frame.winner].trial.tolist() == ["0002"]
    assert frame.origin.tolist().count("default") == 2  # epochs 2 and 4
    failed = frame[frame.state == "failed"]
    assert failed.reason.tolist() == ["loss is NaN at step 12"] and failed.similarity.isna().all()


def test_a_column_has_one_meaning() -> None:
    assert not set(TrialConfig.model_fields) & set(METRICS)


def test_scores_hold_intervals_and_verdicts_of_the_comparisons(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    result = run.result()
    assert result
    found = contests(run, result)
    frame = exports.scores(run, found).set_index(["candidate", "metric"])
    row, told = frame.loc[("0002", "similarity")], found.over_base["0002"].main
    assert told and found.over_default and found.over_default.main
    assert (row.gain, row.low, row.high, row.verdict) == (told.mean, told.low, told.high, told.verdict)
    assert row.default_gain == found.over_default.main.mean
    assert pd.isna(frame.loc[("base", "similarity")].gain)
    assert pd.isna(frame.loc[("default", "similarity")].default_gain)
    assert frame.loc[("0002", "fid")].isna().verdict and not frame.loc[("0002", "fid")].isna().gain


def test_means_of_prompts_are_the_scores(make_run: MakeRun) -> None:
    run = make_run()
    frame = exports.prompts(run)
    assert set(frame.kind) == {"base", "trial", "confirmed"}
    assert set(frame.split) == {"dev", "test", "probe"}
    trial = frame[(frame.kind == "trial") & (frame.training == "0001") & (frame.epoch == 2)]
    point = next(point for point in read_points(run) if (point.label, point.epoch) == ("0001", 2))
    assert trial.similarity.mean() == pytest.approx(point.value("similarity"))
    assert trial.text.tolist() == [prompt.text for prompt in run.metadata.prompts["dev"]]


@pytest.mark.parametrize("ending", ["finished", "interrupted", "failed", "empty"])
def test_every_run_has_all_files_and_they_read_back_as_written(make_run: MakeRun, ending: str) -> None:
    run = make_run(ending=ending)
    files = exports.write(run)
    assert {file.relative_to(run.path).as_posix() for file in files} == {
        f"data/{name}.{format}" for name in FRAMES for format in exports.FORMATS
    }
    for name, frame_of in FRAMES.items():
        frame = frame_of(run)
        pd.testing.assert_frame_equal(pd.read_parquet(run.path / "data" / f"{name}.parquet"), frame)
        rows = json.loads((run.path / "data" / f"{name}.json").read_text(encoding="utf-8"))
        assert len(rows) == len(frame) and all(list(row) == list(frame) for row in rows)
        table = list(csv.reader(io.StringIO((run.path / "data" / f"{name}.csv").read_text("utf-8"))))
        assert table[0] == list(frame) and len(table) == len(frame) + 1


def test_columns_do_not_change_their_type_with_what_is_missing(make_run: MakeRun) -> None:
    whole, failed = (exports.trials(make_run(ending, ending=ending)) for ending in ("finished", "failed"))
    shared = list(failed)
    assert failed.dtypes.tolist() == whole[shared].dtypes.tolist()


def test_hostile_text_stays_text_and_secrets_stay_here(make_run: MakeRun) -> None:
    reason = "hf_abcdefghijklmnopqrstuvwxyz012345 refused"
    run = make_run(caption='=HYPERLINK("http://x","</script>")', reason=reason)
    texts = {file.suffix + file.stem: file.read_bytes() for file in exports.write(run)}
    assert not any(b"hf_abc" in text for text in texts.values())
    assert "*** refused" in exports.trials(run).reason.dropna().tolist()
    rows = list(csv.DictReader(io.StringIO(texts[".csvprompts"].decode())))
    assert rows[0]["text"] == '\'=HYPERLINK("http://x","</script>"), number 0'
    assert exports.prompts(run).text[0] == '=HYPERLINK("http://x","</script>"), number 0'


def test_every_column_is_documented(make_run: MakeRun) -> None:
    documented = str(exports.__doc__)
    run = make_run(gain=0.2, prompts=12)
    known = set(METRICS) | {
        f"{name}_{part}" for name in METRICS for part in ("stderr", "gain", "gain_stderr")
    }
    for frame_of in FRAMES.values():
        for name in set(frame_of(run)) - known - set(exports.PARAMETERS):
            assert name.removeprefix("default_") in documented, name
