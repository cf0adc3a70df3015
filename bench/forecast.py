"""Forecast: how long what is left of a search takes here, from a short rehearsal of its default.

Training and drawing are counted as the progress display counts them. Measuring and writing go on beside them
and are not counted; nor is it known which configurations will be sampled: it is told as `about`.
"""

from dataclasses import dataclass, replace

from bench.config import TrialConfig
from bench.confirm import num_default_trainings, num_trainings, work_of
from bench.fleet import Fleet
from bench.packs import Crew, Packs
from bench.rates import Rates, measure
from bench.room import done_in
from bench.run import Run
from bench.space import Sampler


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What is left of a search."""

    num_trials: int
    trial_seconds: float
    """A trial's share."""
    confirm_seconds: float
    """Of training the finalists and the default again, and examining them."""
    spent: float = 0.0
    """Seconds that the search has taken before: a budget is for them too."""

    @property
    def seconds(self) -> float:
        return self.num_trials * self.trial_seconds + self.confirm_seconds

    def num_within(self, budget: float) -> int:
        """Trials after which there is time for the confirmation."""
        left = max(0.0, budget - self.spent - self.confirm_seconds)
        return min(self.num_trials, int(left / self.trial_seconds))


def forecast(run: Run, crew: Crew, spent: float = 0.0) -> Forecast | None:
    """None where nothing is left to do, or the default configuration could not be rehearsed."""
    space, done = run.space, done_in(run.path)
    trials = max(0, space.trials - done.trials)
    # Whatever the trials to come find is trained again; the default has been.
    again = min(done.trainings, num_default_trainings(space)) if trials else done.trainings
    trainings = max(0, num_trainings(space) - again)
    if not trials and not trainings:
        return None
    rates = _measured(crew, space.default, space.sampler)
    if rates is None:
        return None
    survey = replace(crew.survey, image_step=rates.forward_seconds / rates.sample_seconds)
    unit = rates.sample_seconds / crew.num_devices
    return Forecast(
        num_trials=trials,
        trial_seconds=unit * survey.typical("dev", space.rungs),
        confirm_seconds=unit * work_of(space, survey, trainings),
        spent=spent,
    )


def _measured(crew: Crew, config: TrialConfig, sampler: Sampler) -> Rates | None:
    if isinstance(crew, Fleet):
        return crew.rehearse(config, sampler)
    assert isinstance(crew, Packs)
    return measure(crew, config, sampler)
