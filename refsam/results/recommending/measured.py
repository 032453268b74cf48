"""What own results say of settings that were measured alike: quality over seeds, memory, time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError, nearest
from refsam.records.fits import SAFETY_MARGIN, Fit, Setup, same_setup
from refsam.records.paths import Directories
from refsam.results.collect import first_prompt
from refsam.results.comparing.settings import Setting, read_config, settings_of
from refsam.results.folds import runs_of
from refsam.results.recommending.candidates import CPU, CUDA, Candidate, Constraints, Memory, Quality, Time
from refsam.results.recommending.published import BATCH, PATCH, fit_memory, table_memory
from refsam.results.tables.table import ordered_modes


@dataclass(frozen=True)
class OwnResults:
    """The settings of own runs that were measured on the same test images in the same mode.

    Attributes:
        frame: the rows in this mode.
        candidates: what was trained.
        initial: the initial models.
        modes: all modes that there are.
        elsewhere: how many settings were left out because they were measured on other images.
    """

    frame: pd.DataFrame
    dataset: str
    mode: str
    candidates: list[Candidate]
    initial: list[Setting]
    modes: list[str]
    elsewhere: int


def own_results(
    frame: pd.DataFrame,
    directories: Directories,
    limits: Constraints,
    fits: Sequence[Fit],
    metric: str,
    dataset: str | None = None,
    mode: str | None = None,
) -> OwnResults | None:
    """The own settings with this metric; None where no run of the data set is completed.

    Args:
        frame: as refsam.results.collect.join returns it, with folds joined (refsam.results.folds).
        fits: of the runs folder and those that refsam ships.
        dataset: None: the one that there are results of.
        mode: None: the first that there is of box, point, others.

    Raises:
        ConfigError: where there are several data sets and none is chosen, and for a mode without such a
            metric.
    """
    rows = first_prompt(frame[(frame["status"] == "completed") & frame["mode"].notna()])
    names = sorted(set(rows["dataset"].dropna()))
    if dataset is None and len(names) > 1:
        there = ", ".join(names)
        raise ConfigError(f"--dataset must be given: there are results of {there}")
    chosen = dataset or next(iter(names), None)
    rows = rows[rows["dataset"] == chosen]
    if chosen is None or rows.empty:
        return None
    rows = rows[rows[metric].notna()]
    modes = ordered_modes(rows)
    measured = mode or next(iter(modes), None)
    if measured is None or measured not in modes:
        hint = nearest(measured or "", modes)
        there = ", ".join(modes) or "no mode"
        raise ConfigError(
            f"--mode: {measured or 'nothing'!r} was given{hint}; {metric} of {chosen} was measured in {there}"
        )
    rows = rows[rows["mode"] == measured]
    places = rows.groupby("run_id", sort=False).indices
    settings, elsewhere = _measured_alike(settings_of(rows))
    return OwnResults(
        frame=rows,
        dataset=chosen,
        mode=measured,
        candidates=[
            _candidate(
                setting,
                rows.iloc[[place for run in setting.runs.values() for place in places[run]]],
                directories,
                limits,
                fits,
                metric,
            )
            for setting in settings
            if not setting.is_baseline
            and (limits.n_images is None or setting.values["n_images"] <= limits.n_images)
        ],
        initial=[setting for setting in settings if setting.is_baseline],
        modes=modes,
        elsewhere=elsewhere,
    )


def quality_of(runs: pd.DataFrame, metric: str) -> Quality:
    """The metric of a setting over its runs, which have a row each: that of one mode."""
    values = runs[metric].astype("float64")
    several = len(values) > 1
    low, high, images = (runs[name].iloc[0] for name in (f"{metric}_low", f"{metric}_high", "n_test_images"))
    return Quality(
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)) if several else None,
        low=None if several or pd.isna(low) else float(low),
        high=None if several or pd.isna(high) else float(high),
        n_runs=len(values),
        n_test_images=None if pd.isna(images) else int(images),
    )


def _measured_alike(settings: list[Setting]) -> tuple[list[Setting], int]:
    """The settings of the largest group that was measured on the same images; how many others there are."""
    groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
    for setting in settings:
        key = tuple(
            (name, repr(value))
            for name, value in setting.fields.items()
            if name.startswith(("dataset.", "evaluate."))
        )
        groups.setdefault(key, []).append(setting)
    largest = max(groups.values(), key=len, default=[])
    return largest, len(settings) - len(largest)


def _candidate(
    setting: Setting,
    runs: pd.DataFrame,
    directories: Directories,
    limits: Constraints,
    fits: Sequence[Fit],
    metric: str,
) -> Candidate:
    there = runs[runs["device"].map(_kind) == limits.device]
    measured = _measured_memory(there)
    memory = measured
    if measured is None or measured.gib > limits.memory_gib:
        config = read_config(directories[setting.run_ids[0]])
        others = _other_memory(setting, config, runs, limits, fits) if config is not None else None
        known = [each for each in (measured, others) if each is not None]
        memory = min(known, key=lambda each: each.gib, default=None)
    return Candidate(
        values=setting.values,
        memory=memory,
        time=_time(there, saves_more=measured is not None and memory is not measured),
        quality=quality_of(runs, metric),
        fields=setting.fields,
        setting=setting,
    )


def _measured_memory(runs: pd.DataFrame) -> Memory | None:
    peaks = runs.dropna(subset=["peak_memory_gib"]).sort_values("peak_memory_gib")
    if peaks.empty:
        return None
    peak, hardware = float(peaks["peak_memory_gib"].iloc[-1]), peaks["hardware"].iloc[-1]
    return Memory(
        peak / (1 - SAFETY_MARGIN), f"peak of the training: {peak:.1f} GiB on {hardware}; 10 % kept free"
    )


def _other_memory(
    setting: Setting, config: RefsamConfig, runs: pd.DataFrame, limits: Constraints, fits: Sequence[Fit]
) -> Memory | None:
    """What fits and the resources' tables say: with less memory refsam's step saves more."""
    train, n_objects = config.train, int(setting.values["n_objects"] or 0)
    arithmetic = str(runs["arithmetic"].iloc[0])
    setup = Setup.of(config, limits.device)
    of_fits = fit_memory([fit for fit in fits if same_setup(fit, setup, arithmetic)], n_objects, train.engine)
    of_table = None
    if (tuple(train.patch_shape), train.batch_size) == (PATCH, BATCH):
        of_table = table_memory(config.model.architecture, config.peft.name, n_objects, limits.device)
    known = [each for each in (of_fits, of_table) if each is not None]
    return min(known, key=lambda each: each.gib, default=None)


def _time(runs: pd.DataFrame, saves_more: bool) -> Time | None:
    times = runs.dropna(subset=["seconds_total"]).sort_values("seconds_total")
    if times.empty:
        return None
    seconds, hardware = float(times["seconds_total"].iloc[-1]), times["hardware"].iloc[-1]
    what = "trainings" if len(runs_of(times["run_id"].iloc[-1])) == 1 else "means over folds"
    which = f"the longest of {len(times)} {what}," if len(times) > 1 else "measured"
    if len(times) == 1 and what != "trainings":
        which = f"the mean of {len(runs_of(times['run_id'].iloc[0]))} folds,"
    words = f"{which} on {hardware}; without the evaluation"
    if saves_more:
        words += "; slower with less memory, which needs more recomputation"
    return Time(seconds, words)


def _kind(device: Any) -> str:
    return CUDA if str(device).startswith(CUDA) else CPU
