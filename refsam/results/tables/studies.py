"""The tables of the three studies, ready-made: the same columns as published."""

from collections.abc import Callable, Mapping

import pandas as pd

from refsam.records.metrics import QLORA_SAM_METRICS
from refsam.results.collect import BASELINE, first_prompt
from refsam.results.fields import telling_apart
from refsam.results.tables.notes import notes
from refsam.results.tables.wide import (
    Cell,
    WideTable,
    axis_text,
    cell_of,
    has_several,
    ordered_values,
    parts_by,
    refuse_mixtures,
    time_text,
    value_text,
    with_baselines_everywhere,
    with_best,
)

_ONCE = ("mode", "round", "mask_input")  # what a run has once is of none of them
_RESOURCE_AXES = ("resource", "strategy", "model")
_PUBLISHED_BY = ("dataset", *_RESOURCE_AXES, "n_images")
_UNITS: Mapping[str, tuple[str, float]] = {
    "trainable million": ("trainable_parameters", 1e-6),
    "memory GiB": ("peak_memory_gib", 1.0),
    "training min": ("seconds_total", 1 / 60),
    "mIoU %": ("mIoU", 100.0),
    "mF1 %": ("mF1", 100.0),
    "mIoU_qlora_sam %": ("mIoU_qlora_sam", 100.0),
    "mF1_qlora_sam %": ("mF1_qlora_sam", 100.0),
    "inference ms": ("seconds_per_image", 1000.0),
}


def resource_study(frame: pd.DataFrame, published: pd.DataFrame | None = None) -> WideTable:
    """Best epoch (from 0) and training time until its end (h:mm:ss), per resource, strategy, model and number
    of training images; means where there are several seeds.

    Args:
        published: runs whose values stand beside those that were measured with the same data set, resource,
            strategy, model and number of images, with the differences (measured less published).
    """
    runs = frame[(frame["strategy"] != BASELINE) & frame["best_epoch"].notna()].drop_duplicates("run_id")
    axes = (*_telling_apart(runs, (*_RESOURCE_AXES, "n_images")), *_RESOURCE_AXES, *telling_apart(runs))
    refuse_mixtures(runs, {*axes, "n_images", *_ONCE})
    groups = parts_by(runs, axes)
    counts = sorted({int(count) for count in runs["n_images"]})
    cells: list[list[Cell | None]] = []
    for part in groups.values():
        line: list[Cell | None] = []
        for count in counts:
            own = part[part["n_images"] == count]
            line += [_epoch_and_time(own)] if published is None else _beside(own, published)
        cells.append(line)
    kinds = [()] if published is None else [("measured",), ("published",), ("difference",)]
    columns = [(f"{count} image{'' if count == 1 else 's'}", *kind) for count in counts for kind in kinds]
    return WideTable(
        title="Best epoch and training time until then (h:mm:ss)",
        row_axes=axes,
        rows=[tuple(map(axis_text, row)) for row in groups],
        columns=columns,
        metrics=["best_epoch"] * len(columns),
        cells=cells,
        run_ids=list(runs["run_id"]),
    )


def peft_study(frame: pd.DataFrame) -> WideTable:
    """Trainable parameters, memory, time and SA50 of each mode, per model, strategy and number of images."""
    modes = ordered_values(first_prompt(frame), ("mode",))
    quality = [(str(mode), "SA50") for (mode,) in modes if mode is not None]
    names = ["trainable million", "memory GiB", "training min"]
    return _methods(
        frame, ("model", "strategy", "n_images"), names, quality, "Parameters, memory, time, SA50"
    )


def hugging_face_study(frame: pd.DataFrame) -> WideTable:
    """mIoU and mF1 in percent and milliseconds of inference, per model, strategy and mode.

    Beside our metrics those of the study's script, where evaluate.metrics asked for them.
    """
    measured = [name for name in QLORA_SAM_METRICS if frame[name].notna().any()]
    names = ["mIoU %", "mF1 %", *(f"{name} %" for name in measured), "inference ms"]
    return _methods(frame, ("model", "strategy", "mode"), names, [], "mIoU, mF1 and time of inference")


