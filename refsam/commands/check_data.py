"""`refsam check-data`: what a data set holds and what looks wrong in it, before any run is planned."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refsam.commands.options import COMPLETED, Commands, add_command, add_overrides, configurations
from refsam.system.terminal import standard_console

if TYPE_CHECKING:
    from refsam.configuration.schema import DatasetConfig


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "check-data",
        _check_data,
        "what a data set holds: images, objects, split, and what looks wrong",
        "Read all images and labels of the data sets that the overrides of a sweep ask for, and print a\n"
        "table of each: images, split, sizes, channels, types, objects, warnings. What no run could use is\n"
        "one sentence and exit status 2. Files are read once: the next look takes only what has changed.",
        "refsam check-data dataset=folder dataset.root=my_images 'dataset.images=images/*.tif'",
    )
    add_overrides(parser)


def _check_data(options: argparse.Namespace) -> int:
    from refsam.orchestration.planning.checks import check_values

    configs = configurations(options)
    for config in configs:
        check_values(config)
    different = {(repr(each.dataset), *each.train.patch_shape): each for each in configs}
    for number, config in enumerate(different.values()):
        if number:
            print()
        _print_table(config.dataset, config.train.patch_shape)
    return COMPLETED


def _print_table(dataset: "DatasetConfig", patch_shape: Sequence[int]) -> None:
    """Print what a data set holds. Raises ConfigError for what no run could use, after the table."""
    from rich.text import Text

    from refsam.datasets.index import check_images, default_cache, inspect
    from refsam.datasets.listing import complete_pairs
    from refsam.datasets.overview import overview, rows
    from refsam.datasets.pair import COCO

    pairs = complete_pairs(dataset)
    facts = inspect(pairs, dataset, default_cache())
    found = overview(dataset, pairs, facts)
    warnings = list(found.warnings)
    if dataset.format == COCO:
        from refsam.datasets.coco import left_out

        warnings += [sentence for sentence in [left_out(dataset)] if sentence is not None]
    console = standard_console(highlight=False)
    for name, words in [*rows(found), *(("warning", words) for words in warnings)]:
        console.print(Text.assemble((f"{name:<14}", "bold"), words), soft_wrap=True)
    check_images(dataset, facts, patch_shape)
