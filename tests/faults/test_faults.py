"""Faults that no other test injects: each test does to a real part what happens to it, see table.py."""

import io
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
import pytest
import torch
import yaml
from faults.soak import soak
from optuna.trial import TrialState
from rich.console import Console
from typer.testing import CliRunner

from bench import asked, cli, filesystem
from bench.base import Bucket
from bench.config import TrialConfig
from bench.errors import BenchError, MismatchError, UsageError
from bench.filesystem import network_kind, refuse_network
from bench.packs import Job, Packs, Trainer
from bench.progress import PlainProgress
from bench.provenance import check_same
from bench.run import Run, TrialRecord, epoch_folder, has_evaluation, read_losses, read_trial, start_trial
from bench.searcher import Searcher, new_study, open_study
from bench.session import Command, Engine, open_session, packs_of, run_search
from bench.shared import ALIVE, Place, share
from bench.space import SearchSpace, load_space
from bench.yaml import parse
from reports.search import write as write_report
from trainers.adapters import attach
from trainers.loop import Pack, train

SPACE: dict[str, Any] = {
    "data": "emoji/pixel16",
    "parameters": {
        "rank": {"choices": [2, 4]},
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
        "epochs": {"choices": [1, 2]},
    },
    "default": {"rank": 4, "alpha": 8, "learning_rate": "1e-4", "epochs": 2, "batch_size": 20},
    "prompts": {"dev": 4, "test": 4, "seeds": 2, "training": 0, "altered": 0, "style": 0, "unrelated": 0},
    "sampler": {"steps": 2, "guidance": 2},
    "confirm": {"finalists": 1, "seeds": 1},
    "prune": {"fraction": 0},
    "floor": 0,
    "judge": "none",
    "trials": 2,
    "slots": 1,
    "devices": 1,
}
STEPS = 3
"""Of an epoch."""
CONFIG = TrialConfig(rank=2, alpha=4, learning_rate=1e-3, epochs=1, batch_size=20, seed=0)
Seen = Callable[[str], None]
MakeCommand = Callable[..., Command]


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Seen:
    """`seen("...")`: what happened, for docs/faults.md."""
    return lambda text: record_property("seen", " ".join(text.split()))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(tmp_path: Path, tiny_sdxl: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCommand:
    """`command(trainer, **fields)`: a search in tmp_path with SPACE changed so."""
    monkeypatch.setenv("BENCH_CACHE", str(cache))

    def make(trainer: Trainer = train, **fields: Any) -> Command:
        return command_in(tmp_path, tiny_sdxl, trainer, **fields)

    return make


def command_in(folder: Path, base: Path, trainer: Trainer, **fields: Any) -> Command:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**SPACE, "base": str(base), **fields}))
    return Command(
        space=load_space(str(file)),
        name="tiny",
        folder=folder / "runs",
        seed=0,
        engine=Engine(train=trainer, attach=attach),
        console=Console(file=io.StringIO(), width=200),
    )


def said(command: Command) -> str:
    return command.console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def opened(tiny_sdxl: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packs]:
    """Packs of one slot on the tiny SDXL, with the dev prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(cache))
        asked = command_in(tmp_path_factory.mktemp("opened"), tiny_sdxl, train)
        with open_session(asked, "tiny") as session:
            packs = packs_of(session, asked.engine, PlainProgress(asked.console))
            packs.exams |= session.exams(packs, ["dev"])
            yield packs


@pytest.fixture
def packs(opened: Packs) -> Packs:
    return replace(opened, progress=PlainProgress(Console(file=io.StringIO(), width=200)))


def trained(packs: Packs, folder: Path, *configs: TrialConfig) -> list[TrialRecord]:
    jobs = [
        Job(folder=folder / f"{n:04d}", config=config, origin="sampled") for n, config in enumerate(configs)
    ]
    packs.train(jobs, "dev", [1, 2])
    return [read_trial(job.folder) for job in jobs]


def space(**fields: Any) -> SearchSpace:
    return parse(json.dumps({**SPACE, "base": "emoji-xl", **fields}), SearchSpace, "my.yaml")


def run_trial(searcher: Searcher, label: str) -> TrialConfig:
    config = searcher.ask(label)
    scores = dict.fromkeys(("similarity", "diversity", "clip_score", "kd"), config.learning_rate)
    searcher.scored(label, config.epochs, scores)
    searcher.ended(label, "complete", config.epochs)
    return config


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """What is written of any file beyond so many bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Processes


