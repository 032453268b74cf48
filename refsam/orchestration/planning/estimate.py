"""How long planned runs are expected to take: by finished runs of the same kind, a fit, or published times.

Early stopping decides how many epochs a run has. Expected are as many as such runs had until their best one,
and those until early stopping ends it; the upper limit is all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

from refsam.configuration.early_stopping import epochs_until_stop, most_steps
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.orchestration.planning.finished_runs import FinishedRun, Key, finished_runs, key_of
from refsam.orchestration.slurm.requests import Jobs
from refsam.records.fits import Fit, known_fits, seconds_per_step
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.run import Run
from refsam.system.files import read_yaml
from refsam.system.names import counted

PUBLISHED = Path(__file__).with_name("published_times.yaml")
SECONDS_PER_HOUR = 3600.0


class Source(StrEnum):
    """Where an expected time comes from."""

    runs = "runs"
    fit = "fit"
    published = "published"


class JobPart(StrEnum):
    """What of a run is to do in one job."""

    all = "all"
    training = "training"
    evaluation = "evaluation"


@dataclass(frozen=True)
class Expected:
    """Seconds that one run is expected to take, and takes at most."""

    seconds: float
    at_most: float
    source: Source


@dataclass(frozen=True)
class GroupEstimate:
    """The runs with the same requests. Those without an expected time are only counted.

    Attributes:
        part: of the runs, where another job than the one of this estimate does the rest.
        gpus: of each run.
        seconds: expected, summed over the runs whose times are known; None where there is none.
        at_most: the same sum of the upper limits.
        finished: how many finished runs it was made from.
    """

    jobs: Jobs
    part: JobPart
    gpus: int
    runs: int
    unknown: int
    seconds: float | None
    at_most: float | None
    sources: frozenset[Source]
    finished: int


def estimate(
    groups: Sequence[tuple[Jobs, Sequence[Run]]],
    folder: RunsFolder,
    on_slurm: bool,
) -> list[GroupEstimate]:
    """The expected times of runs that are to do, in groups of the same requests; two for those that one job
    trains and another one evaluates.

    Args:
        folder: where finished runs are looked for; a bounded number of them is read.
        on_slurm: whether they will be given to Slurm: only finished runs of the same place tell of them.
    """
    keys = {run.run_id: key_of(run.config, on_slurm) for _, runs in groups for run in runs}
    finished = finished_runs(folder, keys.values())
    fits = known_fits(folder.root)
    return [
        _group(jobs, part, runs, keys, finished, fits, folder)
        for jobs, runs in groups
        for part in ([JobPart.all] if jobs.then is None else [JobPart.training, JobPart.evaluation])
    ]


def _group(
    jobs: Jobs,
    part: JobPart,
    runs: Sequence[Run],
    keys: dict[str, Key],
    finished: dict[Key, list[FinishedRun]],
    fits: Sequence[Fit],
    folder: RunsFolder,
) -> GroupEstimate:
    known = []
    for run in runs:
        paths = folder.run(run.run_id)
        # Of a trained run an evaluation is made up for.
        to_do = JobPart.evaluation if paths.training.exists() else part
        expected = by_finished_runs(run.config, finished[keys[run.run_id]], to_do)
        if expected is None and to_do is not JobPart.evaluation:
            expected = by_fit(run.config, fits) or by_published_times(run.config)
        if expected is not None:
            known.append(expected if to_do is JobPart.evaluation else _left(expected, paths))
    request = jobs.first if jobs.then is None or part is JobPart.training else jobs.then
    return GroupEstimate(
        jobs=jobs,
        part=part,
        gpus=request.gpus,
        runs=len(runs),
        unknown=len(runs) - len(known),
        seconds=sum(each.seconds for each in known) if known else None,
        at_most=sum(each.at_most for each in known) if known else None,
        sources=frozenset(each.source for each in known),
        finished=sum(len(finished[key]) for key in {keys[run.run_id] for run in runs}),
    )


def by_finished_runs(
    config: RefsamConfig, finished: Sequence[FinishedRun], part: JobPart = JobPart.all
) -> Expected | None:
    """The time of a run, or a part of it, by others of its kind; of those with as many images where there
    are such.
    """
    if not finished:
        return None
    alike = [run for run in finished if run.n_images == config.n_images] or finished
    overhead = median([run.overhead for run in alike if run.overhead is not None] or [0.0])
    other = overhead
    if part is not JobPart.training:
        other += median(_evaluation(config, run) for run in alike)
    if config.kind == Kind.baseline or part is JobPart.evaluation:
        return Expected(other, other, Source.runs)
    per_step = median(run.seconds_per_step for run in alike if run.seconds_per_step is not None)
    # The longest epochs: a training that ended in the middle of one has shorter ones on average.
    per_epoch = max(run.steps_per_epoch for run in alike if run.steps_per_epoch is not None)
    best = median(run.best_epoch for run in alike if run.best_epoch is not None)
    steps, most = _steps(config, best, per_epoch)
    return Expected(per_step * steps + other, per_step * most + other, Source.runs)


def by_fit(config: RefsamConfig, fits: Sequence[Fit]) -> Expected | None:
    """The time of a training by what `refsam fit` measured on its resource; None where it did not.

    Nothing is known of the best epoch, so early stopping is not counted on; the evaluation is not in it.
    """
    per_step = seconds_per_step(fits, config) if config.kind != Kind.baseline else None
    if per_step is None:
        return None
    _, most = _steps(config, 0, config.train.min_samples / config.train.batch_size)
    return Expected(per_step * most, per_step * most, Source.fit)


def by_published_times(config: RefsamConfig) -> Expected | None:
    """The time of a training by what others have published; None where nothing is published of its kind.

    The evaluation is not in it.
    """
    published = _published()
    settings = {name: getattr(config.train, name) for name in published["settings"]}
    setting = config.resource.settings.get(config.model.architecture)
    if (
        config.kind == Kind.baseline
        or config.model.architecture != published["architecture"]
        or settings != published["settings"]
        or setting is None
        or int(config.n_objects) > setting.n_objects
    ):
        return None
    rows = [
        row
        for row in published["times"]
        if (row["resource"], row["strategy"]) == (config.resource.name, config.peft.name)
    ]
    if not rows:
        return None
    cells = [cell for row in rows for cell in row["images"].values()]
    per_epoch = sum(_seconds(time) for _, time in cells) / sum(best + 1 for best, _ in cells)
    generalist = config.model.name != config.model.architecture
    start = [row for row in rows if (row["start"] != published["architecture"]) == generalist] or rows
    images = min(start[0]["images"], key=lambda number: abs(number - config.n_images))
    samples = published["samples"]
    steps, most = _steps(config, mean(row["images"][images][0] for row in start), config.train.min_samples)
    return Expected(per_epoch / samples * steps, per_epoch / samples * most, Source.published)


def group_words(group: GroupEstimate) -> str:
    """`Expected: 3.4 h, at most 8.5 h, by 4 finished runs of the same kind.`"""
    of = "" if group.part is JobPart.all else f" for the {group.part}"
    if group.seconds is None or group.at_most is None:
        return f"Expected time{of}: not known, no run of this kind has finished here."
    origin = []
    if Source.runs in group.sources:
        origin.append(f"{counted(group.finished, 'finished run')} of the same kind")
    if Source.fit in group.sources:
        origin.append("the steps that refsam fit measured, without the evaluation")
    if Source.published in group.sources:
        origin.append(f"the times of {_published()['source']}, without the evaluation")
    text = (
        f"Expected{of}: {_hours(group.seconds)}, at most {_hours(group.at_most)}, by {' and '.join(origin)}"
    )
    return f"{text}; not known for {counted(group.unknown, 'run')}." if group.unknown else f"{text}."


def total_words(groups: Sequence[GroupEstimate]) -> str:
    """`Expected in all: 12.3 GPU hours, at most 40, and 5.0 hours without GPU; not known for 3 runs.`"""
    parts = []
    for words, chosen in (
        ("on GPUs (GPU hours)", [group for group in groups if group.gpus]),
        ("without GPU", [group for group in groups if not group.gpus]),
    ):
        known = [(group.seconds, group.at_most, max(1, group.gpus)) for group in chosen]
        expected = [seconds * gpus for seconds, _, gpus in known if seconds is not None]
        most = [at_most * gpus for _, at_most, gpus in known if at_most is not None]
        if expected:
            parts.append(f"{_hours(sum(expected))} {words}, at most {_hours(sum(most))}")
    unknown = sum(group.unknown for group in groups if group.part is not JobPart.evaluation)
    if not parts:
        return "Expected in all: not known."
    text = f"Expected in all: {'; '.join(parts)}"
    return f"{text}; not known for {counted(unknown, 'run')}." if unknown else f"{text}."


def _left(expected: Expected, paths: RunPaths) -> Expected:
    """What is left of it where the run goes on from an epoch."""
    status = read_record(paths)
    if not status.epoch or not status.epochs:
        return expected
    done = expected.at_most * min(1.0, status.epoch / status.epochs)
    return Expected(max(0.0, expected.seconds - done), max(0.0, expected.at_most - done), expected.source)


def _steps(config: RefsamConfig, best_epoch: float, steps_per_epoch: float) -> tuple[float, float]:
    """Expected and largest number of training steps."""
    train = config.train
    per_epoch = max(steps_per_epoch, train.min_samples / (train.batch_size * train.accumulate))
    most = most_steps(train, per_epoch)
    if train.early_stopping is None:
        return most, most
    return min(most, epochs_until_stop(best_epoch, train.early_stopping) * per_epoch), most


def _evaluation(config: RefsamConfig, run: FinishedRun) -> float:
    usual = mean(run.evaluation.values()) if run.evaluation else 0.0
    per_image = sum(run.evaluation.get(mode, usual) for mode in config.evaluate.modes)
    return per_image * (config.evaluate.max_images or run.n_test_images)


@cache
def _published() -> Any:
    return read_yaml(PUBLISHED)


def _seconds(time: str) -> int:
    hours, minutes, seconds = map(int, time.split(":"))
    return (hours * 60 + minutes) * 60 + seconds


def _hours(seconds: float) -> str:
    hours = seconds / SECONDS_PER_HOUR
    if seconds < 60:
        return "under a minute"
    if hours < 1:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:.0f} h"
