"""Differences between settings, paired over test images: how large they are, and how sure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from refsam.configuration.split import LEAST_TEST_IMAGES
from refsam.errors import ConfigError, nearest
from refsam.records.bootstrap import bootstrap_interval
from refsam.records.metrics import METRICS, Measurement
from refsam.records.paths import Directories
from refsam.records.per_image import read_values
from refsam.results.comparing.settings import Setting, settings_of
from refsam.results.figures.page import MODES
from refsam.results.folds import runs_of
from refsam.results.tables.notes import split_follows_seed

_SEED = 0  # of the resampling: the same records give the same intervals
_DIGITS = 9
_SAME = 10**-_DIGITS  # of means of the same numbers, added in another order

# seed: image: value
Values = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Difference:
    """The mean difference of two settings over the test images that both have.

    Attributes:
        baseline: mean over these images.
        mean: of the other setting, over the same.
        difference: `mean` less `baseline`.
        low: lower bound of the 95 % bootstrap interval over images; None for less than LEAST_TEST_IMAGES.
        high: upper bound.
        p: of Wilcoxon's signed-rank test over images, two-sided; None for less than LEAST_TEST_IMAGES.
        p_holm: the same, adjusted for all comparisons that were made together.
        n_images: that both have.
        n_left_out: images that only one of the two has.
        seeds: that were averaged, each image over those that both settings have.
    """

    baseline: float
    mean: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    n_images: int
    n_left_out: int
    seeds: tuple[int, ...]
    p_holm: float | None = None

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the interval lies on one side of 0; None where there is none."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """One setting against the baseline in one mode."""

    setting: Setting
    measured: Measurement
    difference: Difference


@dataclass(frozen=True)
class Comparisons:
    """All settings against one, by mode.

    Attributes:
        left_out: sentences about settings that nothing can be compared of.
        problems: sentences about damaged or missing records.
        other_test_sets: whether other seeds were tested on other images.
    """

    metric: str
    baseline: Setting
    rows: list[Comparison]
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    other_test_sets: bool = False

    @property
    def run_ids(self) -> list[str]:
        """All runs behind it, the baseline's first."""
        ids = [*self.baseline.run_ids, *(run for row in self.rows for run in row.setting.run_ids)]
        return list(dict.fromkeys(ids))


def compare(
    baseline: Setting, frame: pd.DataFrame, others: pd.DataFrame, directories: Directories, metric: str
) -> Comparisons:
    """Every setting of `others` against the baseline, in each mode that both have.

    Args:
        frame: rows of the sweep (refsam.results.collect.collect) in the modes and rounds that are compared,
            with folds joined (refsam.results.folds).
        others: those of them whose settings are compared.
        directories: of the runs.
        metric: one of refsam.records.metrics.METRICS.
    """
    reader = ImageValues(frame, directories, metric)
    reference = reader.of(baseline)
    rows: list[Comparison] = []
    left_out: list[str] = []
    for setting in settings_of(others):
        setting = setting.without(baseline.run_ids)
        if not setting.runs:
            continue
        compared = [
            Comparison(setting, measured, difference)
            for measured, values in reader.of(setting).items()
            if (difference := paired_difference(reference.get(measured, {}), values)) is not None
        ]
        if not compared:
            left_out.append(f"{setting.words()}: no test image and mode in common with the baseline")
        rows += compared
    rows.sort(key=lambda row: (_place(row.measured.mode), row.measured))
    follows = split_follows_seed(frame)
    return Comparisons(metric, baseline, _with_holm(rows), left_out, reader.problems, follows)


def check_metric(metric: str) -> None:
    """Raises ConfigError for what is not measured on single images."""
    if metric not in METRICS:
        hint = nearest(metric, METRICS)
        raise ConfigError(f"--metric must be one of {', '.join(METRICS)}, got {metric!r}{hint}")


