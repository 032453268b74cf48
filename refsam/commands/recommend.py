"""`refsam recommend`: which setting to use on a machine, by own results or by what is published."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refsam.commands.options import (
    COMPLETED,
    DAMAGED_RECORDS,
    Commands,
    add_command,
    add_json,
    open_folder,
    positive,
    print_json,
    whole,
)
from refsam.commands.selection import Selection, add_join, name_problems, say_problems, selected
from refsam.errors import ConfigError, nearest
from refsam.records.paths import RunsFolder, default_runs

if TYPE_CHECKING:
    from refsam.records.paths import Directories
    from refsam.results.recommending.candidates import Candidate, Constraints
    from refsam.results.recommending.recommend import Advice

_PROGRAM = ("python", "-m", "refsam.sweep")
_DATASET = "covid_if"  # of the resource study


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "recommend",
        _recommend,
        "the setting of the best quality within a machine's memory and hours, and the command that runs it",
        "Print the setting with the best measured quality among those known to meet the limits, the\n"
        "runner-up, the confidence interval of their difference, and the command that runs the best one. It\n"
        "is based on your results of all sweeps, or of the sweeps named. If none of them meets the limits,\n"
        "it is based on the resource study's times, the resources' tables and refsam fit, and the quality\n"
        "is reported as not known.\n\n"
        "Fields of --json: limits, source (own, published, null), dataset, mode, metric, winner, runner_up,\n"
        "clear, p_over_seeds, difference, notes, problems, command.",
        "refsam recommend --memory 8 --gpu --hours 2",
    )
    parser.add_argument("sweeps", metavar="SWEEP", nargs="*", help="names of sweeps (all)")
    add_join(parser)
    parser.add_argument(
        "--memory", type=positive("--memory"), metavar="GB", help="memory of the GPU, or main memory"
    )
    parser.add_argument("--gpu", action="store_true", help="the training runs on a GPU")
    parser.add_argument("--cpu", action="store_true", help="the training runs on the processor")
    parser.add_argument(
        "--hours", type=positive("--hours"), metavar="H", help="that one training may take (any)"
    )
    parser.add_argument(
        "--n-images",
        type=whole("--n-images"),
        metavar="N",
        help="number of annotated images available for training (any)",
    )
    parser.add_argument("--dataset", metavar="NAME", help="data set of the results (the only one)")
    parser.add_argument("--mode", help="of the evaluation (the first of box, point, others)")
    parser.add_argument("--metric", default="SA50", help="what is best (SA50)")
    add_json(parser)


def _recommend(options: argparse.Namespace) -> int:
    if options.memory is None:
        raise ConfigError("--memory must be a number of GB above 0, got nothing")
    if options.gpu == options.cpu:
        given = "both were given" if options.gpu else "neither was given"
        raise ConfigError(f"--gpu, --cpu: {given}; expected one of them")
    chosen = _own(options)
    from refsam.records.fits import known_fits
    from refsam.results.comparing.compare import check_metric
    from refsam.results.recommending.candidates import CPU, CUDA, Constraints
    from refsam.results.recommending.recommend import recommend
    from refsam.results.recommending.text import as_json, lines

    check_metric(options.metric)
    _check_dataset(options.dataset, chosen)
    limits = Constraints(options.memory, CUDA if options.gpu else CPU, options.hours, options.n_images)
    folder = RunsFolder(Path(options.runs)) if chosen is None else chosen.folder
    frame, directories = (None, {}) if chosen is None else (chosen.frame, chosen.directories)
    fits = known_fits(folder.root)
    advice = recommend(frame, directories, limits, fits, options.metric, options.dataset, options.mode)
    command = _command(advice, folder, directories, named=options.runs != default_runs())
    if options.json:
        print_json(as_json(advice, command or None))
    else:
        print("\n".join(lines(advice, command)))
    say_problems(advice.problems)
    status = COMPLETED if chosen is None else name_problems(chosen)
    return status or (DAMAGED_RECORDS if advice.problems else COMPLETED)


def _own(options: argparse.Namespace) -> Selection | None:
    """The own results; None where there are no sweeps."""
    from refsam.results.sweeps import sweep_names

    # Need not be there: who has run nothing asks what to begin with.
    is_default = options.runs == default_runs() and not options.sweeps and not options.join
    if is_default and not Path(options.runs).is_dir():
        return None
    if not options.sweeps and not options.join and not sweep_names(open_folder(options)):
        return None
    return selected(argparse.Namespace(**vars(options), all=not options.sweeps))


def _check_dataset(name: str | None, chosen: Selection | None) -> None:
    from refsam.configuration.resources import folder

    known = {path.stem for path in (folder("conf") / "dataset").glob("*.yaml")}
    if chosen is not None:
        known |= set(chosen.frame["dataset"].dropna())
    if name is not None and name not in known:
        there = ", ".join(sorted(known))
        raise ConfigError(f"--dataset must be one of {there}, got {name!r}{nearest(name, known)}")


def _command(advice: "Advice", folder: "RunsFolder", directories: "Directories", named: bool) -> list[str]:
    """The words of the command that runs the winner on the machine at hand, or on its Slurm; none without.

    Args:
        folder: that the run belongs into.
        directories: of the runs that the advice rests on.
        named: whether it was named; else it is the one that commands take.
    """
    winner, limits = advice.winner, advice.limits
    if winner is None:
        return []
    from refsam.configuration.compose import compose
    from refsam.configuration.reproduction import overrides_for, value_text
    from refsam.orchestration.submission.sweeps import where
    from refsam.results.comparing.settings import read_config

    on_slurm = where(compose([])) == "slurm"
    resource = _resource(winner, limits) if on_slurm else None
    place = [f"resource={resource}"] if resource else ["resource=local", f"resource.device={limits.device}"]
    program = [*_PROGRAM, *(["-m"] if on_slurm else [])]
    to = [f"runs={value_text(str(folder.root.absolute()))}"] if named else []
    config = None if winner.setting is None else read_config(directories[winner.setting.run_ids[0]])
    if config is not None:
        if config.evaluate.fold is not None:  # all folds
            config = replace(config, evaluate=replace(config.evaluate, fold=None))
            program = [*_PROGRAM, "-m"]
        return [*program, *overrides_for(config, place), *to]
    values = winner.values
    return [
        *(*program, *place, f"model={values['model']}", f"peft={values['strategy']}"),
        f"dataset={advice.dataset or _DATASET}",
        *(f"n_images={values['n_images']}", f"n_objects={values['n_objects']}", *to),
    ]


def _resource(winner: "Candidate", limits: "Constraints") -> str | None:
    """The resource that the setting is known from, where the limits hold it; else the largest they hold."""
    from refsam.configuration.resource_files import shipped_resources

    memory = {
        name: resource.device_memory_gb
        for name, resource in shipped_resources().items()
        if resource.device == limits.device
        and resource.request.partition is not None
        and resource.device_memory_gb is not None
        and resource.device_memory_gb <= limits.memory_gib
    }
    if winner.values["resource"] in memory:
        return str(winner.values["resource"])
    return max(memory, key=lambda name: memory[name] or 0, default=None)
