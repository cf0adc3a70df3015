"""Searcher: which configuration is tried next, and which trial stops at a rung.

It knows configurations and scores, neither folders nor models, so that a search can be replayed from a table.
"""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from bench.config import TrialConfig
from bench.errors import BenchError, MismatchError, UsageError, one_line
from bench.pruning import Standing, Standings
from bench.scoring.metrics import METRICS
from bench.secrets import masked
from bench.space import SearchSpace

End = Literal["complete", "pruned", "failed"]
REMOTE = (
    ("grpc", "RpcError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("boto3.exceptions", "Boto3Error"),
)
"""Modules of extras, and the base of their errors."""
Sampling = Callable[[int, int], optuna.samplers.BaseSampler]
"""Seed and number of random trials at the start -> a sampler."""


def tpe(seed: int, num_random: int) -> optuna.samplers.BaseSampler:
    """Multi-objective TPE over all parameters at once; running trials count as bad ones (constant liar).

    Ozaki et al. 2022 (JAIR 73); so that several free slots are not given the same configuration.
    """
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_random, constant_liar=True)


class Searcher:
    """Asks an Optuna study and tells it every score as soon as it is known.

    A trial is known by its label, its number as text. Scores are values by metric name: all of the space's
    objectives and, if the space prunes by it, `held_out_loss`.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        seed: int,
        sampling: Sampling = tpe,
        *,
        nested: bool = True,
        owner: str | None = None,
    ) -> None:
        """`nested`: the rungs that a trial passes join the study as finished trials of fewer epochs.

        `owner`: who this is, where others ask and tell the same study.
        """
        self.study, self.owner = study, owner
        self._space, self._seed, self._sampling, self._nested = space, seed, sampling, nested
        self._standings = Standings(space)
        self._running: dict[str, optuna.Trial] = {}
        self._values: dict[tuple[str, int], tuple[float, ...]] = {}
        known = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("nested")]
        self._joined = {(str(trial.user_attrs["label"]), int(trial.params["epochs"])) for trial in known}
        if not study.get_trials(deepcopy=False):
            for config in (space.default, *space.starts):
                study.enqueue_trial(space.parameters_of(config))

    def ask(self, label: str) -> TrialConfig:
        """The next configuration: the default, then the start points, then what the sampler proposes."""
        return self._ask(label)[1]

    def ask_numbered(self) -> tuple[str, TrialConfig]:
        """The same of a trial that has its number in the study as its label."""
        return self._ask(None)

    def _ask(self, label: str | None) -> tuple[str, TrialConfig]:
        self._refuse_outside()
        # A sampler that starts again from its first seed would repeat its first points.
        told = len(self.study.get_trials(deepcopy=False))
        digest = hashlib.sha256(f"{self._seed}/{told}".encode()).digest()
        self.study.sampler = self._sampling(int.from_bytes(digest[:4], "big"), self._space.num_slots)
        trial = self.study.ask(fixed_distributions=self._space.distributions)
        label = label or f"{trial.number:04d}"
        trial.set_user_attr("owner", self.owner)
        trial.set_user_attr("label", label)
        self._running[label] = trial
        return label, self._config(trial.params)

    def _refuse_outside(self) -> None:
        """Trials that others enqueued with values that are not in the space fail: Optuna takes any."""
        storage = self.study._storage
        for waiting in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if wrong := self._outside(waiting.system_attrs.get("fixed_params", {})):
                if storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
                    storage.set_trial_user_attr(waiting._trial_id, "reason", wrong)
                    self.study.tell(waiting.number, state=TrialState.FAIL)

    def _outside(self, params: Mapping[str, Any]) -> str | None:
        """What of these is not in the space."""
        for name, distribution in self._space.distributions.items():
            if name not in params:
                continue
            with suppress(ValueError):  # of a choice that is none
                if distribution._contains(distribution.to_internal_repr(params[name])):
                    continue
            return f"{name}={params[name]!r} is not in the space"
        return None

    @property
    def running(self) -> Collection[str]:
        """Labels of the trials that were asked and have not ended."""
        return self._running.keys()

    def scored(self, label: str, epoch: int, scores: Mapping[str, float]) -> None:
        """What a trial scored at an epoch; of a trial that ended long ago it is only remembered."""
        values = tuple(scores[name] for name in self._space.objectives)
        self._values[label, epoch] = values
        self._standings.add(label, epoch, scores)
        trial = self._running.get(label)
        if trial and self._nested and epoch != trial.params.get("epochs", epoch):
            self._join(trial, label, epoch, values)

    def stops(self, label: str, epoch: int) -> Standing | None:
        """How a trial stands at a rung if it is not to go on from there."""
        trial = self._running[label]
        is_default = trial.params == self._space.parameters_of(self._space.default)
        return None if is_default else self._standings.stops(label, epoch)

    def ended(self, label: str, end: End, epochs: int, reason: str | None = None) -> bool:
        """How a trial that was to have so many epochs ended; False if others have given it up before."""
        trial = self._running.pop(label)
        try:
            if reason:
                trial.set_user_attr("reason", masked(reason))
            if end == "complete":
                self.study.tell(trial, self._values[label, epochs])
            else:
                self.study.tell(trial, state=TrialState.PRUNED if end == "pruned" else TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            if self.owner is None:
                raise
            return False
        return True

    def withdraw(self, label: str) -> None:
        """Take back a trial that was asked and has not begun: it counts no more."""
        self.study.tell(self._running.pop(label), state=TrialState.FAIL)

    def running_ids(self) -> list[int]:
        """Of the storage."""
        return [trial._trial_id for trial in list(self._running.values())]

    def trial_of(self, label: str) -> optuna.Trial:
        """A running trial."""
        return self._running[label]

    def scored_elsewhere(self, label: str, epoch: int, scores: Mapping[str, float]) -> None:
        """What a trial of another owner scored: for pruning."""
        self._standings.add(label, epoch, scores)

    def interrupted(self) -> dict[str, TrialConfig]:
        """Trials that were running when the search was interrupted, by label; they are running again."""
        configs = {}
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get("owner") != self.owner:
                continue
            trial = optuna.Trial(self.study, frozen._trial_id)
            if "label" in frozen.user_attrs:
                label = str(frozen.user_attrs["label"])
                self._running[label], configs[label] = trial, self._config(frozen.params)
            else:  # not even begun
                self.study.enqueue_trial(frozen.params)
                self.study.tell(trial, state=TrialState.FAIL)
        return configs

    def _config(self, params: dict[str, Any]) -> TrialConfig:
        return self._space.config_of(params).model_copy(update={"seed": self._seed})

    def _join(self, trial: optuna.Trial, label: str, epoch: int, values: tuple[float, ...]) -> None:
        if (label, epoch) in self._joined:
            return
        self._joined.add((label, epoch))
        earlier = create_trial(
            params={**trial.params, "epochs": epoch},
            distributions=trial.distributions,
            values=values,
            user_attrs={"label": label, "nested": True},
        )
        self.study.add_trial(earlier)


def open_study(file: Path, name: str, space: SearchSpace) -> optuna.Study:
    """The study kept in an SQLite file, made if it is not there; raises UsageError for a damaged one."""
    connection = {"connect_args": {"timeout": 60}}
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs=connection)
        return new_study(space, storage, name)
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = one_line(_cause(error))
        raise UsageError(f"{file}: damaged: {reason}; bench doctor {name} --fix makes it again") from None


@contextmanager
def database_errors() -> Iterator[None]:
    """What goes wrong with a study's database or artefacts later is the machine's fault: one BenchError."""
    try:
        yield
    except _faults() as error:
        what = "artefacts" if type(error).__module__.startswith("boto") else "database"
        reason = one_line(_cause(error))
        raise BenchError(
            f"the study's {what}: {reason}; finished trials are kept: run it again when mended"
        ) from None


def _faults() -> tuple[type[Exception], ...]:
    """Errors of a database; of a proxy and of buckets too, if their libraries are in use."""
    used = [(sys.modules[module], name) for module, name in REMOTE if module in sys.modules]
    return SQLAlchemyError, StorageInternalError, *(getattr(module, name) for module, name in used)


def _cause(error: BaseException) -> Exception:
    """What the database itself said."""
    while error.__cause__ is not None:
        error = error.__cause__
    if callable(details := getattr(error, "details", None)):  # of gRPC
        return Exception(details())
    original = getattr(error, "orig", None)
    return original if isinstance(original, Exception) else Exception(str(error))


def new_study(
    space: SearchSpace, storage: optuna.storages.BaseStorage | None = None, name: str | None = None
) -> optuna.Study:
    """A study of the space's objectives, in memory if there is no storage.

    Raises MismatchError for one of that name in the storage that has other directions.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [METRICS[objective].direction for objective in space.objectives]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    known = [direction.name.lower() for direction in study.directions]
    if known != directions:
        raise MismatchError(
            f"the study {name!r} is to {', '.join(known)}, the objectives {', '.join(space.objectives)} "
            f"to {', '.join(directions)}; give another --name"
        )
    return study
