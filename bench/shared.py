"""Shared studies: processes on one machine or many search one space through one database.

Each asks, trains and tells by itself, through Optuna's storage. What it trained is put into an artifact store
before it is told; the search that confirms takes it from there. Who gives no sign of life any more loses its
trials: they are tried once more, by whoever asks next.
"""

import shutil
import tempfile
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread

import optuna
from optuna.artifacts import (
    Boto3ArtifactStore,
    FileSystemArtifactStore,
    download_artifact,
    get_all_artifact_meta,
    upload_artifact,
)
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from bench.errors import MissingError, UsageError, one_line
from bench.files import json_text, read_json, write_json
from bench.run import Metadata, Run, read_metadata
from bench.searcher import Searcher, new_study

SCORES = "scores at "
"""Attribute of a trial, with the epoch: its scores by metric name."""
ALIVE = "alive"
"""Attribute of a trial that has given a sign of life."""
RETRIED = "retried"
"""Attribute of a trial that another was given up for."""
TRIALS = "trials"
"""Attribute of a study: how many are wanted."""
RECORD = "shared.json"
"""File of a run that works on a shared study: where that is, and by which name this run is known there."""
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
BUCKET = "s3://"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a shared study is."""

    url: str
    """Of PostgreSQL, MySQL or SQLite; or `grpc://host:port` of Optuna's proxy, which tells of no deaths."""
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
        # Experimental for years, and meant for `optimize`, whose part `pulse` and `refresh` take here.
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")
        url = self._address()
        try:
            url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
            return RDBStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": 60}} if url.drivername == "sqlite" else {},
                heartbeat_interval=self.heartbeat,
                grace_period=self.grace,
                heartbeat_stale_trial_callback=_try_again,
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
        return GrpcStorageProxy(host=url.host, port=url.port or 13000)

    def store(self) -> Boto3ArtifactStore | FileSystemArtifactStore:
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
    store: Boto3ArtifactStore | FileSystemArtifactStore
    path: Path
    """Of this one's own run folder."""
    owner: str
    takes_over: bool
    """What others have trained: for the search that confirms."""
    grace: int
    """See Place."""
    _waited: dict[int, float] = field(default_factory=dict, init=False)
    """Trials that gave no sign of life -> since when they are known, by the clock of this process."""

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
        fail_stale_trials(self.study)
        self._give_up_silent()
        for trial in self._trials():
            if trial.user_attrs.get("owner") not in (self.owner, None):
                for name, scores in trial.user_attrs.items():
                    if name.startswith(SCORES):
                        label, epoch = str(trial.user_attrs["label"]), int(name.removeprefix(SCORES))
                        searcher.scored_elsewhere(label, epoch, scores)

    def _give_up_silent(self) -> None:
        """Trials that never gave a sign of life: Optuna waits for them for ever."""
        storage = self.study._storage
        if not isinstance(storage, BaseHeartbeat) or storage.get_heartbeat_interval() is None:
            return
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            is_mine = trial.user_attrs.get("owner") == self.owner
            since = self._waited.setdefault(trial._trial_id, time.monotonic())
            if is_mine or ALIVE in trial.user_attrs or time.monotonic() - since < self.grace:
                continue
            with suppress(UpdateFinishedTrialError):  # others look too
                if storage.set_trial_state_values(trial._trial_id, TrialState.FAIL):
                    _try_again(self.study, trial)

    def collect(self) -> list[str]:
        """Take over the folders of trials that have ended elsewhere; returns their labels."""
        taken: list[str] = []
        for trial in self._trials() if self.takes_over else ():
            folder = self.path / "trials" / str(trial.user_attrs.get("label"))
            if trial.state.is_finished() and _counts(trial) and not folder.exists():
                for artifact in get_all_artifact_meta(trial, storage=self.study._storage):
                    self._download(artifact.artifact_id, folder)
                    taken.append(folder.name)
        return taken

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
        with tempfile.TemporaryDirectory() as making:
            file = Path(making) / f"{folder.name}.zip"
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        archive.write(path, path.relative_to(folder))
            with suppress(UpdateFinishedTrialError):
                upload_artifact(artifact_store=self.store, file_path=str(file), study_or_trial=trial)

    def _download(self, artifact: str, folder: Path) -> None:
        """Whole or not at all."""
        making = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        file = making.with_suffix(".zip")
        try:
            download_artifact(artifact_store=self.store, file_path=str(file), artifact_id=artifact)
            with zipfile.ZipFile(file) as archive:
                archive.extractall(making)  # which leaves out what would lead out of the folder
            making.rename(folder)
        finally:
            file.unlink(missing_ok=True)
            shutil.rmtree(making, ignore_errors=True)

    @contextmanager
    def pulse(self, running: Callable[[], Collection[int]], say: Callable[[str], None]) -> Iterator[None]:
        """Give a sign of life for the trials that are `running`, by their ids, until the end.

        Where that fails it is said, once until it succeeds again, and tried again.
        """
        storage, over = self.study._storage, Event()
        if not isinstance(storage, BaseHeartbeat) or (seconds := storage.get_heartbeat_interval()) is None:
            yield
            return

        def beat() -> None:
            failed, pause, known = False, 0, set[int]()
            while not over.wait(pause):
                try:
                    for trial in running():
                        storage.record_heartbeat(trial)
                        if trial not in known:
                            self.study._storage.set_trial_user_attr(trial, ALIVE, True)
                            known.add(trial)
                    failed = False
                except Exception as error:  # whatever it is, the next may succeed
                    if not failed:
                        say(f"no sign of life could be given: {one_line(error)}")
                    failed = True
                pause = seconds

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
def share(run: Run, place: Place, *, takes_over: bool) -> Iterator[Shared]:
    """The shared study of a run, made if it is not there; raises MismatchError for other objectives."""
    with place.opened() as storage:
        study, store = new_study(run.space, storage, run.metadata.name), place.store()
        if not get_all_artifact_meta(study):
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
        )


def _owner(run: Run, place: Place) -> str:
    """By which a run folder is known in the study."""
    known = run.path / RECORD
    if not known.exists():
        write_json(known, {"storage": place.shown, "artifacts": place.artifacts, "owner": uuid.uuid4().hex})
    return str(read_json(known)["owner"])


def refuse_apart(run: Run) -> None:
    """A study that is shared is not gone on with alone; raises UsageError."""
    known = run.path / RECORD
    if known.exists():
        raise UsageError(f"{run.path}: its study is in {read_json(known)['storage']}: give it as --storage")


def shared_metadata(place: Place, name: str) -> Metadata:
    """run.json of the search that made a shared study; raises MissingError."""
    with place.opened() as storage, tempfile.TemporaryDirectory() as making:
        try:
            study = optuna.load_study(study_name=name, storage=storage)
            (about,) = get_all_artifact_meta(study)[:1]
        except (KeyError, ValueError):
            raise MissingError(
                f"{place.shown}: no study {name!r} in it; begin it with bench search"
            ) from None
        store, file = place.store(), Path(making) / "run.json"
        try:
            download_artifact(artifact_store=store, file_path=str(file), artifact_id=about.artifact_id)
        except (OSError, ArtifactNotFound):
            raise MissingError(f"--artifacts {place.artifacts}: holds nothing of {name!r}") from None
        return read_metadata(file)
