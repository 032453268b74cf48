"""What an evaluation is asked to measure, and what of it a record does not have yet. Knows no model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from refsam.configuration.schema import EvaluateConfig
from refsam.records.metrics import Measurement, MetricsRow, measurement

PROMPTED = ("point", "box")  # modes with a prompt for each object, which can be corrected in rounds
AUTOMATIC = ("amg", "ais", "apg")  # modes that find the objects themselves
NOTE = "note"  # of a row: why a mode could not be measured
NO_PROMPT = "no_prompt"  # one mask of an image without any prompt, for the union of its objects
MODES = (*PROMPTED, *AUTOMATIC, NO_PROMPT)

# What can be asked for beyond what a run was frozen with; everything else is what its results depend on.
EXTENDABLE = (
    *("modes", "rounds", "mask_input", "grid", "small_grid", "points_per_side", "batch_size"),
    *("save_predictions", "metrics", "pictures", "where"),
)

# Where the parameters of the automatic modes come from: searched among the values of the resource study,
# among those of the configuration, or micro-sam's defaults.
STUDY, SMALL, DEFAULTS = "study", "small", "defaults"
GRIDS = (STUDY, SMALL, DEFAULTS)


# The parameters of each automatic mode that can be searched.
PARAMETERS = {
    "amg": ("pred_iou_thresh", "stability_score_thresh"),
    "ais": ("center_distance_threshold", "boundary_distance_threshold", "distance_smoothing", "min_size"),
    "apg": (
        *("center_distance_threshold", "boundary_distance_threshold", "min_size", "nms_threshold"),
        "intersection_over_min",
    ),
}


def is_grid(given: dict[str, Any]) -> bool:
    """Whether this is lists of values for parameters of automatic modes, and nothing else."""
    return all(
        mode in PARAMETERS
        and isinstance(values, dict)
        and all(
            name in PARAMETERS[mode]
            and isinstance(choices, list)
            and len(choices) > 0
            and all(isinstance(choice, int | float) for choice in choices)
            for name, choices in values.items()
        )
        for mode, values in given.items()
    )


def asked(evaluate: EvaluateConfig) -> list[Measurement]:
    """All that the configuration asks for: a mode's first prompt, then its rounds without and with masks."""
    wanted = []
    for mode in evaluate.modes:
        wanted.append(Measurement(mode))
        if mode in PROMPTED:
            wanted += [
                Measurement(mode, number, with_mask)
                for with_mask in evaluate.mask_input
                for number in range(1, evaluate.rounds + 1)
            ]
    return wanted


def missing(evaluate: EvaluateConfig, rows: Sequence[MetricsRow]) -> list[Measurement]:
    """What of `asked` is not among the rows of a metrics.json, or only without something asked for since.

    That is the case where predictions are to be saved, pictures to be drawn or further metrics to be measured
    and were not, and where the parameters of an automatic mode are to be searched among other values.
    """
    recorded = {measurement(row) for row in rows if _serves(evaluate, row)}
    return [wanted for wanted in asked(evaluate) if wanted not in recorded]


def extended(frozen: EvaluateConfig, wanted: EvaluateConfig) -> EvaluateConfig:
    """What was frozen, and what is asked for beyond it. What belongs to the identity of a run stays."""
    return replace(
        frozen,
        modes=[*frozen.modes, *(mode for mode in wanted.modes if mode not in frozen.modes)],
        rounds=max(frozen.rounds, wanted.rounds),
        batch_size=wanted.batch_size,
        mask_input=[*frozen.mask_input, *(one for one in wanted.mask_input if one not in frozen.mask_input)],
        grid=wanted.grid,
        small_grid=wanted.small_grid,
        points_per_side=wanted.points_per_side,
        metrics=wanted.metrics or frozen.metrics,
        pictures=max(frozen.pictures, wanted.pictures),
        save_predictions=frozen.save_predictions or wanted.save_predictions,
        where=wanted.where,
        resource=wanted.resource,
    )


def settings(evaluate: EvaluateConfig, mode: str) -> dict[str, Any]:
    """What the result of an automatic mode depends on beside the model; empty for the others."""
    if mode not in AUTOMATIC:
        return {}
    values: dict[str, Any] = {"grid": evaluate.grid}
    if evaluate.grid == SMALL:
        values["values"] = evaluate.small_grid.get(mode, {})
    if mode == "amg":
        values["points_per_side"] = evaluate.points_per_side
    return values


def _serves(evaluate: EvaluateConfig, row: MetricsRow) -> bool:
    parameters = row.get("parameters")
    if parameters is not None and parameters.get("settings") != settings(evaluate, row["mode"]):
        return False
    if NOTE in row:
        return True
    if evaluate.metrics not in (None, row.get("metrics")):
        return False
    drawn = row.get("pictures", 0) >= evaluate.pictures or row["round"] > 0
    return drawn and (not evaluate.save_predictions or bool(row.get("predictions_saved")))
