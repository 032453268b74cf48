"""The parameters of an automatic mode: those with the highest mSA on the validation images."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from elf.evaluation import mean_segmentation_accuracy
from numpy.typing import NDArray

from refsam.configuration.schema import EvaluateConfig
from refsam.records.measurements import DEFAULTS, SMALL, STUDY
from refsam.science.evaluation.automatic import Segmenter
from refsam.science.micro_sam import (
    default_grid_search_values_amg,
    default_grid_search_values_apg,
    default_grid_search_values_instance_segmentation_with_decoder,
)

Values = Mapping[str, Sequence[Any]]
Parameters = dict[str, Any]

_OF_THE_STUDY: dict[str, Callable[[], Values]] = {
    "amg": default_grid_search_values_amg,
    "ais": default_grid_search_values_instance_segmentation_with_decoder,
    "apg": default_grid_search_values_apg,
}
# Those of micro-sam's generators: AutomaticMaskGenerator.generate and the others.
_DEFAULTS: dict[str, Parameters] = {
    "amg": {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95},
    "ais": {
        "center_distance_threshold": 0.5,
        "boundary_distance_threshold": 0.5,
        "distance_smoothing": 1.6,
        "min_size": 0,
    },
    "apg": {
        "center_distance_threshold": 0.5,
        "boundary_distance_threshold": 0.5,
        "min_size": 25,
        "nms_threshold": 0.9,
        "intersection_over_min": False,
    },
}


@dataclass(frozen=True)
class BestParameters:
    """The best parameters of a mode, their mSA on the validation images, and how many were tried."""

    parameters: Parameters
    msa: float
    tried: int


def default_parameters(mode: str) -> Parameters:
    """Those of micro-sam's generators for an automatic mode."""
    return dict(_DEFAULTS[mode])


def grid_values(evaluate: EvaluateConfig, mode: str) -> dict[str, list[Any]]:
    """The values of each parameter that are tried for a mode; one of each where nothing is searched.

    `study` are micro-sam's, which its resource study uses; `small` those of the configuration.
    """
    values: Values = {name: [value] for name, value in _DEFAULTS[mode].items()}
    if evaluate.grid == STUDY:
        values = _OF_THE_STUDY[mode]()
    elif evaluate.grid == SMALL:
        values = {**values, **evaluate.small_grid.get(mode, {})}
    else:
        assert evaluate.grid == DEFAULTS
    return {name: [_plain(value) for value in given] for name, given in values.items()}


def combinations(values: Mapping[str, Sequence[Any]]) -> list[Parameters]:
    """All combinations of the values, ascending, the last parameter fastest.

    Of equally good parameters micro-sam takes the first in this order.
    """
    return [
        dict(zip(values, chosen, strict=True))
        for chosen in product(*(sorted(one) for one in values.values()))
    ]


def search(
    segmenter: Segmenter,
    values: dict[str, list[Any]],
    images: Iterator[tuple[NDArray[Any], NDArray[Any], Any]],
) -> BestParameters:
    """The combination with the highest mean mSA over the images.

    Args:
        values: of each parameter.
        images: (image, labels, embedding) of each validation image.
    """
    tried = combinations(values)
    segmenter.promise(values)
    scores = np.zeros(len(tried))
    number = 0
    for image, labels, embedding in images:
        segmenter.initialize(image, embedding)
        scores += _scores(segmenter, tried, labels)
        number += 1
    scores /= number
    best = int(scores.argmax())
    return BestParameters(tried[best], float(scores[best]), len(tried))


def _scores(segmenter: Segmenter, tried: Sequence[Parameters], labels: NDArray[Any]) -> NDArray[Any]:
    """mSA of each combination on the image that the segmenter has."""
    known: dict[Hashable, float] = {}
    scores = []
    for parameters in tried:
        key = segmenter.sameness(parameters)
        if key not in known:
            segmentation = segmenter.generate(**parameters)
            known[key] = float(mean_segmentation_accuracy(segmentation, labels))
        scores.append(known[key])
    return np.array(scores)


def _plain(value: Any) -> Any:
    """A number of numpy's as JSON takes it."""
    return value.item() if isinstance(value, np.generic) else value
