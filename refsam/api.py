"""refsam in Python: a run's model in one line. `import refsam` brings these along when they are asked for."""

from pathlib import Path

from refsam.orchestration.operating.chosen_run import choose_run
from refsam.science.prediction import TrainedModel, open_run

__all__ = ["TrainedModel", "load"]


def load(
    target: str | Path,
    metric: str | None = None,
    *,
    mode: str | None = None,
    runs: str | Path | None = None,
    device: str = "auto",
) -> TrainedModel:
    """The best model of a run, or of the best run of a sweep.

        model = refsam.load("runs/vit_b-full-n5-…")
        labels = model.segment(image)

    Args:
        target: the folder of a run or of a sweep; or the name of a sweep, a run id, or a part of one.
        metric: of a sweep: the run with its highest value is taken (SA50).
        mode: of a sweep: the mode of the evaluation that the metric is of, such as `ais` or `box`. None: the
            first that was measured of ais, amg, apg, box, point.
        runs: the runs folder that names are looked up in; None: what REFSAM_RUNS names, else `runs`.
        device: `cpu`, `cuda`, `cuda:1`, …; `auto` takes the GPU where there is one.

    Raises:
        ConfigError: when there is no such run or sweep, or it has no model that can be used.
    """
    return open_run(choose_run(target, metric, mode, runs).paths, device)
