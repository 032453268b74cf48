"""The plan as a person reads it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from refsam.configuration.schema import Kind
from refsam.datasets.overview import short_lines
from refsam.models.strategies import strategy_label
from refsam.orchestration.planning.estimate import GroupEstimate, group_words, total_words
from refsam.orchestration.planning.plan import Plan, PlannedRun, PlanState
from refsam.orchestration.planning.preflight import Preflight
from refsam.orchestration.slurm.requests import Jobs, by_jobs, request_text
from refsam.records.settings import Setting, short_name, value_text
from refsam.system.names import counted
from refsam.system.terminal import UNLIMITED

_WORDS = {
    PlanState.new: "planned",
    PlanState.resume: "to continue",
    PlanState.evaluate: "to evaluate",
    PlanState.pending: "pending",
    PlanState.running: "running",
    PlanState.done: "completed",
    PlanState.unreadable: "unreadable",
}


def print_plan(plan: Plan, console: Console, expected: Sequence[GroupEstimate], found: Preflight) -> None:
    """The data sets, the runs grouped by their requests, what is invalid and why, what is missing, the sums.

    Args:
        expected: how long the runs to do will take, by their requests.
        found: what is missing, and what could not be looked at.
    """
    common = _common(plan)
    if common:
        console.print("All runs: " + ", ".join(f"{name} {escape(value)}" for name, value in common.items()))
    names = [dataset.name for dataset in plan.datasets]
    for dataset in plan.datasets:
        for line in short_lines(dataset, with_root=names.count(dataset.name) > 1):
            console.print(escape(line), soft_wrap=True)
    for jobs, runs in by_jobs(plan.runs, plan.folder):
        table = _group(jobs, runs, common, with_id=True)
        if _width(table, console) > console.width:
            table = _group(jobs, runs, common, with_id=False)
        console.print(table)
        if jobs.then is not None:
            console.print(f"Then evaluated on {escape(request_text(jobs.then))}", soft_wrap=True)
        for group in expected:
            if group.jobs == jobs:
                console.print(f"{escape(group_words(group))}\n", soft_wrap=True)
    if plan.skipped:
        console.print("[bold]Left out, each with the reason:[/bold]")
        for item in plan.skipped:
            console.print(
                f"  {escape(_overrides(item.overrides)) or 'this run'}: {escape(item.reason)}", soft_wrap=True
            )
    for sentence in (*plan.problems, *found.notes):
        console.print(escape(sentence), soft_wrap=True)
    for sentence in found.problems:
        console.print(f"[bold red]Missing:[/bold red] {escape(sentence)}", soft_wrap=True)
    console.print(summary(plan), soft_wrap=True)
    print_expected(expected, console)


def print_expected(expected: Sequence[GroupEstimate], console: Console) -> None:
    """How long the runs to do will take in all; nothing where there is nothing to do."""
    if expected:
        console.print(escape(total_words(expected)), soft_wrap=True)


def summary(plan: Plan) -> str:
    """`Sweep NAME: 9 runs (8 finetunings, 1 baseline), 1 kind of request; 3 completed, 6 planned.`"""
    baselines = sum(run.config.kind == Kind.baseline for run in plan.runs)
    finetunings = len(plan.runs) - baselines
    counts = [
        f"{number} {words}"
        for standing, words in _WORDS.items()
        if (number := sum(run.plan_state == standing for run in plan.runs))
    ]
    kinds = len(by_jobs(plan.runs, plan.folder))
    left_out = f"; {len(plan.skipped)} left out" if plan.skipped else ""
    return (
        f"Sweep {plan.name}: {counted(len(plan.runs), 'run')} ({counted(finetunings, 'finetuning')}, "
        f"{counted(baselines, 'baseline')}), {counted(kinds, 'kind')} of request; "
        f"{', '.join(counts)}{left_out}."
    )


def _cells(run: PlannedRun) -> dict[str, str]:
    config = run.config
    trained, fold = config.kind == Kind.finetuning, config.evaluate.fold
    return {
        "resource": config.resource.name,
        "model": config.model.name,
        "weights": _weights(config.model.weights),
        "dataset": config.dataset.name,
        "seed": str(config.seed),
        "strategy": strategy_label(asdict(config.peft)) if trained else Kind.baseline.value,
        "images": str(config.n_images) if trained else "0",
        "objects": str(config.n_objects) if trained else "",
        **({} if fold is None else {"fold": f"{fold} of {config.evaluate.folds}"}),
        **{short_name(name): value_text(value) for name, value in _fields(run).items()},
    }


def _fields(run: PlannedRun) -> Setting:
    """What the other columns do not say; a strategy is named with its settings."""
    return {name: value for name, value in run.fields.items() if not name.startswith("peft.")}


def _weights(weights: str) -> str:
    return weights if weights in ("pretrained", "random") else "/".join(Path(weights).parts[-2:])


def _common(plan: Plan) -> dict[str, str]:
    """The columns that say the same of every run: named once above the tables instead."""
    cells = [_cells(run) for run in plan.runs]
    candidates = ("model", "weights", "dataset", "seed")
    return {name: cells[0][name] for name in candidates if len({row[name] for row in cells}) == 1}


def _width(table: Table, console: Console) -> int:
    """Columns that a table takes where there are as many as it likes."""
    return console.measure(table, options=console.options.update(width=UNLIMITED)).maximum


def _group(jobs: Jobs, runs: list[PlannedRun], common: dict[str, str], with_id: bool) -> Table:
    table = Table(
        title=escape(request_text(jobs.first)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        pad_edge=False,
    )
    columns = [
        name for name in dict.fromkeys(name for run in runs for name in _cells(run)) if name not in common
    ]
    for name in columns:
        # On a narrow terminal words are broken, because a column that is cut says nothing.
        justify: JustifyMethod = "right" if name in ("seed", "images", "objects") else "left"
        table.add_column(escape(name), justify=justify, overflow="fold")
    if with_id:
        table.add_column("run", overflow="fold")
    table.add_column("", overflow="fold")
    for run in runs:
        cells = _cells(run)
        note = f" ({run.note})" if run.note else ""
        table.add_row(
            *(escape(cells.get(name, "")) for name in columns),
            *([run.run_id.rsplit("-", 1)[1]] if with_id else []),
            escape(_WORDS[run.plan_state] + note),
        )
    return table


def _overrides(overrides: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())
