"""Which sweeps a command about results speaks of, and their rows. Several can be joined."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from refsam.commands.options import COMPLETED, DAMAGED_RECORDS, add_wide, open_folder, say
from refsam.errors import ConfigError, DamagedManifest

if TYPE_CHECKING:
    import pandas as pd

    from refsam.records.paths import Directories, RunsFolder, SweepPaths
    from refsam.results.tables.fitted import Shown


NAMED = 5  # problems that are printed, at most
# What commands call the axes of the table.
_OF_COMMANDS = {"peft": "strategy", "n_train_images": "n_images"}


@dataclass(frozen=True)
class Selection:
    """The rows that were asked for.

    Attributes:
        folder: that was named, of one's own runs.
        directories: that the rows of each run are from.
        output: where tables and figures go: the sweep's folder, or runs/joined for several.
        problems: sentences about damaged manifests and conflicting results.
    """

    frame: "pd.DataFrame"
    folder: "RunsFolder"
    directories: "Directories"
    sweeps: list[tuple["SweepPaths", "RunsFolder"]]
    output: "SweepPaths"
    problems: list[str] = field(default_factory=list)

    @property
    def is_joined(self) -> bool:
        return len(self.sweeps) > 1

    @property
    def names(self) -> list[str]:
        return [sweep.name for sweep, _ in self.sweeps]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The arguments that `selected` reads."""
    parser.add_argument("sweeps", metavar="SWEEP", nargs="*", help="names of sweeps; several are joined")
    parser.add_argument("--all", action="store_true", help="all sweeps")
    add_join(parser)


def add_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--join",
        action="append",
        default=[],
        metavar="FOLDER",
        help="another runs folder with sweeps of these names, which are joined; can be repeated",
    )


def add_where(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--where", action="append", default=[], metavar="AXIS=VALUE", help="only these runs")


def add_shown(parser: argparse.ArgumentParser) -> None:
    """The options that `shown_of` reads."""
    parser.add_argument(
        "--columns",
        type=comma_separated,
        metavar="NAMES",
        help="which of the columns that a narrow terminal leaves out to show",
    )
    add_wide(parser)


def shown_of(options: argparse.Namespace) -> "Shown":
    from refsam.results.tables.fitted import Shown

    option = "--wide shows all, --columns those that it names"
    return Shown(options.columns, options.wide, option)


def comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def assignments(texts: list[str]) -> dict[str, str]:
    """`axis=value`, also several with commas; the groups of a command may be named as they are there.

    What follows a comma and is no assignment belongs to the value before it: `strategy=lora, rank 8`.
    Raises ConfigError for what is no assignment.
    """
    found: dict[str, str] = {}
    for text in texts:
        last = None
        for part in comma_separated(text):
            name, equals, value = part.partition("=")
            if equals:
                last = _OF_COMMANDS.get(name.strip(), name.strip())
                found[last] = value.strip()
            elif last is not None:
                found[last] += f", {part}"
            else:
                raise ConfigError(f"{part!r} is not AXIS=VALUE, such as model=vit_b")
    return found


def selected(options: argparse.Namespace) -> Selection:
    """The sweeps that were asked for and their rows. Looks names up before pandas is imported.

    Raises:
        ConfigError: when a sweep is not there, or none was named.
        DamagedManifest: when the only one that was named is damaged.
    """
    from refsam.results.sweeps import find_sweep, read_manifest, runs_folder, sweep_names

    folder = open_folder(options)
    folders = [folder, *(runs_folder(path, "--join") for path in options.join)]
    if options.all == bool(options.sweeps):
        raise ConfigError("SWEEP: name one sweep or several, or give --all and no name")
    sweeps: list[tuple[SweepPaths, RunsFolder]] = []
    if options.all:
        sweeps = [(each.sweep(name), each) for each in folders for name in sweep_names(each)]
        if not sweeps:
            places = ", ".join(str(each.root) for each in folders)
            raise ConfigError(f"--all: there are no sweeps in {places}")
    for name in options.sweeps:
        having = [each for each in folders if name in sweep_names(each)]
        sweeps += [(each.sweep(name), each) for each in having] or [(find_sweep(name, folder), folder)]

    problems = []
    if len(sweeps) > 1:  # one damaged manifest does not keep the others from their table
        for sweep, each in list(sweeps):
            try:
                read_manifest(sweep)
            except DamagedManifest as error:
                problems.append(str(error))
                sweeps.remove((sweep, each))
        if not sweeps:
            raise DamagedManifest("; ".join(problems))
    from refsam.results.collect import join

    # Other people's runs are theirs to correct.
    settled = {sweep.root: _complete_records(sweep, each) for sweep, each in sweeps if each is folder}
    joined = join(sweeps, settled)
    problems += [conflict.words for conflict in joined.conflicts]
    output = sweeps[0][0] if len(sweeps) == 1 and sweeps[0][1] is folder else folder.joined
    return Selection(joined.frame, folder, joined.directories, sweeps, output, problems)


def _complete_records(sweep: "SweepPaths", folder: "RunsFolder") -> set[str]:
    """What Slurm knows of jobs that were killed belongs into the table, and what all of them have cost.

    Returns:
        The runs that are known already and have not changed.
    """
    from refsam.orchestration.lifecycle.reconcile import reconcile
    from refsam.orchestration.slurm.accounting import record_costs
    from refsam.orchestration.slurm.questions import SlurmQuery
    from refsam.results.collect import settled_runs
    from refsam.results.sweeps import read_manifest

    settled = settled_runs(sweep, folder)
    run_ids = [run.run_id for run in read_manifest(sweep).runs if run.run_id not in settled]
    if not run_ids:
        return settled
    reconcile(folder, run_ids, SlurmQuery())
    problem = record_costs(folder, run_ids)
    if problem is not None:
        say(problem)
    return settled


def say_problems(problems: Sequence[str]) -> None:
    """Print the first of them, and how many more there are: a thousand may have one cause."""
    say(*problems[:NAMED])
    if len(problems) > NAMED:
        say(f"and {len(problems) - NAMED} more such problems; --json has all")


def name_problems(chosen: Selection) -> int:
    """Print what is damaged or contradicts itself, and return the exit status that says so."""
    from refsam.results.collect import damaged

    sentences = damaged(chosen.frame)
    say(*chosen.problems, *sentences)
    if sentences:
        say(f"runs with damaged records: {len(sentences)} of {chosen.frame['run_id'].nunique()}")
    return DAMAGED_RECORDS if sentences or chosen.problems else COMPLETED
