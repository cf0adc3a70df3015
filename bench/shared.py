"""Shared studies: processes on one machine or many search one space through one database.

Each asks, trains and tells by itself, through Optuna's storage. What it trained is put into an artifact store
before it is told; the search that confirms takes it from there. Who gives no sign of life any more loses its
trials: they are tried once more, by whoever asks next.
"""

import re
import shutil
import tempfile
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
from optuna.artifacts import (
    ArtifactMeta,
    Boto3ArtifactStore,
    FileSystemArtifactStore,
    download_artifact,
    get_all_artifact_meta,
    upload_artifact,
)
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from bench.errors import BenchError, MismatchError, MissingError, UsageError, one_line
from bench.files import json_text, read_json, reading, write_json
from bench.run import Metadata, Run, read_metadata
from bench.searcher import Searcher, new_study

SCORES = "scores at "
"""Attribute of a trial, with the epoch: its scores by metric name."""
ALIVE = "alive"
"""Attribute of a trial: a text that is another with each sign of life.

It has no date, so that no clock must be right; and unlike Optuna's heartbeat it goes through a proxy too.
"""
LABEL = re.compile(r"\d{4,9}")
RETRIED = "retried"
"""Attribute of a trial that another was given up for."""
TRIALS = "trials"
"""Attribute of a study: how many are wanted."""
RECORD = "shared.json"
"""File of a run that works on a shared study: where that is, and by which name this run is known there."""
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
CONNECTING: Mapping[str, dict[str, Any]] = {
    "sqlite": {"timeout": 60},
    "postgresql+psycopg": {"tcp_user_timeout": 60_000},
}
"""By driver: how long is waited for a lock, in s, or for a network, in ms; the query of a URL may differ."""
BUCKET = "s3://"
PATIENCE = 10.0
"""Seconds in which a proxy must answer."""
Store = Boto3ArtifactStore | FileSystemArtifactStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a shared study is."""

    url: str
    """Of PostgreSQL, MySQL or SQLite; or `grpc://host:port` of Optuna's proxy."""
    artifacts: str
    """A folder that all see, or `s3://bucket`."""
    heartbeat: int = 60
    """Seconds between two signs of life."""
    grace: int = 300
    """Seconds without one, after which a trial is given up."""

    @property
    def shown(self) -> str:
        """The URL without what is secret in it."""
        return self._address().set(query={}).render_as_string(hide_password=True)

    def _address(self) -> URL:
        try:
            return make_url(self.url)
        except (ArgumentError, ValueError):  # what is no URL may hold a secret anywhere: it is not repeated
            raise UsageError("--storage: cannot be used: it is no URL of a database") from None

    @contextmanager
    def opened(self) -> Iterator[BaseStorage]:
        """Its storage; raises MissingError for a driver that is not there, UsageError if nothing answers."""
        storage = self._storage()
        try:
            yield storage
        finally:
            if isinstance(storage, RDBStorage):
                storage.remove_session()
                storage.engine.dispose()
            elif isinstance(storage, GrpcStorageProxy):
                storage.close()

    def _storage(self) -> BaseStorage:
        if self.url.startswith("grpc://"):
            return self._proxy()
        url = self._address()
        try:
            url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
            known = CONNECTING.get(url.drivername, {})
            asked = {name: known[name] for name in known.keys() - url.query.keys()}
            return RDBStorage(
                url.render_as_string(hide_password=False), engine_kwargs={"connect_args": asked}
            )
        except (ImportError, NoSuchModuleError):
            raise MissingError(
                f"{self.shown}: its driver is not installed: pip install 'bench[postgres]'"
            ) from None
        except (ArgumentError, SQLAlchemyError) as error:
            reason = one_line(getattr(error, "orig", None) or error)
            raise UsageError(f"{self.shown}: cannot be used: {reason}") from None

    def _proxy(self) -> GrpcStorageProxy:
        url = self._address()
        if url.username or url.password or not url.host:
            raise UsageError(f"{self.shown}: cannot be used: give grpc://host:port, without a login")
        warnings.simplefilter("ignore", ExperimentalWarning)  # for years
        try:
            storage = GrpcStorageProxy(host=url.host, port=url.port or 13000)
            storage.wait_server_ready(PATIENCE)
        except ImportError:
            raise MissingError(f"{self.shown}: gRPC is not installed: pip install 'bench[grpc]'") from None
        except ConnectionError:
            raise UsageError(f"{self.shown}: cannot be used: nothing answers") from None
        return storage

    def store(self) -> Store:
        """Where artefacts go."""
        if not self.artifacts.startswith(BUCKET):
            Path(self.artifacts).mkdir(parents=True, exist_ok=True)
            return FileSystemArtifactStore(self.artifacts)
        try:
            return Boto3ArtifactStore(self.artifacts.removeprefix(BUCKET))
        except ImportError:
            raise MissingError(
                f"--artifacts {self.artifacts}: boto3 is not installed: pip install 'bench[s3]'"
            ) from None


