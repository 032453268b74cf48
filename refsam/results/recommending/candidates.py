"""What may be recommended: settings with what is known of their quality, memory and time, and from where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refsam.results.comparing.settings import Setting

CPU, CUDA = "cpu", "cuda"
DEVICES = {CPU: "main memory", CUDA: "GPU memory"}
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Constraints:
    """What a machine and its owner have.

    Attributes:
        memory_gib: of the device that trains.
        device: CPU or CUDA.
        hours: that a training may take; None: any.
        n_images: annotated images that there are to train on; None: any number.
    """

    memory_gib: float
    device: str
    hours: float | None = None
    n_images: int | None = None

    @property
    def words(self) -> str:
        """`8 GB of GPU memory and 2 hours`."""
        text = f"{self.memory_gib:g} GB of {DEVICES[self.device]}"
        return text if self.hours is None else f"{text} and {self.hours:g} h"


@dataclass(frozen=True)
class Memory:
    """GiB that are enough for a training, and who says so."""

    gib: float
    words: str


@dataclass(frozen=True)
class Time:
    """Seconds that a training takes until its end, and who says so."""

    seconds: float
    words: str


@dataclass(frozen=True)
class Quality:
    """A metric of a setting.

    Attributes:
        mean: over the runs, one for each seed.
        deviation: standard deviation over the runs; None for one.
        low: of the 95 % interval of the mean over test images; None where that is not known.
        high: the other end of it.
        n_runs: how many seeds it is the mean of.
        n_test_images: behind each run.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    n_runs: int
    n_test_images: int | None


@dataclass(frozen=True)
class Candidate:
    """A setting with what is known of it; None for what is not.

    Attributes:
        values: of refsam.results.comparing.settings.AXES; the resource is the one that it is known from.
        fields: of the configuration that tell it apart beside them, such as `train.lr`.
        setting: its runs, where they are one's own.
    """

    values: Mapping[str, Any]
    memory: Memory | None
    time: Time | None
    quality: Quality | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    setting: Setting | None = None

    @property
    def words(self) -> str:
        """`vit_b, lora, 5 images, 10 objects`."""
        named = Setting(self.values, {}, self.fields)
        return named.words(("model", "strategy", "n_images", "n_objects"))

    def fits(self, limits: Constraints) -> bool:
        """Whether it is known to fit into the memory."""
        return self.memory is not None and self.memory.gib <= limits.memory_gib

    def in_time(self, limits: Constraints) -> bool:
        """Whether it is known to end in time, or there is no limit."""
        if limits.hours is None:
            return True
        return self.time is not None and self.time.seconds <= limits.hours * SECONDS_PER_HOUR


def within(candidates: Sequence[Candidate], limits: Constraints) -> list[Candidate]:
    """Those that are known to keep all limits."""
    return [each for each in candidates if each.fits(limits) and each.in_time(limits)]


def what_is_needed(candidates: Sequence[Candidate], limits: Constraints) -> str:
    """One sentence for candidates of which none keeps the limits: what would be needed."""
    place = f"{limits.memory_gib:g} GB of {DEVICES[limits.device]}"
    fitting = [each for each in candidates if each.fits(limits)]
    if not fitting:
        known = [(each.memory.gib, each) for each in candidates if each.memory is not None]
        if not known:
            return (
                f"How much {DEVICES[limits.device]} these settings need is not known; measure it with "
                "refsam fit."
            )
        gib, least = min(known, key=lambda pair: pair[0])
        needed = f"the smallest is {least.words}, which needs {_up(gib)} GB."
        return f"No setting is known to fit into {place}; {needed}"
    timed = [(each.time.seconds, each) for each in fitting if each.time is not None]
    if not timed:
        return (
            f"The settings that fit into {place} have no known training time; omit --hours to choose by "
            "memory alone."
        )
    seconds, shortest = min(timed, key=lambda pair: pair[0])
    return (
        f"No setting that fits into {place} is known to train in {limits.hours:g} h; the fastest is "
        f"{shortest.words}, which takes {_up(seconds / SECONDS_PER_HOUR)} h."
    )


def _up(number: float) -> str:
    """One decimal place, rounded up: with less it would not be enough."""
    return f"{-(-round(number, 6) * 10 // 1) / 10:g}"