STUDIES: Mapping[str, Callable[[pd.DataFrame], WideTable]] = {
    "resource": resource_study,
    "peft": peft_study,
    "hugging_face": hugging_face_study,
}


def _epoch_and_time(runs: pd.DataFrame) -> Cell | None:
    if runs.empty:
        return None
    epoch, seconds = float(runs["best_epoch"].mean()), float(runs["seconds_to_best"].mean())
    text = f"{value_text(epoch, 'best_epoch')}, {time_text(seconds)}"
    return Cell(seconds, None, len(runs), text=text)


def _beside(own: pd.DataFrame, published: pd.DataFrame) -> list[Cell | None]:
    """What was measured, what is published of it, and the difference."""
    measured = _epoch_and_time(own)
    if measured is None:
        return [None, None, None]
    theirs = published
    for axis in _PUBLISHED_BY:
        theirs = theirs[theirs[axis] == own[axis].iloc[0]]
    other = _epoch_and_time(theirs)
    if other is None:
        return [measured, None, None]
    epochs = float(own["best_epoch"].mean() - theirs["best_epoch"].mean())
    seconds = measured.mean - other.mean
    text = f"{epochs:+g}, {'-' if seconds < 0 else '+'}{time_text(abs(seconds))}"
    return [measured, other, Cell(seconds, None, measured.n, text=text)]


def _methods(
    frame: pd.DataFrame,
    axes: tuple[str, ...],
    names: list[str],
    quality: list[tuple[str, str]],
    title: str,
) -> WideTable:
    """A row per method, a column per quantity; the best of a column is marked."""
    measured = first_prompt(frame)
    measured = measured[measured["mode"].notna()]
    further = _telling_apart(measured, axes)
    places = [axis for axis in further if axis in ("dataset", "resource")]
    axes = (*places, *axes, *(axis for axis in further if axis not in places), *telling_apart(measured))
    refuse_mixtures(measured, {*axes, "mode"})
    if "resource" in axes:
        measured = with_baselines_everywhere(measured)
    rows = ordered_values(measured, axes)
    columns: list[list[Cell | None]] = [[] for _ in (*names, *quality)]
    groups = parts_by(measured, axes)
    for part in (groups[row] for row in rows):
        for number, name in enumerate(names):
            source, factor = _UNITS[name]
            values = part if "mode" in axes else part.drop_duplicates("run_id")
            columns[number].append(cell_of(values[source] * factor))
        for number, (mode, metric) in enumerate(quality, start=len(names)):
            columns[number].append(cell_of(part.loc[part["mode"] == mode, metric]))
    metrics = [*names, *(metric for _, metric in quality)]
    columns = [with_best(column, metric) for column, metric in zip(columns, metrics, strict=True)]
    return WideTable(
        title=title,
        row_axes=axes,
        rows=[tuple(map(axis_text, row)) for row in rows],
        columns=[*((name,) for name in names), *((f"{mode} {metric}",) for mode, metric in quality)],
        metrics=metrics,
        cells=[list(line) for line in zip(*columns, strict=True)] if rows else [],
        run_ids=list(dict.fromkeys(measured["run_id"].dropna())),
        notes=notes(measured, any(has_several([column]) for column in columns)),
    )


def _telling_apart(frame: pd.DataFrame, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Further axes, without which a row would mix data sets, resources, weights, images or objects."""
    trained = frame[frame["strategy"] != BASELINE]
    rows = trained.groupby(list(axes), dropna=False)
    return tuple(
        axis
        for axis in ("dataset", "resource", "weights", "n_images", "n_objects")
        if axis not in axes and (rows[axis].nunique() > 1).any()
    )
