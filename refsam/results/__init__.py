"""From records to the table and the figure of a paper. Needs no torch and no scheduler."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load(sweep_name: str, runs: str | Path = "runs") -> "pd.DataFrame":
    """The results of a sweep as they are now: one tidy row per run and evaluation mode (see results.collect).

    Args:
        sweep_name: Name of the sweep, a folder of `<runs>/sweeps`.
        runs: The folder of the run directories.

    Raises:
        ConfigError: when there is no such sweep; the message names the nearest.
        DamagedManifest: when the sweep's manifest is damaged.
    """
    # pandas takes half a second; importing refsam.results does not
    from refsam.records.paths import RunsFolder
    from refsam.results.collect import collect
    from refsam.results.sweeps import find_sweep

    folder = RunsFolder(Path(runs))
    return collect(find_sweep(sweep_name, folder), folder)
