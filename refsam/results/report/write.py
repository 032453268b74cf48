"""Put the report together and write it."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

import refsam
from refsam.records.paths import Directories, RunsFolder, SweepPaths
from refsam.records.settings import ROOT
from refsam.records.status import now
from refsam.results.collect import damaged
from refsam.results.folds import join_folds
from refsam.results.report import origin
from refsam.results.report.comparisons import comparisons
from refsam.results.report.cost import SOURCE, Power, costs
from refsam.results.report.drawings import drawings
from refsam.results.report.failures import failures
from refsam.results.report.machine_paths import Shortened
from refsam.results.report.overview import about, bests, states
from refsam.results.report.pictures import pictures
from refsam.results.report.rows import FIRST, table_rows
from refsam.results.report.sources import asked_sweeps
from refsam.results.tables.table import constant_axes, varying_axes
from refsam.system.files import write_text

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Asked:
    """What a report is about.

    Attributes:
        frame: the rows of all sweeps, as refsam.results.collect.join returns them.
        directories: of the runs.
        output: where the report goes.
        problems: sentences about damaged manifests and conflicting results.
        paths: whether it names folders of this machine.
    """

    frame: pd.DataFrame
    directories: Directories
    sweeps: Sequence[tuple[SweepPaths, RunsFolder]]
    output: SweepPaths
    problems: Sequence[str]
    power: Power
    paths: bool = False


def write_report(asked: Asked) -> Path:
    """Replace report.html, atomically, and return its path.

    Raises as refsam.results.sweeps.read_manifest does.
    """
    asked.output.root.mkdir(parents=True, exist_ok=True)
    write_text(asked.output.report, render(asked))
    return asked.output.report


def render(asked: Asked) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template("page.html.jinja")
    facts = _facts(asked) if asked.paths else _shortened(asked).facts(_facts(asked))
    return page.render(**facts, policy=policy, style=style, script=script)


def _shortened(asked: Asked) -> Shortened:
    roots = asked.frame[ROOT].dropna() if ROOT in asked.frame else ()
    return Shortened((folder.root for _, folder in asked.sweeps), map(str, roots))


def _facts(asked: Asked) -> dict[str, Any]:
    """What the template shows, section by section."""
    frame = asked.frame
    joined = join_folds(frame)
    shown = joined.frame
    tables = comparisons(shown)
    runs = asked.directories
    failed = failures(frame, runs)
    models = frame.dropna(subset=["run_id", "model"]).drop_duplicates("run_id")
    return {
        "title": ", ".join(dict.fromkeys(sweep.name for sweep, _ in asked.sweeps)),
        "made_by": f"refsam {refsam.__version__}",
        "made_at": now(),
        "csv": asked.output.results.name,
        "paths": asked.paths,
        "about": about(frame),
        "sweeps": asked_sweeps(asked.sweeps),
        "n_runs": len(runs),
        "states": states(frame),
        "bests": bests(shown),
        "is_measured": bool(frame["mode"].notna().any()),
        "is_completed": bool((frame["status"] == "completed").any()),
        "damaged": damaged(frame),
        "problems": list(asked.problems),
        "failures": failed,
        "drawings": drawings(shown, runs),
        "comparisons": replace(tables, notes=[*tables.notes, *(f"{each}." for each in joined.sentences)]),
        "constant": constant_axes(frame, varying_axes(frame)),
        "rows": table_rows(frame, {each.run_id: each.anchor for each in failed.shown}),
        "first_rows": FIRST,
        "pictures": pictures(shown, runs),
        "cost": costs(frame, runs, asked.power),
        "cost_source": SOURCE,
        "configuration": origin.configuration(runs.values()),
        "environments": origin.environments(runs, dict(zip(models["run_id"], models["model"], strict=True))),
    }


def _hash(text: str) -> str:
    """How a Content-Security-Policy names the one style or script that it allows."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
