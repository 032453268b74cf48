"""The command python -m tools.test_cluster up|down|status [--root FOLDER]"""

import argparse
import sys
import tempfile
from pathlib import Path

from refsam.errors import ConfigError
from tools.test_cluster.cluster import Cluster, StartFailed
from tools.test_cluster.packages import install, missing_programs

DONE, FAILED, BAD_INPUT = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: as asked for (`status`: it runs); 1: it does not start, or is down; 2: bad input.

    Raises KeyboardInterrupt, which is answered where this is called.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.test_cluster",
        description="A real Slurm on this machine, to try sweeps on: CPU nodes and typed GPUs that are none.",
    )
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(tempfile.gettempdir()) / "refsam-test-cluster",
        metavar="FOLDER",
        help="everything of it lies below this folder (%(default)s)",
    )
    parser.add_argument(
        "--install", action="store_true", help="up: install the Debian packages that are missing"
    )
    options = parser.parse_args(arguments)
    cluster = Cluster(options.root)
    try:
        if options.command == "down":
            cluster.down()
            print(f"The test cluster in {cluster.root} is down.")
            return DONE
        if options.command == "status":
            return _status(cluster)
        return _up(cluster, options.install)
    except StartFailed as error:
        print(f"refsam: {error}", file=sys.stderr)
        return FAILED
    except ConfigError as error:
        print(f"refsam: {error}", file=sys.stderr)
        return BAD_INPUT


def _up(cluster: Cluster, may_install: bool) -> int:
    if cluster.is_up():
        print(f"The test cluster in {cluster.root} runs already.")
    else:
        if may_install and missing_programs():
            install()
        cluster.up()
        print(f"The test cluster in {cluster.root} runs.")
    for name, value in cluster.environment.items():
        print(f"To use it: export {name}={value}")
    return DONE


def _status(cluster: Cluster) -> int:
    if not cluster.is_up():
        living = cluster.daemons.names()
        print(
            f"The test cluster in {cluster.root} is down"
            + (f" but for {', '.join(living)}." if living else ".")
        )
        return FAILED
    for node, state in cluster.nodes().items():
        print(f"{node:8}{state}")
    return DONE
