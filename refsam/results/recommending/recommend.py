"""Which setting to use on a machine: the best that was measured, or what is known where nothing was."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from refsam.records.bootstrap import FEW, FEW_WORDS, bootstrap_interval
from refsam.records.fits import Fit
from refsam.records.metrics import Measurement
from refsam.records.paths import Directories
from refsam.results.comparing.compare import Difference, ImageValues, averaged, paired_difference
from refsam.results.comparing.settings import Setting
from refsam.results.folds import SHARED_TRAINING, join_folds
from refsam.results.published import SOURCE
from refsam.results.recommending.candidates import Candidate, Constraints, what_is_needed, within
from refsam.results.recommending.measured import OwnResults, own_results, quality_of
from refsam.results.recommending.published import known_candidates
from refsam.results.recommending.verdict import Verdict, judge
from refsam.results.tables.notes import OTHER_TEST_SETS, split_follows_seed

OWN, PUBLISHED = "own", "published"
_SEED = 0


@dataclass(frozen=True)
class Advice:
    """An answer.

    Attributes:
        source: OWN results, or PUBLISHED, where no quality is known; None where nothing keeps the limits.
        dataset: that own results are of, whether any of them keeps the limits or not.
        mode: of own results, as the metric; None where the answer does not rest on them.
        winner: None where nothing keeps the limits.
        difference: the winner's metric less the runner-up's, paired over test images; None where it is not
            known.
        verdict: whether the winner is better by more than chance; None without a runner-up or its quality.
        notes: what the answer rests on, and how sure it is.
        problems: sentences about damaged or missing records.
    """

    limits: Constraints
    metric: str
    source: str | None
    winner: Candidate | None
    runner_up: Candidate | None
    dataset: str | None = None
    mode: str | None = None
    difference: Difference | None = None
    verdict: Verdict | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def recommend(
    frame: pd.DataFrame | None,
    directories: Directories,
    limits: Constraints,
    fits: Sequence[Fit],
    metric: str = "SA50",
    dataset: str | None = None,
    mode: str | None = None,
) -> Advice:
    """The setting of the best measured quality within the limits; of what is known where nothing is measured.

    Args:
        frame: own results, as refsam.results.collect.join returns them; None where there are none. Settings
            of which folds are missing are left out, and named.
        directories: of their runs.
        fits: of the runs folder, and those that refsam ships.

    Raises:
        ConfigError: for a mode that own results are not of, and for several data sets of which none is
            chosen.
    """
    joined = None if frame is None else join_folds(frame)
    own = None
    if joined is not None:
        own = own_results(joined.frame, directories, limits, fits, metric, dataset, mode)
    if own is not None and (fitting := _one_of_each(within(own.candidates, limits))):
        advice = _by_quality(own, fitting, directories, limits, metric)
    else:
        advice = _by_what_is_known(own, limits, fits, metric, dataset)
    incomplete = [] if joined is None else [f"{sentence}." for sentence in joined.sentences]
    return replace(advice, notes=[*advice.notes, *incomplete])


def _by_what_is_known(
    own: OwnResults | None, limits: Constraints, fits: Sequence[Fit], metric: str, dataset: str | None
) -> Advice:
    """The advice where no own setting keeps the limits."""
    known = known_candidates(limits, fits)
    fitting = within(known, limits)
    if own is None:
        of = "" if dataset is None else f" of {dataset}"
        first = f"You have no results{of}."
    elif own.candidates:
        needed = what_is_needed(own.candidates, limits)
        first = f"None of your settings on {own.dataset} is known to meet the limits. {needed}"
    else:
        first = f"You have no results of {own.dataset} with at most {limits.n_images} images."
    if not fitting:
        candidates = [*known, *(own.candidates if own is not None else [])]
        return Advice(limits, metric, None, None, None, notes=[what_is_needed(candidates, limits)])
    return Advice(
        limits,
        metric,
        PUBLISHED,
        fitting[0],
        fitting[1] if len(fitting) > 1 else None,
        dataset=dataset if own is None else own.dataset,
        notes=[first, *_notes_of_known(fitting)],
    )


def _notes_of_known(fitting: Sequence[Candidate]) -> list[str]:
    settings = "1 setting is" if len(fitting) == 1 else f"{len(fitting)} settings are"
    return [
        f"No quality has been measured: {SOURCE} published times and best epochs, and its quality in "
        "figures only. So the order is not by quality, and larger models are not preferred.",
        f"{settings} known to meet the limits, from the study's times, the resources' tables and refsam fit. "
        "Order: most training images, then shortest known time, then least memory.",
        "Each published time is from one training on Covid-IF; the epoch of early stopping varies widely.",
        "To compare their quality, run several of them and call refsam recommend again.",
    ]


def _by_quality(
    own: OwnResults, fitting: Sequence[Candidate], directories: Directories, limits: Constraints, metric: str
) -> Advice:
    ordered = sorted(fitting, key=_quality_order)
    images = ImageValues(own.frame, directories, metric)
    winner = _with_interval(ordered[0], images, own.mode)
    runner_up = _with_interval(ordered[1], images, own.mode) if len(ordered) > 1 else None
    difference = verdict = None
    notes = [_rests_on(own, fitting, metric)]
    if runner_up is not None:
        difference = _difference(runner_up.setting, winner.setting, images, own.mode)
        verdict = _judge(winner, runner_up, difference, own, metric)
        notes.append(verdict.sentence + ("" if verdict.clear else _faster(winner, runner_up)))
    if difference is not None and difference.low is not None and difference.n_images < FEW:
        notes.append(FEW_WORDS)
    if len(fitting) > 2:
        notes.append(
            f"The best of {len(fitting)} is slightly overestimated: it was selected on the same images."
        )
    if any(each is not None and _runs(each) < 2 for each in (winner, runner_up)):
        notes.append("One seed: the variation between trainings is not known.")
    compared = [each.setting for each in (winner, runner_up) if each is not None and each.setting is not None]
    if any(len(each.run_ids) > len(each.runs) for each in compared):
        notes.append(SHARED_TRAINING)
    if split_follows_seed(own.frame):
        notes.append(OTHER_TEST_SETS)
    notes += _against_initial(own, winner, images, metric)
    if len(own.modes) > 1:
        others = ", ".join(mode for mode in own.modes if mode != own.mode)
        notes.append(f"The answer may differ for another mode: --mode {others}.")
    if own.elsewhere:
        notes.append(f"Left out: settings that were measured on other test images ({own.elsewhere}).")
    return Advice(
        limits,
        metric,
        OWN,
        winner,
        runner_up,
        dataset=own.dataset,
        mode=own.mode,
        difference=difference,
        verdict=verdict,
        notes=notes,
        problems=images.problems,
    )


def _rests_on(own: OwnResults, fitting: Sequence[Candidate], metric: str) -> str:
    runs = sum(len(each.setting.run_ids) for each in own.candidates if each.setting is not None)
    sweeps = sorted({name for text in own.frame["sweep"].dropna() for name in str(text).split(", ")})
    kept = f"{len(fitting)} {'is' if len(fitting) == 1 else 'are'} known to meet the limits."
    return (
        f"Based on {runs} runs of {len(own.candidates)} settings on {own.dataset} (sweep "
        f"{', '.join(sweeps)}), ordered by {own.mode} {metric}; {kept}"
    )


def _faster(winner: Candidate, runner_up: Candidate) -> str:
    """That the runner-up is faster, where it is."""
    if winner.time is None or runner_up.time is None:
        return ""
    share = 100 * runner_up.time.seconds / winner.time.seconds
    return f" The runner-up trains in {share:.0f} % of the time." if share < 100 else ""


def _against_initial(own: OwnResults, winner: Candidate, images: ImageValues, metric: str) -> list[str]:
    """Whether finetuning is better than the model that it started from."""
    same = [
        setting
        for setting in own.initial
        if all(setting.values[axis] == winner.values[axis] for axis in ("model", "weights"))
    ]
    if not same or winner.quality is None:
        return []
    runs = own.frame[own.frame["run_id"].isin(list(same[0].runs.values()))]
    initial = quality_of(runs, metric).mean
    difference = _difference(same[0], winner.setting, images, own.mode)
    sure = difference is not None and difference.excludes_zero
    if winner.quality.mean > initial and sure:
        return [f"The baseline has {initial:.3f}."]
    return [f"The baseline has {initial:.3f}; the results do not show that finetuning improves it."]


def _difference(
    baseline: Setting | None, other: Setting | None, images: ImageValues, mode: str
) -> Difference | None:
    if baseline is None or other is None:
        return None
    measured = Measurement(mode)
    return paired_difference(images.of(baseline).get(measured, {}), images.of(other).get(measured, {}))


def _with_interval(candidate: Candidate, images: ImageValues, mode: str) -> Candidate:
    """The candidate with the interval over test images, of all folds, each averaged over its seeds."""
    if candidate.setting is None or candidate.quality is None or len(candidate.setting.run_ids) < 2:
        return candidate  # a run has its interval in its own record
    values = list(averaged(images.of(candidate.setting).get(Measurement(mode), {}).values()).values())
    low, high = bootstrap_interval(values, _SEED) or (None, None)
    return replace(candidate, quality=replace(candidate.quality, low=low, high=high))


def _judge(
    winner: Candidate, runner_up: Candidate, difference: Difference | None, own: OwnResults, metric: str
) -> Verdict:
    assert winner.quality is not None
    assert runner_up.quality is not None
    values = dict(zip(own.frame["run_id"], own.frame[metric].astype("float64"), strict=True))
    seeds = [
        {} if each.setting is None else {seed: values[run] for seed, run in each.setting.runs.items()}
        for each in (winner, runner_up)
    ]
    return judge(winner.quality, runner_up.quality, difference, (seeds[0], seeds[1]), metric)


def _runs(candidate: Candidate) -> int:
    return candidate.quality.n_runs if candidate.quality is not None else 0


def _one_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One of those that differ in the resource alone, which changes nothing but rounding: the best known."""
    best: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(candidates, key=lambda each: (each.time is None, -_runs(each))):
        values = {axis: value for axis, value in candidate.values.items() if axis != "resource"}
        best.setdefault((repr(values), repr(candidate.fields)), candidate)
    return list(best.values())


def _quality_order(candidate: Candidate) -> tuple[float, float, float]:
    quality = candidate.quality.mean if candidate.quality is not None else 0.0
    seconds = candidate.time.seconds if candidate.time is not None else float("inf")
    return -quality, seconds, candidate.memory.gib if candidate.memory is not None else float("inf")
