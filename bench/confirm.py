"""The end of a search: the best few and the default are trained again on fresh seeds, and examined.

What is chosen, epochs and winner, is chosen by the retrainings' scores on the dev prompts. What is
reported are their scores on the test prompts: the luck of prompts and images is not in the choice. The luck
of the retrainings is, a little: a lucky one is lucky on both. The winner and the default draw probes too.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench import run as runs
from bench.config import TrialConfig
from bench.energy import Cost
from bench.errors import StudyError
from bench.files import replacing, write_text
from bench.floor import Floor, measure_floor
from bench.packs import Crew, Job, Survey
from bench.pareto import Point, finalists
from bench.run import Agreement, Candidate, Evaluation, Result, Run, Split, TrialRecord
from bench.scoring.measure import combine
from bench.scoring.metrics import METRICS, Score, best
from bench.scoring.statistics import rank_correlation
from bench.space import SearchSpace

FRESH_SEED = 1_000_000
"""Added to the run's seed for the first confirmation: no trial of the search trains on such a seed."""
EXAMINED: tuple[Split, ...] = ("test", "probe")
ByEpoch = dict[int, dict[str, Score]]
"""Epochs -> scores of the retrainings on the dev prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """Retrains, chooses and examines; what the run folder holds already is not done again."""

    run: Run
    packs: Crew

    def confirm(self, cost: Callable[[], Cost]) -> Result:
        """Write result.json, floor.json and winner/, and return the Result.

        `cost()` has been spent so far. Raises StudyError if no configuration could be confirmed.
        """
        searched = found_by(self.run)
        configs = {"default": self.run.space.default}
        configs |= {label: self._config(label) for label in searched if label != "default"}
        self._retrain(configs)
        by_epoch = {label: self._by_epoch(label) for label in configs}
        chosen = {label: self._with_best_epochs(label, configs[label], by_epoch[label]) for label in configs}
        self._examine(chosen, "test")
        probed = self._probe(chosen, by_epoch)
        candidates = [
            self._candidate(label, chosen[label], by_epoch[label], searched.get(label), label in probed)
            for label in chosen
        ]
        result = self._result([candidate for candidate in candidates if candidate], cost())
        result = replace(result, agreement=self._agreement(chosen))
        self._write_floor(chosen["default"])
        self.run.write_result(result)
        self._write_winner(result)
        return result

    def floor(self) -> Floor:
        """Retrain and examine the default configuration only; write floor.json.

        Raises StudyError if fewer than two of its trainings could be scored.
        """
        default = self.run.space.default
        self._retrain({"default": default})
        for split in self._splits:
            self._examine({"default": default}, split)
        if (found := self._write_floor(default)) is None:
            raise StudyError(
                f"no floor: fewer than 2 trainings of the default could be scored{self._first_failure()}",
                self.run.path,
            )
        return found

    def num_trainings(self, label: str) -> int:
        return num_default_trainings(self.run.space) if label == "default" else self.run.space.confirm.seeds

    @property
    def units(self) -> float:
        """Work to expect, in the units of `Packs`."""
        return self._work(num_trainings(self.run.space))

    def _work(self, trainings: int) -> float:
        return work_of(self.run.space, self.packs.survey, trainings)

    @property
    def _splits(self) -> list[Split]:
        """Probes may be turned off."""
        return [split for split in EXAMINED if split in self.packs.survey.num_drawn]

    # Training again

    def _config(self, label: str) -> TrialConfig:
        return next(record.config for record in self.run.trials() if record.label == label)

    def _retrain(self, configs: Mapping[str, TrialConfig]) -> None:
        jobs = [job for label, config in configs.items() for job in self._jobs(label, config)]
        # The longest first: what is left at the end is short.
        todo = sorted((job for job in jobs if not job.ended), key=lambda job: -job.config.epochs)
        self.packs.progress.total(self.packs.done + self._work(len(todo)))
        self.packs.train(todo, "dev", self.run.space.rungs, len(todo))

    def _jobs(self, label: str, config: TrialConfig) -> list[Job]:
        complete = {record.path for record in self._records(label)}
        jobs = []
        for number in range(self.num_trainings(label)):
            folder = self.run.confirm_folder(label, number)
            fresh = config.model_copy(update={"seed": self.run.metadata.seed + FRESH_SEED + number})
            jobs.append(Job(folder=folder, config=fresh, origin="confirm", ended=folder in complete))
        return jobs

    def _records(self, label: str) -> list[TrialRecord]:
        """Retrainings that ended well; of the default all there are, such as those of a larger floor."""
        records = [record for record in self._tried(label) if record.state == "complete"]
        return sorted(records, key=_seed)

    def _tried(self, label: str) -> list[TrialRecord]:
        records = [r for r in self.run.confirmations() if r.label.rsplit("-seed-", 1)[0] == label]
        return [r for r in records if label == "default" or _seed(r) < self.num_trainings(label)]

    # Choosing, on the dev prompts

    def _with_best_epochs(self, label: str, config: TrialConfig, means: ByEpoch) -> TrialConfig:
        """The default keeps its epochs: it is what the search has to beat."""
        if label == "default" or not means:
            return config
        metric = self.run.space.select_by
        epochs = best(means, metric, lambda epoch: means[epoch][metric].value)
        return config.model_copy(update={"epochs": epochs})

    def _by_epoch(self, label: str) -> ByEpoch:
        """Epochs at which every retraining was scored -> their scores on the dev prompts."""
        records = self._records(label)
        shared = set.intersection(*(set(record.epochs) for record in records)) if records else set()
        return {
            epoch: combine([runs.read_evaluation(runs.epoch_folder(r.path, epoch)) for r in records])[0]
            for epoch in sorted(shared)
        }

    # Examining, on the test prompts and probes

    def _examine(self, chosen: Mapping[str, TrialConfig], split: Split) -> None:
        adapters = [
            (
                runs.adapter_file(record.path, config.epochs),
                runs.exam_folder(record.path, config.epochs, split),
            )
            for label, config in chosen.items()
            for record in self._records(label)
        ]
        self.packs.examine(adapters, split)

    def _probe(self, chosen: Mapping[str, TrialConfig], by_epoch: Mapping[str, ByEpoch]) -> set[str]:
        """Labels of those that draw probes: the default, and the winner, which the dev prompts tell."""
        scored = [label for label, config in chosen.items() if self._examined(label, config, ["test"])]
        if "probe" not in self._splits or not scored:
            return set()
        metric = self.run.space.select_by
        winner = best(scored, metric, lambda label: by_epoch[label][chosen[label].epochs][metric].value)
        probed = {"default", winner}
        self._examine({label: config for label, config in chosen.items() if label in probed}, "probe")
        return probed

    def _examined(
        self, label: str, config: TrialConfig, splits: Sequence[Split]
    ) -> list[tuple[TrialRecord, list[Evaluation]]]:
        """Retrainings that were scored on all `splits`, with one Evaluation a split."""
        found = []
        for record in self._records(label):
            folders = [runs.exam_folder(record.path, config.epochs, split) for split in splits]
            if all(runs.has_evaluation(folder) for folder in folders):
                found.append((record, [runs.read_evaluation(folder) for folder in folders]))
        return found

    def _candidate(
        self,
        label: str,
        config: TrialConfig,
        by_epoch: ByEpoch,
        searched: tuple[int, Evaluation] | None,
        is_probed: bool,
    ) -> Candidate | None:
        examined = self._examined(label, config, EXAMINED if is_probed else ["test"])
        if not examined:
            return None
        combined = [combine(evaluations) for evaluations in _by_split(examined)]
        return Candidate(
            label=label,
            config=config,
            records=tuple(record.label for record, _ in examined),
            num_failed=len(self._tried(label)) - len(examined),
            scores={name: score for scores, _ in combined for name, score in scores.items()},
            seed_spread={name: spread for _, spreads in combined for name, spread in spreads.items()},
            search=searched[1].scores if searched else {},
            search_epochs=searched[0] if searched else None,
            by_epoch=by_epoch,
        )

    def _result(self, candidates: Sequence[Candidate], cost: Cost) -> Result:
        if not candidates:
            raise StudyError(f"no configuration could be confirmed{self._first_failure()}", self.run.path)
        metric = self.run.space.select_by
        winner = best(candidates, metric, lambda c: c.by_epoch[c.config.epochs][metric].value)
        return Result(
            winner=winner.label,
            candidates=tuple(candidates),
            select_by=metric,
            seconds=cost.seconds,
            device_seconds=cost.device_seconds,
            joules=cost.joules,
        )

    def _agreement(self, chosen: Mapping[str, TrialConfig]) -> Agreement | None:
        sampler, metric = self.run.space.sampler, self.run.space.select_by
        if sampler.at_rungs == sampler:
            return None
        dev, test = [], []
        for label, config in chosen.items():
            for record, evaluations in self._examined(label, config, ["test"]):
                dev.append(values_of(record, config.epochs, [metric])[0])
                test.append(evaluations[0].scores[metric].value)
        return Agreement(
            rung_steps=sampler.at_rungs.steps,
            steps=sampler.steps,
            tau=rank_correlation(dev, test),
            num_trainings=len(dev),
        )

    def _first_failure(self) -> str:
        records = self.run.confirmations() + self.run.trials()
        reasons = [record.reason for record in records if record.state == "failed"]
        return f"; the first failure: {reasons[0]}" if reasons else ""

    def _write_floor(self, default: TrialConfig) -> Floor | None:
        """None, and nothing written, where none is wanted or fewer than two trainings could be scored."""
        if not self.run.space.floor:
            return None
        examined = self._examined("default", default, self._splits)
        trainings = [{name: e.scores[name] for e in found for name in e.scores} for _, found in examined]
        if len(trainings) < 2:
            return None
        splits: tuple[Split, Split] = ("test", "floor")
        bases = [runs.read_evaluation(self.run.base_folder(split)) for split in splits]
        drawings = [(base.scores, base.per_prompt) for base in bases]
        floor = measure_floor(trainings, drawings)
        self.run.write_floor(floor)
        return floor

    def _write_winner(self, result: Result) -> None:
        winner = result.candidate(result.winner)
        assert winner is not None
        record = runs.read_trial(self.run.path / "confirm" / winner.records[0])
        source = runs.adapter_file(record.path, winner.config.epochs)
        with replacing(self.run.path / "winner" / "adapter.safetensors") as temporary:
            shutil.copyfile(source, temporary)
        retrained = winner.config.model_copy(update={"seed": record.config.seed})
        config = self.run.training_config(retrained)
        config = config.model_copy(update={"resolution": self.packs.survey.resolution})
        write_text(self.run.path / "winner" / "training_config.yaml", config.guide_yaml())


def num_trainings(space: SearchSpace) -> int:
    """Of the default and all finalists."""
    return num_default_trainings(space) + space.confirm.finalists * space.confirm.seeds


def num_default_trainings(space: SearchSpace) -> int:
    return max(space.confirm.seeds, space.floor)


def work_of(space: SearchSpace, survey: Survey, trainings: int) -> float:
    """Of so many retrainings, in the units of `Packs`. Only the winner and the default draw probes."""
    probed = min(trainings, num_default_trainings(space) + space.confirm.seeds)
    num_drawn: dict[Split, int] = {"test": trainings, "probe": probed}
    examined = sum(
        num_drawn[split] * survey.drawing(split) for split in EXAMINED if split in survey.num_drawn
    )
    return trainings * survey.typical("dev", space.rungs) + examined


def _by_split(examined: Sequence[tuple[TrialRecord, list[Evaluation]]]) -> list[list[Evaluation]]:
    return [list(evaluations) for evaluations in zip(*(found for _, found in examined), strict=True)]


def _seed(record: TrialRecord) -> int:
    """Number of a retraining."""
    return int(record.label.rsplit("-", 1)[1])


def found_by(run: Run) -> dict[str, tuple[int, Evaluation]]:
    """Label -> epochs and Evaluation by which the search knows the default and each of its finalists."""
    records = {record.label: record for record in run.trials() if record.state == "complete"}
    points = [
        Point(label=label, epochs=epoch, values=values_of(record, epoch, run.space.objectives))
        for label, record in records.items()
        if record.origin != "default"
        for epoch in record.epochs
    ]
    directions = [METRICS[name].direction for name in run.space.objectives]
    column = run.space.objectives.index(run.space.select_by)
    chosen = finalists(points, directions, column, run.space.confirm.finalists)
    found = {point.label: (point.epochs, records[point.label]) for point in chosen}
    for record in records.values():
        if record.origin == "default" and record.config.epochs in record.epochs:
            found = {"default": (record.config.epochs, record)} | found
    return {
        label: (epochs, runs.read_evaluation(runs.epoch_folder(record.path, epochs)))
        for label, (epochs, record) in found.items()
    }


def values_of(record: TrialRecord, epoch: int, objectives: Sequence[str]) -> tuple[float, ...]:
    """What a recorded trial scored at an epoch, objective by objective."""
    scores = runs.read_evaluation(runs.epoch_folder(record.path, epoch)).scores
    return tuple(scores[name].value for name in objectives)
