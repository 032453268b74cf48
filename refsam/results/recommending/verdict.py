"""Whether the better of two settings is better by more than chance: over test images, and over seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from refsam.configuration.split import LEAST_TEST_IMAGES
from refsam.records.bootstrap import CONFIDENCE
from refsam.results.comparing.compare import Difference
from refsam.results.recommending.candidates import Quality

_DIGITS = 9  # of differences of means of the same numbers


@dataclass(frozen=True)
class Verdict:
    """How sure it is that the first of two settings is better.

    Attributes:
        clear: by all that is known, images and seeds; None where nothing is known, or of too few images.
        p_over_seeds: of a t-test, two-sided; None with less than two seeds of either.
        words: what it rests on.
    """

    clear: bool | None
    p_over_seeds: float | None
    words: str

    @property
    def sentence(self) -> str:
        return f"{'The winner is better' if self.clear else 'No clear winner'}: {self.words}."


def judge(
    better: Quality,
    other: Quality,
    difference: Difference | None,
    seeds: tuple[Mapping[int, float], Mapping[int, float]],
    metric: str,
) -> Verdict:
    """The verdict on two settings.

    Args:
        difference: of the better to the other, paired over test images; None where that is not known, and
            then the intervals of the two are compared.
        seeds: the metric of both by seed. Seeds that both have are paired: they train and test on the same
            images.
    """
    counts = [each.n_test_images for each in (better, other) if each.n_test_images is not None]
    counts += [difference.n_images] if difference is not None else []
    if counts and min(counts) < LEAST_TEST_IMAGES:
        images = "1 test image is" if min(counts) == 1 else f"{min(counts)} test images are"
        return Verdict(None, None, f"{images} too few to estimate the variation between images")
    found: list[bool] = []
    said: list[str] = []
    if difference is not None and difference.low is not None and difference.high is not None:
        found.append(difference.low > 0)
        said.append(
            f"{metric} differs by {difference.difference:+.3f} (95 % interval {difference.low:+.3f} to "
            f"{difference.high:+.3f}, paired over {difference.n_images} test images)"
        )
    elif better.low is not None and other.high is not None:
        found.append(better.low > other.high)
        said.append(f"the intervals of the two {'do not overlap' if found[-1] else 'overlap'}")
    p = _over_seeds(*seeds)
    if p is not None:
        found.append(p < 1 - CONFIDENCE)
        said.append(f"over seeds p = {p:.2g} (t-test)")
    clear = all(found) if found else None
    return Verdict(clear, p, ", ".join(said) or "the uncertainty of the values is not known")


def _over_seeds(better: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    from scipy.stats import ttest_1samp, ttest_ind

    differences = [round(value - other[seed], _DIGITS) for seed, value in better.items() if seed in other]
    if len(differences) >= 2:
        if stdev(differences) == 0:  # no test for what does not vary
            return 1.0 if fmean(differences) == 0 else 0.0
        return float(ttest_1samp(differences, 0).pvalue)
    if min(len(better), len(other)) < 2 or stdev(better.values()) + stdev(other.values()) == 0:
        return None
    return float(ttest_ind(list(better.values()), list(other.values()), equal_var=False).pvalue)