def _try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Once, with the same parameters and nothing else of a trial that was given up."""
    if RETRIED not in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={RETRIED: trial.number})


@dataclass(eq=False, kw_only=True)
class Shared:
    """A shared study as one of those who work on it sees it."""

    study: optuna.Study
    store: Store
    path: Path
    """Of this one's own run folder."""
    owner: str
    takes_over: bool
    """What others have trained: for the search that confirms."""
    grace: int
    """See Place."""
    heartbeat: int
    """See Place."""
    _signs: dict[int, tuple[Any, float]] = field(default_factory=dict, init=False)
    """Of trials by their ids: the last sign of life, and since when it is known, by this process's clock."""

    # Trials of others

    @property
    def num_asked(self) -> int:
        """Trials that have begun, those apart that were given up."""
        return sum(_counts(trial) for trial in self._trials())

    @property
    def num_wanted(self) -> int:
        return int(self.study.user_attrs[TRIALS])

    @property
    def num_running(self) -> int:
        """At others."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(trial.user_attrs.get("owner") != self.owner for trial in running)

    def refresh(self, searcher: Searcher) -> None:
        """Give up trials that show no life, and take in what others have scored."""
        self._give_up_silent()
        for trial in self._trials():
            if trial.user_attrs.get("owner") not in (self.owner, None):
                for name, scores in trial.user_attrs.items():
                    if name.startswith(SCORES) and LABEL.fullmatch(str(trial.user_attrs.get("label"))):
                        label, epoch = str(trial.user_attrs["label"]), int(name.removeprefix(SCORES))
                        searcher.scored_elsewhere(label, epoch, scores)

    def _give_up_silent(self) -> None:
        """Trials of others whose sign of life has not changed for long, by the clock of this process."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("owner") == self.owner or self._silence(trial) < self.grace:
                continue
            with suppress(UpdateFinishedTrialError):  # others look too
                if self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL):
                    _try_again(self.study, trial)

    def _silence(self, trial: FrozenTrial) -> float:
        """Seconds since its last sign of life was first seen here; it may never have given one."""
        now, sign = time.monotonic(), trial.user_attrs.get(ALIVE)
        known, since = self._signs.get(trial._trial_id, (sign, now))
        self._signs[trial._trial_id] = sign, since if sign == known else now
        return now - self._signs[trial._trial_id][1]

    def is_surplus(self, trial: optuna.Trial, num_trials: int) -> bool:
        """Whether so many were asked before it: two who ask at once may both have seen that one is left."""
        asked = sorted(each.number for each in self._trials() if _counts(each))
        return trial.number in asked[num_trials:]

    def given_up(self) -> set[str]:
        """Labels of trials that others have given up."""
        return {
            str(trial.user_attrs.get("label"))
            for trial in self._trials()
            if trial.state == TrialState.FAIL and not _counts(trial)
        }

    def refuse_strange(self, labels: Collection[str]) -> None:
        """Raises MismatchError for labels that the study does not know: it would give their numbers again."""
        if strange := sorted(set(labels) - {str(trial.user_attrs.get("label")) for trial in self._trials()}):
            raise MismatchError(
                f"{self.path}: holds trials that the shared study does not know, such as {strange[0]}; "
                "give another --name"
            )

    def collect(self) -> list[str]:
        """Take over the folders of trials that have ended elsewhere; returns their labels."""
        taken: list[str] = []
        for trial in self._trials() if self.takes_over else ():
            label = str(trial.user_attrs.get("label"))
            folder = self.path / "trials" / label
            if (
                trial.state.is_finished()
                and _counts(trial)
                and LABEL.fullmatch(label)
                and not folder.exists()
            ):
                if any(self._download(artifact.artifact_id, folder) for artifact in self._artifacts(trial)):
                    taken.append(label)
        return taken

    def _artifacts(self, trial: FrozenTrial) -> list[ArtifactMeta]:
        """The latest first: of one that was killed while it uploaded the first may lack or be torn."""
        return get_all_artifact_meta(trial, storage=self.study._storage)[::-1]

    def _trials(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if not trial.user_attrs.get("nested")]

    # Trials of this one

    def tell_scores(self, trial: optuna.Trial, epoch: int, scores: dict[str, float]) -> None:
        """So that others prune by them."""
        with suppress(UpdateFinishedTrialError):  # others have given it up, which is seen when it ends
            trial.set_user_attr(f"{SCORES}{epoch}", scores)

    def upload(self, trial: optuna.Trial, folder: Path) -> None:
        """The folder of a trial that has ended and is about to be told."""
        with tempfile.TemporaryDirectory(dir=self.path) as making:
            file = Path(making) / f"{folder.name}.zip"
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(folder.rglob("*")):
                    # Pages are made where they are read; another thread may be writing one.
                    if path.is_file() and not path.name.startswith(".") and path.suffix != ".html":
                        archive.write(path, path.relative_to(folder))
            with suppress(UpdateFinishedTrialError):
                upload_artifact(artifact_store=self.store, file_path=str(file), study_or_trial=trial)

    def _download(self, artifact: str, folder: Path) -> bool:
        """Whole or not at all; False for an artefact that is not there, or is torn."""
        making = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        file = making.with_suffix(".zip")
        try:
            download_artifact(artifact_store=self.store, file_path=str(file), artifact_id=artifact)
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > shutil.disk_usage(making).free:
                    raise BenchError(
                        f"{folder}: {size / 1e9:.1f} GB from another machine do not fit on the disk"
                    )
                archive.extractall(making)  # which leaves out what would lead out of the folder
            making.rename(folder)
        except (ArtifactNotFound, FileNotFoundError, zipfile.BadZipFile):
            return False
        finally:
            file.unlink(missing_ok=True)
            shutil.rmtree(making, ignore_errors=True)
        return True

    @contextmanager
    def pulse(self, running: Callable[[], Collection[int]], say: Callable[[str], None]) -> Iterator[None]:
        """Give a sign of life for the trials that are `running`, by their ids, until the end.

        Where that fails it is said, once until it succeeds again, and tried again.
        """
        storage, over = self.study._storage, Event()

        def beat() -> None:
            failed, pause = False, 0
            while not over.wait(pause):
                try:
                    for trial in running():
                        with suppress(UpdateFinishedTrialError):  # which is seen when it ends
                            storage.set_trial_user_attr(trial, ALIVE, uuid.uuid4().hex)
                    failed = False
                except Exception as error:  # whatever it is, the next may succeed
                    if not failed:
                        say(f"no sign of life could be given: {one_line(error)}")
                    failed = True
                pause = self.heartbeat

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _counts(trial: FrozenTrial) -> bool:
    """Not one that waits, nor one that was given up: that has no reason of its own."""
    if trial.state == TrialState.FAIL:
        return "reason" in trial.user_attrs
    return trial.state != TrialState.WAITING


