"""The overrides of a sweep as other commands take them: one command line for all of them."""

import argparse
from typing import TYPE_CHECKING

from refsam.errors import ConfigError

if TYPE_CHECKING:
    from refsam.configuration.schema import RefsamConfig


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The options that `configurations` reads."""
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for a sweep, such as model=vit_b,vit_b_lm"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="as for a sweep; changes nothing, commas are enough"
    )
    parser.add_argument("--config-name", metavar="NAME", help="a named sweep")
    parser.add_argument("--config-dir", metavar="FOLDER", help="where your own choices are")


def configurations(options: argparse.Namespace) -> list["RefsamConfig"]:
    """The configurations of all runs that were asked for. Raises ConfigError for what cannot be composed."""
    from refsam.configuration.compose import compose_sweep
    from refsam.configuration.composition_errors import explain

    try:
        return list(compose_sweep(options.overrides, options.config_name, options.config_dir))
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error
