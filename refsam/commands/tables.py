"""`refsam collect`, `plot` and `strategies`: the tables and the figures of sweeps."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refsam.commands.options import Commands, add_command, add_json, add_page, add_wide, page_of
from refsam.commands.selection import (
    Selection,
    add_selection,
    add_shown,
    add_where,
    assignments,
    comma_separated,
    name_problems,
    selected,
    shown_of,
)
from refsam.errors import ConfigError
from refsam.records.paths import file_name

if TYPE_CHECKING:
    from refsam.results.tables.wide import WideTable

FORMATS = ("csv", "markdown", "latex", "excel")
STUDIES = ("resource", "peft", "hugging_face")
KINDS = ("study", "memory", "pareto", "training", "heatmap")


def add(commands: Commands) -> None:
    _add_collect(commands)
    _add_plot(commands)
    _add_strategies(commands)


def _add_collect(commands: Commands) -> None:
    parser = add_command(
        commands,
        "collect",
        _collect,
        "write results.csv and results.parquet of sweeps, print the table, make wide tables",
        example="refsam collect study --rows model,strategy --columns n_images --metric SA50 --format latex",
    )
    add_selection(parser)
    add_json(parser)
    add_wide(parser)
    wide = parser.add_argument_group("wide tables")
    wide.add_argument(
        "--rows", type=comma_separated, metavar="AXES", help="what the rows are: model,strategy"
    )
    wide.add_argument(
        "--columns", type=comma_separated, metavar="AXES", help="what the columns are: n_images"
    )
    wide.add_argument(
        "--metric", type=comma_separated, metavar="NAMES", help="which metrics (SA50); means over seeds"
    )
    wide.add_argument("--study", choices=STUDIES, help="the table of a study, ready-made")
    wide.add_argument(
        "--published",
        action="store_true",
        help="with --study resource: the published values beside, and the differences",
    )
    wide.add_argument(
        "--format",
        type=comma_separated,
        default=FORMATS,
        metavar="NAMES",
        help=f"of {','.join(FORMATS)} (all)",
    )
    wide.add_argument("--name", help="name of the table's files, by default made of its axes")
    add_where(wide)


def _add_plot(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plot",
        _plot,
        "draw the figures of sweeps, as PNG, PDF and SVG",
        example="refsam plot study --kind study,pareto --width 2",
    )
    add_selection(parser)
    parser.add_argument(
        "--kind",
        type=comma_separated,
        default=KINDS[:1],
        metavar="NAMES",
        help=f"of {','.join(KINDS)}, or all (study)",
    )
    parser.add_argument("--metric", default="SA50", help="what is drawn (SA50)")
    parser.add_argument("--mode", help="the mode of figures that show one (the first: box)")
    parser.add_argument("--x", default="n_images", help="horizontal axis of the heat map (n_images)")
    parser.add_argument("--y", default="strategy", help="vertical axis of the heat map (strategy)")
    add_page(parser)
    add_where(parser)


def _add_strategies(commands: Commands) -> None:
    parser = add_command(
        commands,
        "strategies",
        _strategies,
        "what each strategy reaches and costs: mIoU, mF1 over seeds, inference, parameters, memory",
        "Print mIoU and mF1 of each model and strategy, their mean and deviation over seeds, the\n"
        "milliseconds of inference, the trained parameters and the peak memory of training, and write\n"
        "strategies.csv.\n\n"
        "Fields of --json: those of strategies.csv.",
        "refsam strategies peft_trashcan",
    )
    add_selection(parser)
    parser.add_argument("--mode", help="of the evaluation (the first of box, point, others)")
    parser.add_argument("--markdown", action="store_true", help="print the table for a document")
    add_where(parser)
    add_shown(parser)
    add_json(parser)


def _collect(options: argparse.Namespace) -> int:
    _check_choices("--format", options.format, FORMATS)
    if options.published and options.study != STUDIES[0]:
        raise ConfigError(f"--published needs --study {STUDIES[0]}, got {options.study or 'no study'}")
    chosen = selected(options)
    frame = chosen.frame
    from refsam.results.collect import write_results

    paths = write_results(chosen.output, frame, chosen.is_joined)
    if options.rows or options.columns or options.metric or options.study:
        _write_table(options, chosen)
    elif options.json:
        print(frame.to_json(orient="records", indent=2, double_precision=15))
    else:
        _print_table(chosen, options.wide)
    if not options.json:
        print(f"{len(frame)} rows in {paths[0]} and {paths[1].name}")
    return name_problems(chosen)


def _print_table(chosen: Selection, wide: bool) -> None:
    import pandas as pd

    from refsam.results.folds import join_folds
    from refsam.results.tables.table import print_table

    joined = join_folds(chosen.frame)
    # Of folds of which some are missing, each stands in a line of its own.
    lines = pd.concat([joined.frame, joined.incomplete]) if len(joined.incomplete) else joined.frame
    print_table(lines, wide=wide)
    for sentence in joined.sentences:
        print(f"{sentence}.")


def _write_table(options: argparse.Namespace, chosen: Selection) -> None:
    from refsam.results.folds import join_folds
    from refsam.results.provenance import provenance
    from refsam.results.tables.formats import as_markdown, write_table
    from refsam.results.tables.wide import choose, wide_table

    where = assignments(options.where)
    named = [*(options.rows or ()), *(options.columns or ()), *where]
    joined = join_folds(chosen.frame, choose(chosen.frame, where), named)
    frame = joined.results()
    table: WideTable
    if options.study:
        from refsam.results.published import published_runs
        from refsam.results.tables.studies import STUDIES as MADE
        from refsam.results.tables.studies import resource_study

        table = resource_study(frame, published_runs()) if options.published else MADE[options.study](frame)
        name = options.name or f"{options.study}_study{'_published' if options.published else ''}"
    else:
        rows, columns = options.rows or ("model", "strategy"), options.columns or ("n_images",)
        metrics = options.metric or ("SA50",)
        table = wide_table(frame, rows, columns, metrics, where)
        made_of = "-".join([*metrics, *rows, "by", *columns, *where.values()])
        name = options.name or file_name(made_of)
    if Path(name).name != name:
        raise ConfigError(f"--name {name!r} is not the name of a file; it goes into {chosen.output.tables}")
    if not table.rows:
        print("No run of this sweep has these values yet, so the table is empty.", file=sys.stderr)
    table = replace(table, notes=(*table.notes, *(f"{sentence}." for sentence in joined.sentences)))
    origin = provenance(frame, table.run_ids)
    written = write_table(table, chosen.output.tables / name, tuple(options.format), origin)
    if options.json:
        print(json.dumps({"headings": [*table.row_axes, *table.headings], "files": list(map(str, written))}))
    else:
        print(as_markdown(table))
        for path in written:
            print(path)


def _plot(options: argparse.Namespace) -> int:
    kinds = KINDS if "all" in options.kind else tuple(options.kind)
    _check_choices("--kind", kinds, KINDS)
    page = page_of(options)
    chosen = selected(options)
    from refsam.results.figures.draw import draw_all
    from refsam.results.folds import join_folds
    from refsam.results.tables.wide import axis_of, check_metric, choose

    check_metric(options.metric)
    where = assignments(options.where)
    axes = axis_of(options.x, chosen.frame), axis_of(options.y, chosen.frame)
    joined = join_folds(chosen.frame, choose(chosen.frame, where), [*axes, *where])
    if options.mode is not None:
        choose(chosen.frame, {"mode": options.mode})
    paths = draw_all(
        joined.results(),
        chosen.directories,
        chosen.output.figures,
        kinds,
        options.metric,
        page,
        mode=options.mode,
        axes=axes,
        problems=chosen.problems,
    )
    for path in paths:
        print(path)
    for sentence in joined.sentences:
        print(f"{sentence}.")
    if not paths:
        names = ", ".join(chosen.names)
        print(f"No run of sweep {names} has results of this kind yet, so there is nothing to draw.")
    return name_problems(chosen)


def _strategies(options: argparse.Namespace) -> int:
    chosen = selected(options)
    from refsam.results.folds import join_folds
    from refsam.results.provenance import provenance
    from refsam.results.tables.notes import fold_notes, seed_notes
    from refsam.results.tables.strategies import markdown, over_seeds, print_strategies, write_strategies
    from refsam.results.tables.wide import choose

    where = assignments(options.where)
    joined = join_folds(chosen.frame, choose(chosen.frame, where), list(where))
    frame = joined.results()
    table = over_seeds(frame, options.mode)
    several = bool((table["n_seeds"] > 1).any())
    shown = frame[frame["mode"].isin(table["mode"])]  # a column has the test images
    said = [*fold_notes(shown), *seed_notes(shown, several), *(f"{each}." for each in joined.sentences)]
    path = write_strategies(chosen.output, table, provenance(frame))
    if options.json:
        print(table.to_json(orient="records", indent=2, double_precision=15))
    elif options.markdown:
        print(markdown(table), end="")
        print("".join(f"\n{note}\n" for note in said), end="")
    else:
        print_strategies(table, shown=shown_of(options))
        print("".join(f"{note}\n" for note in said), end="")
        print(f"{len(table)} rows in {path}")
    return name_problems(chosen)


def _check_choices(option: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for name in given:
        if name not in allowed:
            raise ConfigError(f"{option} must be one of {', '.join(allowed)}, got {name!r}")
