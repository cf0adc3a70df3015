"""Shared studies, without a model: who gives up what, and what comes of artefacts that are not whole.

Each test is done with SQLite and a folder, and with Optuna's proxy and a bucket.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from rich.console import Console
from servers import serving_proxy

from bench import shared as shared_module
from bench.errors import BenchError, MismatchError, UsageError
from bench.fleet import Fleet
from bench.progress import PlainProgress
from bench.run import Metadata, Run, end_trial, read_trial, start_trial
from bench.searcher import Searcher, database_errors
from bench.shared import RETRIED, Place, Shared, share
from bench.study import Study

MakeRun = Callable[..., Run]
REASON = "loss is NaN at step 12"


@pytest.fixture(params=["sqlite", "proxy"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(url=f"sqlite:///{tmp_path}/both.db", artifacts=str(tmp_path / "artifacts"))
    url, artifacts = request.getfixturevalue("proxy"), request.getfixturevalue("bucket")
    return Place(url=url, artifacts=artifacts)


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    return make_run("run-a", ending="empty", space=(("trials", 1),))


@pytest.fixture
def other(make_run: MakeRun) -> Run:
    """Of another machine, on the same search."""
    return make_run("there/run-a", ending="empty", space=(("trials", 1),))


@pytest.fixture
def mine(run: Run, place: Place) -> Iterator[Shared]:
    """Whoever confirms."""
    with share(run, place, takes_over=True) as shared:
        yield shared


@pytest.fixture
def theirs(mine: Shared, other: Run, place: Place) -> Iterator[Shared]:
    with share(other, place, takes_over=False) as shared:
        yield shared


def searcher_of(shared: Shared, run: Run) -> Searcher:
    return Searcher(shared.study, run.space, 0, owner=shared.owner)


def ended_elsewhere(theirs: Shared, other: Run, uploads: int) -> str:
    """A trial that ended on another machine, uploaded so often; its label."""
    searcher = searcher_of(theirs, other)
    label, config = searcher.ask_numbered()
    folder = theirs.path / "trials" / label
    start_trial(folder, config, "sampled")
    end_trial(folder, "failed", 1.0, REASON)
    for _ in range(uploads):
        theirs.upload(searcher.trial_of(label), folder)
    assert searcher.ended(label, "failed", config.epochs, REASON)
    return label


def tear(shared: Shared, number: int) -> None:
    """What was uploaded last of the only trial, so many of them."""
    for artifact in shared._artifacts(shared._trials()[0])[:number]:
        shared.store.write(artifact.artifact_id, io.BytesIO(b"PK torn"))


def left_over(path: Path) -> list[Path]:
    return list((path / "trials").glob("*"))


def test_a_torn_artefact_gives_way_to_the_whole_one_before_it(
    mine: Shared, theirs: Shared, other: Run
) -> None:
    label = ended_elsewhere(theirs, other, uploads=2)
    tear(mine, 1)
    assert mine.collect() == [label]
    assert read_trial(mine.path / "trials" / label).reason == REASON
    assert left_over(mine.path) == [mine.path / "trials" / label]
    assert mine.collect() == []


def test_a_trial_of_which_nothing_whole_is_there_is_not_taken_over(
    mine: Shared, theirs: Shared, other: Run
) -> None:
    ended_elsewhere(theirs, other, uploads=2)
    tear(mine, 1)
    mine.store.remove(mine._artifacts(mine._trials()[0])[1].artifact_id)
    assert mine.collect() == []
    assert left_over(mine.path) == []


def test_who_joins_is_shown_the_run_that_began_the_study(mine: Shared, other: Run, place: Place) -> None:
    shown: list[Metadata] = []
    with share(other, place, takes_over=False, check=shown.append):
        assert [metadata.space for metadata in shown] == [other.metadata.space]


def test_trials_that_the_study_does_not_know_are_refused(mine: Shared, run: Run) -> None:
    mine.refuse_strange([])
    with pytest.raises(MismatchError, match="holds trials that the shared study does not know, such as 0007"):
        mine.refuse_strange(["0007"])


@pytest.mark.fault(3, 4)
def test_a_silent_trial_is_given_up_and_tried_once_more(
    mine: Shared, theirs: Shared, run: Run, other: Run
) -> None:
    there, here = searcher_of(theirs, other), searcher_of(mine, run)
    label, config = there.ask_numbered()
    mine.refresh(here)
    assert theirs.num_asked == 1
    mine.grace = 0
    mine.refresh(here)
    assert mine.given_up() == {label} and mine.num_asked == 0
    waiting = mine.study.get_trials(states=(TrialState.WAITING,))
    assert [trial.user_attrs[RETRIED] for trial in waiting] == [int(label)]
    theirs.tell_scores(there.trial_of(label), 1, {"similarity": 0.5})
    assert not there.ended(label, "failed", config.epochs, REASON)
    again, _ = here.ask_numbered()
    theirs.grace = 0
    theirs.refresh(there)
    assert theirs.given_up() == {label, again}
    assert theirs.study.get_trials(states=(TrialState.WAITING,)) == []


@pytest.mark.fault(21)
def test_who_asks_for_the_last_trial_after_another_takes_it_back(
    mine: Shared, theirs: Shared, run: Run, other: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another asks between the look at how many are left and the question."""
    crew = Fleet([], PlainProgress(Console(file=io.StringIO())), join=lambda parent: None)  # type: ignore
    study = Study(run=run, packs=crew, shared=mine)
    monkeypatch.setattr(mine, "refresh", lambda searcher: searcher_of(theirs, other).ask_numbered())
    assert study._ask(1) is None
    assert mine.num_asked == 1 and mine.num_running == 1
    monkeypatch.undo()
    asked = study._ask(2)
    assert asked and mine.num_asked == 2


def test_a_proxy_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "PATIENCE", 0.1)
    place = Place(url="grpc://127.0.0.1:9", artifacts=str(tmp_path))
    with pytest.raises(UsageError, match="^grpc://127.0.0.1:9: cannot be used: nothing answers$"):
        with place.opened():
            pass


def test_a_proxy_that_ends_is_no_trial_s_fault(run: Run, tmp_path: Path) -> None:
    with serving_proxy(tmp_path / "proxied.db") as (url, server):
        with share(run, Place(url=url, artifacts=str(tmp_path / "files")), takes_over=True) as shared:
            server.kill()
            server.wait()
            with pytest.raises(BenchError, match="^the study's database: .*; finished trials are kept"):
                with database_errors():
                    searcher_of(shared, run).ask_numbered()


def test_a_bucket_that_is_not_there_is_one_line(run: Run, tmp_path: Path, bucket: str) -> None:
    place = Place(url=f"sqlite:///{tmp_path}/both.db", artifacts=f"{bucket}-elsewhere")
    with pytest.raises(BenchError, match="^the study's artefacts: .*NoSuchBucket"):
        with database_errors(), share(run, place, takes_over=True):
            pass