class ImageValues:
    """One metric of each test image of settings, as their runs' per_image.csv have it.

    Attributes:
        problems: sentences about files that are damaged, missing, or not those of the run's metrics.
    """

    def __init__(self, frame: pd.DataFrame, directories: Directories, metric: str) -> None:
        self._directories, self._metric = directories, metric
        self._means: dict[tuple[str, Measurement], float] = {}
        rows = frame.loc[frame["mode"].notna() & frame[metric].notna()]
        first = rows[["round", "mask_input"]].fillna({"round": 0, "mask_input": False})
        values = (rows["run_id"], rows["mode"], first["round"], first["mask_input"], rows[metric])
        for run, mode, number, mask, mean in zip(*values, strict=True):
            self._means[str(run), Measurement(str(mode), int(number), bool(mask))] = float(mean)
        self._measured: dict[str, list[Measurement]] = {}
        for run, measured in self._means:
            self._measured.setdefault(run, []).append(measured)
        self._known: dict[str, dict[Measurement, dict[str, float]]] = {}
        self.problems: list[str] = []

    def of(self, setting: Setting) -> dict[Measurement, dict[int, dict[str, float]]]:
        """Values by what was measured, seed and image; without what the frame has no row of."""
        found: dict[Measurement, dict[int, dict[str, float]]] = {}
        for seed, run in setting.runs.items():
            for measured, values in self._of_run(run).items():
                found.setdefault(measured, {})[seed] = values
        return found

    def _of_run(self, run: str) -> dict[Measurement, dict[str, float]]:
        if run not in self._known:
            self._known[run] = self._read(run)
        return self._known[run]

    def _read(self, run: str) -> dict[Measurement, dict[str, float]]:
        """Of a run, or of all folds: each image is tested in one of them."""
        values: dict[Measurement, dict[str, float]] = {}
        for each in runs_of(run):
            path = self._directories[each].per_image
            try:
                for measured, of_run in read_values(path, self._metric).items():
                    values.setdefault(measured, {}).update(of_run)
            except FileNotFoundError:
                self.problems.append(f"{path} is missing, so run {each} cannot be compared")
                return {}
            except ValueError as error:
                self.problems.append(str(error))
                return {}
        kept = {}
        for measured in self._measured.get(run, []):
            images = values.get(measured, {})
            mean = math.fsum(images.values()) / len(images) if images else math.nan
            if abs(mean - self._means[run, measured]) <= _SAME:
                kept[measured] = images
            else:
                self.problems.append(
                    f"{path} does not have the images that the run's {measured.words} {self._metric} is the "
                    "mean of, so it is left out"
                )
        return kept


def paired_difference(baseline: Values, other: Values) -> Difference | None:
    """The difference of two settings in one mode; None where they have no image in common.

    An image counts once. Where both have several seeds, its difference is the mean over the seeds that both
    have measured it with: the same seed trains on the same images and tests on the same. Where they have no
    seed in common, it is averaged over the seeds of each before the two are compared. The interval is a
    percentile bootstrap over images; that another training would give other values is not in it.
    """
    seeds = tuple(seed for seed in baseline if seed in other)
    pairs = [(baseline[seed], other[seed]) for seed in seeds]
    if not seeds:
        seeds = tuple(other)
        pairs = [(averaged(baseline.values()), averaged(other.values()))]
    first = averaged({image: one[image] for image in one if image in two} for one, two in pairs)
    second = averaged({image: two[image] for image in one if image in two} for one, two in pairs)
    if not first:
        return None
    images = {image for pair in pairs for values in pair for image in values}
    of_baseline, of_other = np.asarray(list(first.values())), np.asarray(list(second.values()))
    differences = (of_other - of_baseline).tolist()
    low, high = bootstrap_interval(differences, _SEED) or (None, None)
    return Difference(
        baseline=float(of_baseline.mean()),
        mean=float(of_other.mean()),
        difference=math.fsum(differences) / len(differences),
        low=low,
        high=high,
        p=_wilcoxon(differences),
        n_images=len(first),
        n_left_out=len(images) - len(first),
        seeds=seeds,
    )


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979, Scandinavian Journal of Statistics 6): p-values of which those
    below a level are rejected together with no more than that chance of any false rejection.
    """
    adjusted = [0.0] * len(probabilities)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(probabilities)), key=lambda place: probabilities[place])):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[place]))
        adjusted[place] = largest
    return adjusted


def _place(mode: str) -> int:
    return MODES.index(mode) if mode in MODES else len(MODES)


def _with_holm(rows: list[Comparison]) -> list[Comparison]:
    tested = [place for place, row in enumerate(rows) if row.difference.p is not None]
    adjusted = holm([p for place in tested if (p := rows[place].difference.p) is not None])
    found = list(rows)
    for place, value in zip(tested, adjusted, strict=True):
        found[place] = replace(rows[place], difference=replace(rows[place].difference, p_holm=value))
    return found


def _wilcoxon(differences: list[float]) -> float | None:
    if len(differences) < LEAST_TEST_IMAGES:
        return None
    # Differences of fractions that are equal are so but for their last digits; ranks would tell them apart.
    rounded = [round(difference, _DIGITS) for difference in differences]
    if not any(rounded):
        return 1.0  # scipy has nothing to rank
    from scipy.stats import wilcoxon

    return float(wilcoxon(rounded).pvalue)


def averaged(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The value of each image, averaged over the seeds that have it."""
    of_image: dict[str, list[float]] = {}
    for of_seed in values:
        for image, value in of_seed.items():
            of_image.setdefault(image, []).append(value)
    return {image: math.fsum(found) / len(found) for image, found in of_image.items()}
