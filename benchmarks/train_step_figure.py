"""The figure of benchmarks.train_step: seconds of all cores and memory over the number of objects.

`python -m benchmarks.train_step_figure NAME` draws it again from benchmarks/results/NAME.csv.
"""

import sys
from typing import Any

from benchmarks.rows import read_csv, save_figure

ENGINES = {"micro_sam": ("micro-sam's step", "0.45", "s"), "refsam": ("refsam's step", "tab:blue", "o")}
MEASURED = {
    "cpu_seconds": ("seconds of all cores per step", 1.0),
    "above_base_mib": ("GiB above what stands before", 1024.0),
}


def save_steps(name: str) -> None:
    """Replace benchmarks/results/`name`.png: a column for each model and strategy, a line for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_csv(name)
    columns = list(dict.fromkeys(panel_of(row) for row in rows))
    figure, axes = pyplot.subplots(
        2, len(columns), figsize=(2.6 * len(columns) + 2, 6), sharex=True, sharey="row", squeeze=False
    )
    for index, column in enumerate(columns):
        inside = [row for row in rows if panel_of(row) == column]
        for axis, (quantity, (_, unit)) in zip(axes[:, index], MEASURED.items(), strict=True):
            for engine in ENGINES:
                draw(axis, [row for row in inside if row["engine"] == engine], quantity, unit, engine)
        precisions = " and ".join(dict.fromkeys(row["precision"] for row in inside))
        axes[0, index].set_title("\n".join((*column, precisions)), fontsize=10)
        axes[1, index].set_xlabel("objects")
    for axis, (label, _) in zip(axes[:, 0], MEASURED.values(), strict=True):
        axis.set_ylabel(label)
        axis.margins(y=0.12)
        axis.set_ylim(bottom=0)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    counts = sorted({int(row["n_objects"]) for row in rows})
    axes[0, 0].set_xticks(counts)
    figure.legend(*handles(axes), loc="outside lower center", ncols=min(3, len(columns)), frameon=False)
    figure.set_layout_engine("constrained")
    save_figure(name, figure)


def draw(axis: Any, rows: list[dict[str, Any]], quantity: str, unit: float, engine: str) -> None:
    """One engine's line, and a cross at the top for each number of objects that ran out of memory."""
    label, color, marker = ENGINES[engine]
    rows = sorted(rows, key=lambda row: int(row["n_objects"]))
    fitting = [row for row in rows if not row["outcome"]]
    counts = [int(row["n_objects"]) for row in fitting]
    values = [float(row[quantity]) / unit for row in fitting]
    if counts:
        axis.plot(counts, values, color=color, marker=marker, label=label)
    failed = [int(row["n_objects"]) for row in rows if row["outcome"]]
    if failed:
        axis.plot(
            failed,
            [0.97] * len(failed),
            "x",
            color=color,
            markersize=9,
            markeredgewidth=2,
            transform=axis.get_xaxis_transform(),
            label=f"{label}: out of memory",
        )


def handles(axes: Any) -> tuple[list[Any], list[str]]:
    """What the legend names, each once."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for line in axis.get_lines():
            found.setdefault(line.get_label(), line)
    return list(found.values()), list(found)


def panel_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The panels that a row belongs to: the first lines of their title."""
    decoder = ", decoder" if row["decoder"] == "True" else ""
    return f"{row['model']}, {row['peft']}{decoder}", f"{row['n_sub_iterations']} sub-iterations"


if __name__ == "__main__":
    save_steps(sys.argv[1])