@contextmanager
def share(
    run: Run, place: Place, *, takes_over: bool, check: Callable[[Metadata], None] = lambda theirs: None
) -> Iterator[Shared]:
    """The shared study of a run, made if it is not there; raises MismatchError for other objectives.

    `check` is given run.json of the search that made it.
    """
    with place.opened() as storage:
        study, store = new_study(run.space, storage, run.metadata.name), place.store()
        if (theirs := _metadata_in(study, store)) is not None:
            check(theirs)
        else:
            with tempfile.TemporaryDirectory() as making:
                file = Path(making) / "run.json"
                file.write_text(json_text(asdict(run.metadata)), encoding="utf-8")
                upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=study)
        if takes_over:
            study.set_user_attr(TRIALS, run.space.trials)
        yield Shared(
            study=study,
            store=store,
            path=run.path,
            owner=_owner(run, place),
            takes_over=takes_over,
            grace=place.grace,
            heartbeat=place.heartbeat,
        )


def _owner(run: Run, place: Place) -> str:
    """By which a run folder is known in the study; raises MismatchError if it works on another."""
    known = run.path / RECORD
    if not known.exists():
        write_json(known, {"storage": place.shown, "artifacts": place.artifacts, "owner": uuid.uuid4().hex})
    record = read_json(known)
    if record["storage"] != place.shown:
        raise MismatchError(f"{run.path}: its study is in {record['storage']}, not in {place.shown}")
    return str(record["owner"])


def refuse_apart(run: Run) -> None:
    """A study that is shared is not gone on with alone; raises UsageError."""
    known = run.path / RECORD
    if known.exists():
        raise UsageError(f"{run.path}: its study is in {read_json(known)['storage']}: give it as --storage")


def place_of(run: Run, url: str | None) -> Place:
    """Of a run's study, shared or not; `url` is of the database of one that is shared.

    Raises UsageError for a URL that is needed, or another one, MissingError where there is no study.
    """
    known, file = run.path / RECORD, run.path / "study.db"
    if known.exists():
        record = read_json(known)
        with reading(known):
            stored, artifacts = str(record["storage"]), str(record["artifacts"])
        if url is None:  # a folder of someone else does not say where this machine connects to
            raise UsageError(f"{run.path}: its study is in {stored}: give it as --storage")
        place = Place(url=url, artifacts=artifacts)
        if place.shown != stored:
            raise UsageError(f"{run.path}: its study is in {stored}, not in {place.shown}")
        return place
    if not file.exists():
        raise MissingError(f"{file}: no such file: this run has no study")
    return Place(url=f"sqlite:///{file.resolve()}", artifacts="")


def shared_metadata(place: Place, name: str) -> Metadata:
    """run.json of the search that made a shared study; raises MissingError."""
    with place.opened() as storage:
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            raise MissingError(
                f"{place.shown}: no study {name!r} in it; begin it with bench search"
            ) from None
        if (found := _metadata_in(study, place.store())) is None:
            raise MissingError(f"--artifacts {place.artifacts}: holds nothing of {name!r}")
        return found


def _metadata_in(study: optuna.Study, store: Store) -> Metadata | None:
    """run.json among the artefacts of a study; None if none is there."""
    for artifact in get_all_artifact_meta(study):
        with tempfile.TemporaryDirectory() as making, suppress(OSError, ArtifactNotFound):
            file = Path(making) / "run.json"
            download_artifact(artifact_store=store, file_path=str(file), artifact_id=artifact.artifact_id)
            return read_metadata(file)
    return None
