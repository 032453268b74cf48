"""Before anything is submitted: everything that is missing, in one list. Writes nothing but a probe."""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refsam.configuration.evaluation_place import used_resources
from refsam.configuration.schema import ClusterConfig, RefsamConfig
from refsam.datasets.coco import left_out
from refsam.datasets.pair import COCO
from refsam.errors import ConfigError, SlurmUnavailable, os_reason
from refsam.models.families import HUGGING_FACE
from refsam.orchestration import machine
from refsam.orchestration.planning.checkpoint_room import room_needed
from refsam.orchestration.planning.kernels import kernels_problem
from refsam.orchestration.planning.plan import Plan
from refsam.orchestration.slurm import site
from refsam.orchestration.slurm.requests import by_jobs
from refsam.records.paths import RunsFolder
from refsam.records.run import Run

# Modules that every run imports, with the packages that bring them.
MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torch_em": "torch-em",
    "micro_sam": "micro-sam",
    "segment_anything": "segment-anything-py",
    "elf": "python-elf",
    "submitit": "submitit",
}
# Modules that an architecture needs besides.
OF_ARCHITECTURES = {"vit_t": {"mobile_sam": "mobilesam-mirror"}}
# Modules that a family needs besides.
OF_FAMILIES = {HUGGING_FACE: {"transformers": "transformers", "huggingface_hub": "huggingface-hub"}}
GB = 1000**3


@dataclass(frozen=True)
class Preflight:
    """What was found: problems that have to be solved first, and notes on what could not be looked at."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def extended(self, problems: Sequence[str]) -> "Preflight":
        """With further problems, each said once."""
        return replace(self, problems=tuple(dict.fromkeys([*self.problems, *problems])))

    def check(self) -> None:
        """Raise ConfigError that names all problems."""
        if len(self.problems) == 1:
            raise ConfigError(self.problems[0])
        if self.problems:
            lines = "".join(f"\n  - {sentence}" for sentence in self.problems)
            raise ConfigError(f"{len(self.problems)} things are in the way:{lines}")


def preflight(plan: Plan, on_slurm: bool) -> Preflight:
    """Look at all that the runs to do need: data, weights, packages, room for checkpoints, and the site."""
    found = preflight_of(plan.todo, plan.folder, plan.missing, on_slurm, plan.runs[0].config.cluster)
    warnings = [warning for dataset in plan.datasets for warning in dataset.warnings]
    return replace(found, notes=(*plan.notes, *_left_out(plan), *warnings, *found.notes))


def preflight_of(
    runs: Sequence[Run], folder: RunsFolder, missing: Sequence[str], on_slurm: bool, cluster: ClusterConfig
) -> Preflight:
    """The same for runs that may be frozen, whose data or weights are `missing` as these sentences say."""
    configs = [run.config for run in runs]
    problems = [*missing, *_missing_modules(configs)]
    new = [run.config for run in runs if not folder.run(run.run_id).latest.exists()]
    problems += _folder_problems(folder, room_needed(new))
    notes: list[str] = []
    if on_slurm and not cluster.script_only and shutil.which("sbatch") is None:
        problems.append(
            f"cluster.kind={cluster.kind}, but there is no sbatch on this "
            "machine; use cluster=local, or give the same command on a login node"
        )
    elif on_slurm:
        of_site, notes = _request_problems(runs, folder, cluster)
        problems += of_site
        asked = (kernels_problem(each) for config in configs for each in used_resources(config))
        without_kernels = [problem for problem in asked if problem is not None]
        # A job starts the Python that submits it; scripts may be carried to another machine.
        (notes if cluster.script_only else problems).extend(dict.fromkeys(without_kernels))
    return Preflight(tuple(dict.fromkeys(problems)), tuple(notes))


def machine_problem(plan: Plan) -> str | None:
    """Why this machine is not the resource that a run asks for, where that was not asked for explicitly."""
    if plan.runs[0].config.cluster.explicit:
        return None
    problems = (machine.matches(each) for run in plan.todo for each in used_resources(run.config))
    return next((problem for problem in problems if problem is not None), None)


def _left_out(plan: Plan) -> list[str]:
    """What of annotated data sets that are there cannot be used, a sentence for each data set."""
    annotated = {
        repr(run.config.dataset): run.config.dataset
        for run in plan.runs
        if run.config.dataset.format == COCO and Path(run.config.dataset.root).is_dir()
    }
    if not annotated:
        return []
    sentences = (left_out(dataset) for dataset in annotated.values())
    return [sentence for sentence in sentences if sentence is not None]


def _missing_modules(configs: Iterable[RefsamConfig]) -> list[str]:
    """Jobs run in the Python that submits them, so what is not importable here is not there either."""
    needed: dict[str, str] = {}
    for config in configs:
        model = config.model
        needed |= MODULES | OF_ARCHITECTURES.get(model.architecture, {}) | OF_FAMILIES.get(model.family, {})
    return [
        f"{sys.executable} has no module {module}, which the runs import; install {package}"
        for module, package in needed.items()
        if importlib.util.find_spec(module) is None
    ]


def _folder_problems(folder: RunsFolder, needed: int) -> list[str]:
    existing = next(parent for parent in (folder.root, *folder.root.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return [
            f"runs={folder.root}, but it cannot be written ({os_reason(error)}); expected a "
            "folder that can be"
        ]
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return []
    return [
        f"runs: {folder.root} has {free / GB:.1f} GB free, and the checkpoints of the runs to do take about "
        f"{needed / GB:.1f} GB"
    ]


def _request_problems(
    runs: Sequence[Run], folder: RunsFolder, cluster: ClusterConfig
) -> tuple[list[str], list[str]]:
    requests = [request for jobs, _ in by_jobs(runs, folder) for request in jobs.requests]
    notes = []
    try:
        partitions, nodes = site.partitions(), site.nodes()
        found = [site.request_problem(request, partitions, nodes) for request in requests]
    except SlurmUnavailable as error:
        found = [site.unasked_problem(request, cluster) for request in requests]
        but = "but for its time " if cluster.max_times else ""
        notes = [f"scontrol does not answer ({error}): what is asked of Slurm is not checked {but}".rstrip()]
    return [problem for problem in found if problem is not None], notes
