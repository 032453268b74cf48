"""What the rows of single images say together: means, and how sure they are. Numbers only."""

import math
from collections.abc import Sequence

from refsam.records.bootstrap import bootstrap_interval
from refsam.records.metrics import METRICS, SECONDS
from refsam.records.per_image import Row


def summary(rows: Sequence[Row], seed: int) -> Row:
    """Means over the images that have objects, and the bootstrap intervals of the metrics.

    None where there is no such image, or where a metric does not exist for a mode. `n_test_images` counts the
    images that have objects, `n_objects` and `n_predicted` their objects and those that were predicted,
    `seconds_per_image` is the mean of all the seconds of an image.

    Args:
        rows: one for each image, with METRICS, SECONDS, n_objects and n_predicted; NaN for no value.
        seed: of the resampling.
    """
    measured = [row for row in rows if row["n_objects"]]
    values = {name: [row[name] for row in measured if not math.isnan(row[name])] for name in METRICS}
    means = {name: _mean(values[name]) for name in METRICS}
    seconds = {name: _mean([row[name] for row in measured]) for name in SECONDS}
    intervals = {
        name: list(bounds)
        for name, numbers in values.items()
        if (bounds := bootstrap_interval(numbers, seed)) is not None
    }
    return {
        **means,
        "intervals": intervals,
        "n_test_images": len(measured),
        "n_objects": sum(row["n_objects"] for row in measured),
        "n_predicted": sum(row["n_predicted"] for row in measured),
        "seconds_per_image": _mean([sum(row[name] for name in SECONDS) for row in measured]),
        **seconds,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