DEADLY = '''
"""The trainer; every process that comes to the last step of a trial of rank 2 kills itself."""
import os, signal
import trainers.loop

def train(base, data, configs, rungs, num_slots, on_step):
    taken = []
    def noted():
        for config in configs:
            taken.append(getattr(config, "config", config))
            yield config
    def deadly(number):
        if taken[-1].rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        on_step(number)
    yield from trainers.loop.train(base, data, noted(), rungs, num_slots, deadly)
'''


@pytest.mark.fault(1)
def test_a_trial_that_kills_its_process_twice_fails_with_the_signal(
    command: MakeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    (tmp_path / "deadly_step.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    import deadly_step  # type: ignore[import-not-found]

    asked = replace(command(deadly_step.train, start_points=[{"rank": 2, "alpha": 4}]), isolated=True)
    run = run_search(asked)
    first, second = run.trials()
    assert (first.state, second.state) == ("complete", "failed")
    assert second.reason == "its process was ended by SIGKILL, twice"
    assert run.result() is not None
    seen(f"0001 failed: {second.reason}; the default was confirmed")


@pytest.mark.fault(1, 2, 6)
def test_a_search_under_kills_loses_doubles_and_changes_nothing(
    tmp_path: Path, tiny_sdxl: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", "")
    outcome = soak(tmp_path, seed=0, trials=4, faults=3, base=tiny_sdxl)
    assert (outcome.lost, outcome.doubled, outcome.changed) == ([], [], [])
    assert 1 <= outcome.faults.total() <= 3  # as many as came before it was done
    struck = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items()))
    seen(f"4 trials under {struck}: none lost, doubled or changed")


@pytest.mark.fault(6)
def test_a_trainer_that_exits_leaves_a_trial_that_goes_on(command: MakeCommand, seen: Seen) -> None:
    def leaving(*arguments: Any) -> Iterator[Any]:
        for rung in train(*arguments):
            yield rung
            sys.exit(3)

    asked = command(leaving, trials=1)
    with pytest.raises(SystemExit):
        run_search(asked)
    (trial,) = Run.open(asked.folder / "tiny").trials()
    assert (trial.state, trial.epochs) == ("running", (1,))
    (trial,) = run_search(command(trials=1)).trials()
    assert (trial.label, trial.state, trial.epochs) == ("0000", "complete", (1, 2))
    seen("0000 was left running at epoch 1, and completed by the next run")


# Signs of life


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(url=f"sqlite:///{tmp_path}/both.db", artifacts=str(tmp_path / "artifacts"))


def asked_elsewhere(place: Place, run: Run, *, beats: bool) -> int:
    """A trial that another machine asked, a day ago by its clock; its number."""
    with place.opened() as storage:
        study = optuna.load_study(study_name=run.metadata.name, storage=storage)
        trial = study.ask(fixed_distributions=run.space.distributions)
        trial.set_user_attr("owner", "other")
        trial.set_user_attr("label", f"{trial.number:04d}")
        if beats:
            trial.set_user_attr(ALIVE, "a sign")
    with sqlite3.connect(place.url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE trials SET datetime_start = datetime('now', '-1 day')")
    database.close()
    return trial.number


def state_after_looks(place: Place, run: Run, number: int, seconds: float = 0) -> TrialState:
    """After two looks at what others do, so far apart."""
    with share(run, place, takes_over=True) as shared:
        searcher = Searcher(shared.study, run.space, 0, owner=shared.owner)
        shared.refresh(searcher)
        time.sleep(seconds)
        shared.refresh(searcher)
        return TrialState(shared.study.get_trials()[number].state)


@pytest.mark.fault(3)
def test_a_trial_of_others_that_never_gave_a_sign_of_life_is_given_up(
    make_run: Callable[..., Run], place: Place, seen: Seen
) -> None:
    run = make_run(ending="empty")
    with share(run, place, takes_over=True):
        number = asked_elsewhere(place, run, beats=False)
    state = state_after_looks(replace(place, grace=1), run, number, seconds=1)
    seen(f"a trial that was asked a day ago, without a sign of life: {state.name}")
    assert state == TrialState.FAIL


@pytest.mark.fault(4)
def test_a_clock_that_is_wrong_gives_no_trial_up(
    make_run: Callable[..., Run], place: Place, seen: Seen
) -> None:
    """Signs of life have no date: who looks sees whether they change, by its own clock."""
    run = make_run(ending="empty")
    with share(run, place, takes_over=True):
        number = asked_elsewhere(place, run, beats=True)
    assert state_after_looks(place, run, number) == TrialState.RUNNING
    seen("a trial begun a day ago by a wrong clock, with a sign of life now, is left running")


# The database


@pytest.mark.fault(7)
def test_a_locked_database_is_waited_for(tmp_path: Path, seen: Seen) -> None:
    study = open_study(tmp_path / "study.db", "mine", space())
    searcher, locked = Searcher(study, space(), 0), Event()

    def lock() -> None:
        database = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        locked.set()
        Event().wait(8)
        database.execute("COMMIT")
        database.close()

    thread = Thread(target=lock)
    thread.start()
    assert locked.wait(60)
    assert run_trial(searcher, "0000").rank == 4
    assert not thread.is_alive() or thread.join(1) is None
    assert [trial.state for trial in study.trials][0] == TrialState.COMPLETE
    seen("a trial was asked and told after 8 s, without an error")


@pytest.mark.fault(8)
def test_a_database_that_cannot_grow_keeps_what_it_holds(tmp_path: Path, seen: Seen) -> None:
    file = tmp_path / "study.db"
    searcher = Searcher(open_study(file, "mine", space()), space(), 0)
    told = [run_trial(searcher, f"{number:04d}") for number in range(2)]
    with no_file_beyond(file.stat().st_size), pytest.raises(optuna.exceptions.StorageInternalError):
        for number in range(2, 2000):
            run_trial(searcher, f"{number:04d}")
            told.append(searcher._config(searcher.study.trials[-1].params))
    later = open_study(file, "mine", space())
    whole = [trial for trial in later.trials if trial.state == TrialState.COMPLETE]
    assert len(whole) in (len(told), len(told) + 1)
    again = Searcher(later, space(), 0)
    begun = again.interrupted()
    run_trial(again, "9999")
    assert len(begun) <= 1
    seen(f"{len(whole)} trials are in it, and another is asked and told once there is room")


@pytest.mark.fault(8)
def test_a_search_whose_database_cannot_grow_says_so_in_one_line(command: MakeCommand, seen: Seen) -> None:
    """Beside a database that is larger than all other files, these alone can be written."""
    run = run_search(command(trials=1))
    with sqlite3.connect(run.path / "study.db") as database:
        database.execute("CREATE TABLE padding (content)")
        database.execute("INSERT INTO padding VALUES (zeroblob(30000000))")
    database.close()
    size = (run.path / "study.db").stat().st_size
    with no_file_beyond(size), pytest.raises(Exception) as caught:  # noqa: B017, PT011
        run_search(command(trials=60))
    seen(f"{type(caught.value).__name__}: {caught.value}")
    assert isinstance(caught.value, BenchError) and "\n" not in str(caught.value)


@pytest.mark.fault(8)
def test_an_adapter_on_a_full_disk_fails_no_trial(command: MakeCommand, seen: Seen) -> None:
    limits: list[Any] = []

    def filling(*arguments: Any) -> Iterator[Any]:
        for rung in train(*arguments):
            limits.append(no_file_beyond(4096))
            limits[-1].__enter__()
            yield rung

    try:
        with pytest.raises(BenchError, match="finished trials are kept: run it again when mended") as caught:
            run_search(command(filling, trials=1))
    finally:
        for limit in limits:
            limit.__exit__(None, None, None)
    (trial,) = run_search(command(trials=1)).trials()
    assert trial.state == "complete"
    assert not list(trial.path.rglob("*.tmp"))
    seen(str(caught.value))


@pytest.mark.fault(8)
def test_a_report_on_a_full_disk_leaves_the_old_one(make_run: Callable[..., Run], seen: Seen) -> None:
    run = make_run()
    before = write_report(run).read_bytes()
    with no_file_beyond(100_000), pytest.raises(OSError) as caught:
        write_report(run)
    assert (run.path / "report.html").read_bytes() == before
    assert not list(run.path.glob(".*.tmp"))
    write_report(run)
    seen(f"{caught.value}; the report of before is whole")


HOT = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
database.execute("UPDATE trials SET state = 'FAIL'")
database.execute("CREATE TABLE padding (content)")
database.execute("INSERT INTO padding VALUES (zeroblob(1000000))")
database.execute("UPDATE studies SET study_name = 'torn'")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault(16)
def test_half_a_transaction_is_taken_back(tmp_path: Path, seen: Seen) -> None:
    file = tmp_path / "study.db"
    searcher = Searcher(open_study(file, "mine", space()), space(), 0)
    for number in range(3):
        run_trial(searcher, f"{number:04d}")
    size = file.stat().st_size
    ended = subprocess.run([sys.executable, "-c", HOT, str(file)])
    assert ended.returncode == -signal.SIGKILL
    assert file.stat().st_size > size and file.with_name("study.db-journal").stat().st_size
    later = open_study(file, "mine", space())
    whole = [trial for trial in later.trials if trial.state == TrialState.COMPLETE]
    assert len(whole) == 3
    seen("a process was killed with half of a transaction in the file: all 3 trials are as they were told")


@pytest.mark.fault(16)
def test_a_torn_database_is_named(tmp_path: Path, seen: Seen) -> None:
    file = tmp_path / "study.db"
    open_study(file, "mine", space())
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011
        open_study(file, "mine", space())
    seen(f"{type(caught.value).__name__}: {str(caught.value).splitlines()[0]}")
    assert isinstance(caught.value, UsageError) and "study.db: damaged" in str(caught.value)


# What is not finite


@pytest.mark.fault(9)
def test_latents_that_are_not_finite_fail_the_trial(packs: Packs, tmp_path: Path, seen: Seen) -> None:
    def broken(bucket: Bucket) -> Bucket:
        return replace(bucket, mean=torch.full_like(bucket.mean, torch.nan))

    packs.data = replace(packs.data, buckets=tuple(broken(bucket) for bucket in packs.data.buckets))
    (trial,) = trained(packs, tmp_path, CONFIG)
    assert (trial.state, trial.reason) == ("failed", "the loss was no longer finite at step 1")
    assert trial.epochs == ()
    seen(f"latents: {trial.reason}")


@pytest.mark.fault(9, 10)
def test_a_last_gradient_that_is_not_finite_draws_black_images_which_are_not_scored(
    packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    """No loss shows it any more."""
    made, gradients = [], Pack._gradients

    def broken(self: Pack, *arguments: Any) -> Any:
        made.append(self)
        found = gradients(self, *arguments)
        return [(loss, gradient * torch.nan) for loss, gradient in found] if len(made) == STEPS else found

    monkeypatch.setattr(Pack, "_gradients", broken)
    trial, other = trained(packs, tmp_path, CONFIG, CONFIG.model_copy(update={"seed": 1}))
    assert trial.state == "failed" and "one flat colour" in str(trial.reason)
    assert not has_evaluation(epoch_folder(trial.path, 1))
    assert other.state == "complete"
    seen(f"gradient of the last step: {trial.reason}; the next trial completed")


# Memory


@pytest.mark.fault(12)
def test_memory_that_runs_out_alone_fails_the_trial_and_is_freed_for_the_next(
    packs: Packs, tmp_path: Path, seen: Seen
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def short(*arguments: Any) -> Iterator[Any]:
        for rung in train(*arguments):
            if not held:
                large = torch.zeros(1000)
                held.append(weakref.ref(large))
                raise torch.OutOfMemoryError("out of memory: tried to allocate 2 GiB")
            assert held[0]() is None
            yield rung

    packs.trainer = short
    first, second = trained(packs, tmp_path, CONFIG, CONFIG.model_copy(update={"seed": 1}))
    assert (first.state, second.state) == ("failed", "complete")
    assert first.reason == "OutOfMemoryError: out of memory: tried to allocate 2 GiB"
    assert second.config.batch_size == CONFIG.batch_size and len(read_losses(second.path)) == STEPS
    seen(f"{first.reason}; the next trial completed with the same batch")


# Checkpoints


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch
from bench.config import TrialConfig
from trainers.checkpoints import Checkpoint, find_checkpoints, read_checkpoint, write_checkpoint

output = Path(sys.argv[1])
config = TrialConfig(rank=2, alpha=2, learning_rate=1e-4, epochs=1)
part = {"mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 4),
        "mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(4, 2)}
def copy():
    return {key: tensor.clone() for key, tensor in part.items()}

state = {"weights": copy(), "mean": copy(), "square": copy()}

def write(folder, step):
    write_checkpoint(folder, Checkpoint(step=step, state=state, losses=[0.0] * step), config, {}, 1)

def dying_at(number, folder):
    calls = iter(range(number, -1, -1))
    def hook(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir", "open", "os.mkdir") and not next(calls, 1):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    write(folder, 8)
    os._exit(0)

killed = 0
while True:
    folder = output / str(killed)
    write(folder, 4)
    if (child := os.fork()) == 0:
        dying_at(killed, folder)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    read_checkpoint(find_checkpoints(folder)[-1])
    write(folder, 8)
    (whole,) = find_checkpoints(folder)
    assert read_checkpoint(whole).step == 8
    if ended == 0:
        break
    assert ended == -signal.SIGKILL
    killed += 1
print(killed)
"""


@pytest.mark.fault(15)
def test_there_is_a_whole_checkpoint_whenever_saving_is_killed(tmp_path: Path, seen: Seen) -> None:
    """At each opening, renaming and removing of a file in turn."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-W", "ignore", "-c", KILLED_WHILE_SAVING, str(tmp_path)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    assert killed > 10
    seen(f"killed at {killed} moments of one save: a whole checkpoint was there each time")


# Changes


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("rank", {"choices": [4, 8, 16]}),
        ("learning_rate", {"low": 1e-5, "high": 1e-3}),
        ("rank", {"low": 4, "high": 32}),
    ],
    ids=["choices", "scale", "type"],
)
def test_a_changed_parameter_is_refused(
    make_run: Callable[..., Run], parameter: str, value: dict[str, Any], seen: Seen
) -> None:
    run = make_run(ending="empty")
    known = run.metadata.space
    changed = {**known, "parameters": {**known["parameters"], parameter: value}}
    given = SearchSpace.model_validate(changed).model_dump(mode="json")
    with pytest.raises(MismatchError, match=r"with another space\.parameters\..* -> ") as caught:
        check_same(run, replace(run.metadata, space=given))
    seen(str(caught.value).replace(str(run.path), "runs/tiny"))


@pytest.mark.fault(18)
def test_a_changed_direction_is_refused(tmp_path: Path, seen: Seen) -> None:
    open_study(tmp_path / "study.db", "mine", space(objectives=["similarity"], select_by="similarity"))
    with pytest.raises(MismatchError, match="the study 'mine' is to maximize, the objectives kd") as caught:
        open_study(tmp_path / "study.db", "mine", space(objectives=["kd"], select_by="kd"))
    seen(str(caught.value))


@pytest.mark.fault(19)
@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_an_enqueued_value_out_of_range_is_not_trained(seen: Seen) -> None:
    study = new_study(space())
    searcher = Searcher(study, space(), 0)
    run_trial(searcher, "0000")
    study.enqueue_trial({"rank": 4, "learning_rate": 0.5, "epochs": 1})
    asked = searcher.ask("0001")
    assert asked.learning_rate <= 1e-2
    (failed,) = study.get_trials(states=(TrialState.FAIL,))
    assert failed.user_attrs["reason"] == "learning_rate=0.5 is not in the space"
    seen(f"it failed: {failed.user_attrs['reason']}; another was asked")


@pytest.mark.fault(20)
@pytest.mark.parametrize("seed", range(3))
def test_three_trials_and_three_after_an_interruption_are_six(tmp_path: Path, seed: int, seen: Seen) -> None:
    file, asked = tmp_path / "study.db", []
    for numbers in (range(3), range(3, 6)):
        searcher = Searcher(open_study(file, "mine", space()), space(), seed)
        asked += [run_trial(searcher, f"{number:04d}") for number in numbers]
    assert len({config.model_dump_json() for config in asked}) == 6
    seen("6 configurations of 3 + 3 trials")


# Reports


@pytest.mark.fault(23)
@pytest.mark.parametrize("ending", ["finished", "interrupted", "failed", "empty"])
def test_a_report_of_any_state_exits_with_0(
    make_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    seen: Seen,
) -> None:
    run = make_run("runs/mine", ending=ending)
    start_trial(run.trial_folder(7), CONFIG, "sampled")
    states = sorted({trial.state for trial in run.trials()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "report", "mine"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert (run.path / "report.html").stat().st_size > 1000
    seen(f"trials {', '.join(states)}: written, exit code 0")


# The network


@pytest.mark.fault(24)
@pytest.mark.parametrize("flag", ["--base", "--data"])
def test_without_a_network_what_is_missing_is_said_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    seen: Seen,
) -> None:
    """Every request would go to a port where nothing listens."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "search", flag, "someone/something"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "hf download someone/something" in line
    assert list(tmp_path.iterdir()) == []
    seen(f"exit code 2: {line}")


# Network file systems


MOUNTS = [
    ("/", "ext4"),
    ("/net", "nfs4"),
    ("/net/scratch", "xfs"),
    ("/mnt/far", "fuse.sshfs"),
    ("/smb", "cifs"),
]


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/runs", None),
        ("/net/me/runs", "nfs4"),
        ("/net/scratch/runs", None),
        ("/network/runs", None),
        ("/mnt/far/runs/mine", "fuse.sshfs"),
        ("/smb", "cifs"),
    ],
)
def test_a_network_file_system_is_known_by_its_type(path: str, kind: str | None) -> None:
    assert network_kind(Path(path), MOUNTS) == kind


@pytest.mark.fault(25)
def test_sqlite_on_a_network_file_system_is_refused_or_warned_of(seen: Seen) -> None:
    heard: list[str] = []
    refuse_network(Path("/home/runs"), heard.append, force=False, mounts=MOUNTS)
    with pytest.raises(UsageError, match="/net/runs: is on nfs4, a network file system") as caught:
        refuse_network(Path("/net/runs"), heard.append, force=False, mounts=MOUNTS)
    assert heard == [] and "\n" not in str(caught.value)
    refuse_network(Path("/net/runs"), heard.append, force=True, mounts=MOUNTS)
    assert len(heard) == 1 and heard[0].startswith("Warning: /net/runs: is on nfs4")
    seen(str(caught.value))


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("storage", "file"),
    [
        (None, Path("runs")),
        ("sqlite:////net/both.db", Path("/net/both.db")),
        ("sqlite:///both.db?timeout=9", Path("both.db")),
        ("postgresql://me@host/db", None),
    ],
)
def test_only_sqlite_is_looked_for(storage: str | None, file: Path | None) -> None:
    assert asked.sqlite_file(storage) == file


@pytest.mark.fault(25)
@pytest.mark.parametrize("verb", [["search"], ["worker", "mine"]])
def test_every_verb_that_opens_a_shared_study_looks_where_it_lies(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "_mounts", lambda: [("/", "ext4"), (str(tmp_path), "nfs4")])
    file = tmp_path / "both.db"
    asked = CliRunner().invoke(cli.app, [*verb, "--storage", f"sqlite:///{file}", "--artifacts", "a"])
    assert str(asked.exception).startswith(f"{file}: is on nfs4, a network file system, where SQLite's locks")
    assert not file.exists()


@pytest.mark.fault(25)
def test_this_machine_s_file_systems_can_be_read(tmp_path: Path) -> None:
    assert isinstance(network_kind(tmp_path), str | None)
