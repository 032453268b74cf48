"""What an evaluation is asked to measure, and what of it a record does not have yet. Knows no model."""

from collections.abc import Sequence
from dataclasses import replace

from refsam.configuration.schema import EvaluateConfig
from refsam.records.metrics import Measurement, MetricsRow, measurement

PROMPTED = ("point", "box")  # modes with a prompt for each object, which can be corrected in rounds
AUTOMATIC = ("amg", "ais", "apg")  # modes that find the objects themselves
NO_PROMPT = "no_prompt"  # one mask of an image without any prompt, for the union of its objects
MODES = (*PROMPTED, *AUTOMATIC, NO_PROMPT)


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

    That is the case where predictions are to be saved and were not, and where the parameters of an automatic
    mode are to be searched among other values.
    """
    recorded = {measurement(row) for row in rows if _serves(evaluate, row)}
    return [wanted for wanted in asked(evaluate) if wanted not in recorded]


def extended(frozen: EvaluateConfig, wanted: EvaluateConfig) -> EvaluateConfig:
    """What was frozen, and what is asked for beyond it. What belongs to the identity of a run stays."""
    return replace(
        frozen,
        modes=[*frozen.modes, *(mode for mode in wanted.modes if mode not in frozen.modes)],
        rounds=max(frozen.rounds, wanted.rounds),
        mask_input=[*frozen.mask_input, *(one for one in wanted.mask_input if one not in frozen.mask_input)],
        save_predictions=frozen.save_predictions or wanted.save_predictions,
    )


def _serves(evaluate: EvaluateConfig, row: MetricsRow) -> bool:
    return not evaluate.save_predictions or bool(row.get("predictions_saved"))
