"""`refsam compare`: differences to one setting of a sweep, and how sure they are."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from refsam.commands.options import (
    COMPLETED,
    DAMAGED_RECORDS,
    Commands,
    add_command,
    add_json,
    add_page,
    page_of,
    print_json,
)
from refsam.commands.selection import (
    add_join,
    add_shown,
    add_where,
    assignments,
    name_problems,
    say_problems,
    selected,
    shown_of,
)
from refsam.errors import ConfigError
from refsam.records.paths import file_name

if TYPE_CHECKING:
    from refsam.results.comparing.settings import Setting

_OF_MEASUREMENTS = ("mode", "round", "mask_input")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        _compare,
        "differences to one setting of a sweep, with confidence intervals, paired over test images",
        "Print for every other setting and every mode that both have the difference of a metric to the\n"
        "baseline, its 95 % bootstrap interval over test images, whether that excludes 0, and the p-value\n"
        "of Wilcoxon's signed-rank test, Holm-adjusted for all comparisons of the table. Settings are what\n"
        "differs in more than the seed. Written as CSV and Markdown into the sweep's folder tables/.\n\n"
        "Fields of --json: metric, baseline, comparisons (the columns of the CSV), notes, problems,\n"
        "files.",
        'refsam compare study --baseline "model=vit_b,peft=full,n_images=5" --metric SA50 --plot',
    )
    parser.add_argument("sweep", metavar="SWEEP", help="name of a sweep")
    add_join(parser)
    parser.add_argument(
        "--baseline",
        metavar="RUN|AXIS=VALUE,…",
        help="one run, by its id or the beginning of it; or one setting, by what only it has",
    )
    parser.add_argument("--metric", default="SA50", help="what is compared (SA50)")
    parser.add_argument("--plot", action="store_true", help="draw the differences, as PNG, PDF and SVG")
    add_page(parser)
    add_where(parser)
    add_shown(parser)
    add_json(parser)


def _compare(options: argparse.Namespace) -> int:
    if not options.baseline:
        raise ConfigError("--baseline must be a run or AXIS=VALUE, such as model=vit_b, got nothing")
    page = page_of(options)
    where = assignments(options.where)
    given = assignments([options.baseline]) if "=" in options.baseline else None
    if "fold" in where:
        raise ConfigError("--where=fold, but folds are compared together, over the images of all")
    chosen = selected(argparse.Namespace(**vars(options), sweeps=[options.sweep], all=False))
    import pandas as pd

    from refsam.results.collect import first_prompt
    from refsam.results.comparing.compare import check_metric, compare
    from refsam.results.comparing.find_setting import setting_of_run, setting_with
    from refsam.results.comparing.settings import settings_of
    from refsam.results.comparing.table import notes, print_comparisons, records, write_comparisons
    from refsam.results.folds import join_folds
    from refsam.results.tables.wide import choose

    check_metric(options.metric)
    rows = choose(chosen.frame, {axis: value for axis, value in where.items() if axis in _OF_MEASUREMENTS})
    if "round" not in where:
        rows = first_prompt(rows)
    others = choose(rows, {axis: value for axis, value in where.items() if axis not in _OF_MEASUREMENTS})
    joined = join_folds(chosen.frame, rows)
    frame, others = joined.frame, join_folds(chosen.frame, others).frame
    settings = settings_of(frame)
    if not settings:
        print("".join(f"{sentence}.\n" for sentence in joined.sentences), end="")
        print(f"No run of sweep {options.sweep} is completed yet, so there is nothing to compare.")
        return name_problems(chosen)
    baseline = (
        setting_of_run(options.baseline, settings, pd.concat([joined.frame, joined.incomplete]))
        if given is None
        else setting_with(given, settings, options.baseline)
    )
    found = compare(baseline, frame, others, chosen.directories, options.metric)
    found = replace(found, left_out=[*found.left_out, *joined.sentences])
    name = _file_name(options.baseline, baseline, options.metric)
    files = write_comparisons(found, frame, chosen.output.tables / name)
    if options.plot:
        from refsam.results.comparing.forest import forest_plot

        files += forest_plot(found, frame, chosen.output.figures, name, page)
    if options.json:
        print_json(
            {
                "metric": found.metric,
                "baseline": {**found.baseline.values, "run_ids": found.baseline.run_ids},
                "comparisons": records(found),
                "notes": notes(found),
                "problems": found.problems,
                "files": list(map(str, files)),
            }
        )
    else:
        print_comparisons(found, shown=shown_of(options))
        for path in files:
            print(path)
    say_problems(found.problems)
    return name_problems(chosen) or (DAMAGED_RECORDS if found.problems else COMPLETED)


def _file_name(given: str, baseline: "Setting", metric: str) -> str:
    """The same baseline writes the same files, whatever part of a run's name was typed."""
    name = given if "=" in given else baseline.run_ids[0]
    return file_name(f"compare-{metric}-{name}")
