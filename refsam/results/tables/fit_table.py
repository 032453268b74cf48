"""The table of fits: what the study fitted on each resource, and what fits with each step. Needs no torch."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from refsam.configuration.schema import RefsamConfig
from refsam.records.fits import FORECAST, Fit, Largest
from refsam.results.tables.formats import markdown_table
from refsam.system.files import write_text

COLUMNS = (
    *("resource", "memory_gib", "model", "strategy", "n_objects", "settings_from"),
    *("micro_sam_largest", "micro_sam_gib", "micro_sam_step_gib", "micro_sam_seconds"),
    *("refsam_largest", "refsam_gib", "refsam_step_gib", "refsam_seconds"),
    *("object_chunk", "checkpoint_encoder", "checkpoint_decoder"),
    *("simulated", "limited_by", "hardware", "threads", "precision"),
)
HEADINGS = (
    *("resource", "model", "strategy", "objects asked for"),
    *("micro-sam's step", "refsam's step", "measured on"),
)

Row = dict[str, Any]


def rows(fits: Iterable[Fit], settings: Sequence[RefsamConfig] = ()) -> list[Row]:
    """One row for each fit, and one for each setting that was not fitted.

    Args:
        settings: a configuration of each resource; what its file says for a model has a row in any case.
    """
    found = [_row(fit, settings) for fit in fits]
    fitted = {(row["resource"], row["model"], row["strategy"]) for row in found}
    for config in settings:
        for model, setting in config.resource.settings.items():
            if model != "vit_nano" and (config.resource.name, model, setting.peft) not in fitted:
                empty = dict.fromkeys(COLUMNS)
                found.append(
                    {
                        **empty,
                        "resource": config.resource.name,
                        "memory_gib": _memory(config),
                        "model": model,
                        "strategy": setting.peft,
                        "n_objects": setting.n_objects,
                        "settings_from": setting.source,
                    }
                )
    order = [config.resource.name for config in settings]
    return sorted(found, key=lambda row: _position(row, order))


def write_table(table: Sequence[Row], path: Path) -> list[Path]:
    """`path`.csv with all columns and `path`.md for reading; replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table)
    written = [path.with_suffix(".csv"), path.with_suffix(".md")]
    write_text(written[0], text.getvalue())
    write_text(written[1], markdown(table))
    return written


def markdown(table: Sequence[Row]) -> str:
    """The table for a README; simulated rows are marked."""
    return markdown_table(HEADINGS, map(_cells, table))


def _cells(row: Row) -> tuple[str, ...]:
    """In the order of HEADINGS."""
    memory = f" ({row['memory_gib']:g} GB)" if row["memory_gib"] else ""
    source = "" if row["settings_from"] is None else f" ({row['settings_from']})"
    return (
        *(f"{row['resource']}{memory}", row["model"], row["strategy"], f"{row['n_objects']}{source}"),
        *(_largest(row, "micro_sam"), _largest(row, "refsam"), _how(row)),
    )


def _largest(row: Row, way: str) -> str:
    """`10 objects, 14.2 GiB; 5 objects: 9.6 GiB, 38 s`."""
    largest, peak = row[f"{way}_largest"], row[f"{way}_gib"]
    if largest is None:
        return "not measured"
    if largest == 0:
        return "does not fit"
    parts = [f"{largest_text(row, way)} objects, {peak:.1f} GiB"]
    step, seconds = row[f"{way}_step_gib"], row[f"{way}_seconds"]
    if step is not None:
        time = "" if seconds is None else f", {seconds:.0f} s"
        parts.append(f"{row['n_objects']}: {step:.1f} GiB{time}")
    if way == "refsam" and row["object_chunk"] is not None:
        again = [name for name in ("encoder", "decoder") if row[f"checkpoint_{name}"]]
        parts.append(
            f"chunk {row['object_chunk']}" + (f", {' and '.join(again)} checkpointed" if again else "")
        )
    return "; ".join(parts)


def largest_text(row: Row, way: str) -> str:
    """`at least 45` where no more were tried."""
    number = row[f"{way}_largest"]
    return f"at least {number}" if row[f"{way}_open"] else str(number)


def _how(row: Row) -> str:
    if row["hardware"] is None:
        return "–"
    if row["limited_by"] == FORECAST:
        return f"forecast, {row['precision']}"
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    where = f"{row['hardware']}, {threads}, {row['precision']}"
    return f"simulated ({row['limited_by']}) on {where}" if row["simulated"] else where


def _row(fit: Fit, settings: Sequence[RefsamConfig]) -> Row:
    own = next((config for config in settings if config.resource.name == fit.resource), None)
    setting = None if own is None else own.resource.settings.get(fit.setup.architecture)
    of_study = setting is not None and setting.peft == fit.peft and setting.n_objects == fit.n_objects
    row: Row = {
        "resource": fit.resource,
        "memory_gib": fit.memory_gib,
        "model": fit.model,
        "strategy": fit.peft,
        "n_objects": fit.n_objects,
        "settings_from": setting.source if of_study and setting is not None else None,
        "simulated": fit.simulated,
        "limited_by": fit.limited_by,
        "hardware": fit.hardware,
        "threads": fit.threads,
        "precision": fit.precision,
    }
    for name, largest in (("micro_sam", fit.micro_sam), ("refsam", fit.refsam)):
        row |= _way(name, largest, fit.most_objects)
    chosen = fit.refsam
    for name in ("object_chunk", "checkpoint_encoder", "checkpoint_decoder"):
        row[name] = None if chosen is None else getattr(chosen, name)
    return row


def _way(name: str, largest: Largest | None, most: int) -> Row:
    values: Row = {"largest": None, "gib": None, "step_gib": None, "seconds": None, "open": False}
    if largest is not None:
        values |= {
            "largest": largest.n_objects,
            "gib": largest.peak_gib,
            "step_gib": largest.step_peak_gib,
            "seconds": largest.seconds,
            "open": largest.n_objects == most or not largest.complete,
        }
    return {f"{name}_{key}": value for key, value in values.items()}


def _memory(config: RefsamConfig) -> float | None:
    device_memory = config.resource.device_memory_gb
    return config.resource.request.memory_gb if device_memory is None else device_memory


def _position(row: Row, order: Sequence[str]) -> tuple[int, str, str, float]:
    place = order.index(row["resource"]) if row["resource"] in order else len(order)
    return place, row["model"], row["strategy"], row["memory_gib"] or 0.0
