"""A sweep before submission: every run and its request, what is done already, what is invalid and why.

Planning reads configuration files and records, and writes nothing.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from refsam.configuration.compose import Composer
from refsam.configuration.evaluation_place import evaluation_resource
from refsam.configuration.frozen import from_values
from refsam.configuration.patch_pool import with_patch_pool
from refsam.configuration.paths import with_absolute_paths
from refsam.configuration.schema import (
    AUTO,
    DatasetConfig,
    EvaluateConfig,
    Kind,
    ModelConfig,
    RefsamConfig,
    ResourceConfig,
)
from refsam.configuration.split import (
    LEAST_TEST_IMAGES,
    SEEDED,
    n_test_images,
    of_folds,
    split_sizes,
    with_all_images,
)
from refsam.configuration.text_values import split_override
from refsam.datasets.index import ImageFacts, check_images, fingerprint, inspect
from refsam.datasets.listing import complete_pairs, count_images
from refsam.datasets.overview import Overview, in_folds, overview
from refsam.datasets.pair import DataMissing
from refsam.errors import ConfigError, Unreadable, os_reason
from refsam.models import hub_cache
from refsam.models.families import HUGGING_FACE
from refsam.models.strategies import DECODER
from refsam.models.weights_file import architecture_problem, weights_problem
from refsam.orchestration.planning.checks import check_values, combination_problem, excluded, missing_setting
from refsam.orchestration.planning.fetched import no_weights, weights_not_fetched
from refsam.orchestration.planning.one_name import add, check_recorded, other_settings
from refsam.orchestration.slurm.questions import SlurmQuery, statuses
from refsam.records.identity import file_hash, identity, run_id
from refsam.records.measurements import missing
from refsam.records.metrics import MetricsRow, read_metrics
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.run import Run
from refsam.records.settings import Setting, differing, labels, setting_values
from refsam.records.status import OPEN, State, Status, is_held
from refsam.system.files import read_yaml_sections

# The configuration of a run that was asked for, and the overrides that the sweep varies.
_Asked = tuple[RefsamConfig, dict[str, str]]


class PlanState(StrEnum):
    """What a run that is asked for still needs."""

    new = "new"
    resume = "resume"  # it was interrupted or failed, and goes on from its last checkpoint
    evaluate = "evaluate"  # trained; an evaluation mode is missing
    pending = "pending"  # in Slurm's queue
    running = "running"  # in another process, or in a Slurm job
    done = "done"
    unreadable = "unreadable"  # its record cannot be read now, or its configuration was changed


@dataclass(frozen=True)
class PlannedRun(Run):
    """One run of a plan.

    Attributes:
        overrides: those that the sweep varies.
        note: in one sentence, why.
        fields: of the configuration that tell it apart from others of the plan.
    """

    overrides: dict[str, str]
    plan_state: PlanState
    note: str
    fields: Setting

    @property
    def todo(self) -> bool:
        return self.plan_state in (PlanState.new, PlanState.resume, PlanState.evaluate)


@dataclass(frozen=True)
class Skipped:
    """A combination that cannot run, or that `exclude` leaves out."""

    overrides: dict[str, str]
    reason: str
    is_excluded: bool = False


@dataclass(frozen=True)
class Plan:
    """All that one command asked for."""

    name: str
    command: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    skipped: tuple[Skipped, ...]
    jobs: tuple[tuple[str, ...], ...]  # the runs of each job that was asked for, in order; none: left out
    missing: tuple[str, ...]  # what has to be fetched before anything can be submitted, one sentence each
    problems: tuple[str, ...]  # why the state of runs in Slurm may be old, one sentence each
    notes: tuple[str, ...]  # what looks wrong and may be right, one sentence each
    folder: RunsFolder
    datasets: tuple[Overview, ...]  # that runs use and that are there

    @property
    def todo(self) -> tuple[PlannedRun, ...]:
        return tuple(run for run in self.runs if run.todo)

    @property
    def open(self) -> tuple[PlannedRun, ...]:
        """The runs without a result: to do, or on their way."""
        closed = (PlanState.done, PlanState.unreadable)
        return tuple(run for run in self.runs if run.plan_state not in closed)


@dataclass
class Planner:
    """Plans the runs of one command; reads each data set and checkpoint once.

    Args:
        cache: folder for facts about images, which are read once per file.
    """

    composer: Composer
    cache: Path
    query: SlurmQuery = field(default_factory=SlurmQuery)
    _data: dict[str, "_Data | ConfigError"] = field(default_factory=dict)
    _hashes: dict[Path, str] = field(default_factory=dict)
    _weights: dict[str, str | None] = field(default_factory=dict)
    _mismatches: dict[str, str | None] = field(default_factory=dict)
    _places: dict[str, ResourceConfig | None] = field(default_factory=dict)
    _image_problems: dict[tuple[object, ...], str | None] = field(default_factory=dict)

    def plan(self, jobs: Sequence[Sequence[str]], command: Sequence[str], name: str | None) -> Plan:
        """The plan of all `jobs` (each a list of overrides).

        Raises ConfigError for a value that no run can have, for a sweep without any valid run, and for the
        first invalid run where `on_invalid=error`; hydra's errors for what cannot be composed.
        """
        if not jobs:
            raise ConfigError("the sweep is empty: give at least one value for every key that is swept over")
        varied = _varied(jobs)
        asked: list[list[_Asked]] = []  # of each job: one, or all of its folds
        skipped: list[Skipped] = []
        first: RefsamConfig | None = None
        for job in jobs:
            overrides = {key: value for key, value in map(split_override, job) if key in varied}
            config, problem = self._resolve(job)
            first = first or config
            without = None if problem is not None else excluded(config)
            asked.append([] if problem or without else list(_folds(config, overrides)))
            if reason := problem or without:
                skipped.append(Skipped(overrides, reason, is_excluded=problem is None))
        assert first is not None
        valid = [item for of_job in asked for item in of_job]
        _refuse(valid, skipped, first)
        folder = RunsFolder(_folder(first.runs))
        runs: dict[str, _Asked] = {}
        for baseline in _baselines(valid):
            add(runs, self._run_id(baseline[0]), baseline)
        of_jobs = [tuple(self._run_id(config) for config, _ in of_job) for of_job in asked]
        for name_of_run, item in zip((run for ids in of_jobs for run in ids), valid, strict=True):
            add(runs, name_of_run, item)
        check_recorded(runs, folder)
        known, answer = statuses(folder, list(runs), self.query)
        configs = {run: self._with_contents(config) for run, (config, _) in runs.items()}
        settings = {run: setting_values(config) for run, config in configs.items()}
        names, parts = labels(settings), differing(list(settings.values()))
        sweep = name or first.name or _sweep_name(runs)
        return Plan(
            name=sweep,
            command=tuple(command),
            runs=tuple(
                PlannedRun(
                    run,
                    configs[run],
                    names[run],
                    overrides,
                    *plan_state_of(folder.run(run), configs[run].evaluate, known[run]),
                    part,
                )
                for (run, (_, overrides)), part in zip(runs.items(), parts, strict=True)
            ),
            skipped=tuple(skipped),
            jobs=tuple(of_jobs),
            missing=tuple(dict.fromkeys(self._missing(config for config, _ in valid))),
            problems=answer.problems,
            notes=(
                *other_settings(sweep, folder, settings),
                *self._few_test_images(configs.values()),
                *self._idle_images(configs.values()),
            ),
            folder=folder,
            datasets=tuple(self._overviews(config for config, _ in valid)),
        )

    def _resolve(self, job: Sequence[str]) -> tuple[RefsamConfig, str | None]:
        """The configuration with `auto` replaced and paths made absolute, and why it cannot run (None: it
        can).
        """
        config = from_values(RefsamConfig, self.composer.values(job))
        check_values(config)
        setting = config.resource.settings.get(config.model.architecture)
        needs_setting = config.kind == Kind.finetuning and AUTO in (config.peft.name, config.n_objects)
        problem = missing_setting(config) if needs_setting and setting is None else None
        strategy = DECODER if config.train.train == DECODER else setting and setting.peft
        if strategy is not None and config.peft.name == AUTO:
            others = [override for override in job if split_override(override)[0] != "peft"]
            config = from_values(RefsamConfig, self.composer.values([*others, f"peft={strategy}"]))
        if config.peft.name == DECODER:
            config = replace(config, train=replace(config.train, train=DECODER))
        if setting is not None and config.n_objects == AUTO:
            config = replace(config, n_objects=setting.n_objects)
        place = self._evaluation_resource(config.evaluate.where, job)
        config = replace(config, evaluate=replace(config.evaluate, resource=place))
        config = with_patch_pool(with_absolute_paths(config))
        problem = problem or self._data_problem(config) or self._architecture_problem(config.model)
        if problem is None:
            data = self._data_of(config.dataset)
            config = with_all_images(config, data.total, data.names)
        return config, problem

    def _evaluation_resource(self, where: str, job: Sequence[str]) -> ResourceConfig | None:
        """As its file says: what is given as `resource.…` is meant for the training."""
        if where not in self._places:
            others = [override for override in job if split_override(override)[0].split(".")[0] != "resource"]
            self._places[where] = evaluation_resource(
                where, lambda chosen: from_values(RefsamConfig, self.composer.values([*others, chosen]))
            )
        return self._places[where]

    def _data_problem(self, config: RefsamConfig) -> str | None:
        """Why the run's data set is of no use to it. Data that is not there is no matter of one run."""
        try:
            data = self._data_of(config.dataset)
        except DataMissing:
            raise
        except ConfigError as error:
            return str(error)
        return combination_problem(config, data.total, data.names) or self._image_problem(config, data)

    def _data_of(self, dataset: DatasetConfig) -> "_Data":
        """What is there of a data set, looked at once. Raises ConfigError for what cannot be used."""
        key = repr(dataset)
        if key not in self._data:
            try:
                self._data[key] = self._look(dataset)
            except ConfigError as error:
                self._data[key] = error
        found = self._data[key]
        if isinstance(found, ConfigError):
            raise found
        return found

    def _look(self, dataset: DatasetConfig) -> "_Data":
        try:
            pairs = complete_pairs(dataset)
        except DataMissing as error:
            if dataset.version is None:
                raise
            return _Data(count_images(dataset), dataset.version, str(error))
        facts = inspect(pairs, dataset, self.cache)
        identified = fingerprint(dataset, self.cache, facts)
        return _Data(len(pairs), identified, None, facts, overview(dataset, pairs, facts))

    def _image_problem(self, config: RefsamConfig, data: "_Data") -> str | None:
        if data.facts is None:
            return None
        dataset, patch = config.dataset, tuple(config.train.patch_shape)
        key = (repr(dataset), patch)
        if key not in self._image_problems:
            try:
                check_images(dataset, data.facts, (patch[0], patch[1]))
                self._image_problems[key] = None
            except ConfigError as error:
                self._image_problems[key] = str(error)
        return self._image_problems[key]

    def _overviews(self, configs: Iterable[RefsamConfig]) -> Iterator[Overview]:
        used = {repr((each.dataset, each.evaluate.folds)): each for each in configs}
        for config in used.values():
            data, folds = self._data_of(config.dataset), config.evaluate.folds
            if data.overview is not None and data.names is not None:
                yield (
                    data.overview
                    if folds is None
                    else in_folds(data.overview, config.dataset, data.names, folds)
                )

    def _weights_hash(self, config: RefsamConfig) -> str | None:
        if config.model.weights in ("pretrained", "random"):
            return None
        path = Path(config.model.weights)
        if path not in self._hashes:
            if config.model.family == HUGGING_FACE and path.is_dir():
                hub_cache.require_model(path)
                self._hashes[path] = hub_cache.folder_hash(path)
            elif path.is_file():
                if sentence := weights_problem(path):
                    raise ConfigError(sentence)
                try:
                    self._hashes[path] = file_hash(path)
                except OSError as error:
                    raise ConfigError(
                        f"model.weights: {path} cannot be read ({os_reason(error)}); expected a file that "
                        "can be"
                    ) from error
            else:
                raise ConfigError(no_weights(config.model))
        return self._hashes[path]

    def _architecture_problem(self, model: ModelConfig) -> str | None:
        key = repr(model)
        if key not in self._mismatches:
            path = Path(model.weights)
            of_file = model.weights not in ("pretrained", "random") and path.is_file()
            self._mismatches[key] = architecture_problem(path, model) if of_file else None
        return self._mismatches[key]

    def _run_id(self, config: RefsamConfig) -> str:
        data = self._data_of(config.dataset)
        return run_id(config, identity(config, data.fingerprint, self._weights_hash(config)))

    def _few_test_images(self, configs: Iterable[RefsamConfig]) -> Iterator[str]:
        """A sentence for each data set of which too few images test for any difference to be told."""
        counts: dict[str, int] = {}
        totals: dict[str, int] = {}  # of data sets that can be split into folds
        for config in configs:
            dataset = config.dataset
            data = self._data_of(replace(dataset, fingerprint=None))
            if data.names is None:
                continue
            count = n_test_images(config, data.names)
            counts[dataset.name] = min(count, counts.get(dataset.name, count))
            evaluate = config.evaluate
            if (dataset.split, dataset.test) == (SEEDED, None) and not (
                evaluate.folds or evaluate.max_images
            ):
                totals[dataset.name] = len(data.names)
        for name, count in counts.items():
            if count < LEAST_TEST_IMAGES:
                images = "1 image tests" if count == 1 else f"{count} images test"
                total = totals.get(name, 0)
                way_out = f"; evaluate.folds=5 tests all {total}" if total >= LEAST_TEST_IMAGES else ""
                yield (
                    f"dataset={name}: only {images}; from fewer than {LEAST_TEST_IMAGES} no difference "
                    f"between settings is judged{way_out}"
                )

    def _idle_images(self, configs: Iterable[RefsamConfig]) -> Iterator[str]:
        """A sentence for each data set in folds of which no run trains on all images that a fold leaves."""
        most: dict[str, tuple[RefsamConfig, int]] = {}
        for config in configs:
            if config.evaluate.folds is not None and config.kind == Kind.finetuning:
                key = repr((replace(config.dataset, split_seed=None), config.evaluate.folds))
                most[key] = config, max(config.n_images, most.get(key, (config, 0))[1])
        for config, trained in most.values():
            names = self._data_of(replace(config.dataset, fingerprint=None)).names
            left = 0 if names is None else split_sizes(config.dataset, names, config.evaluate.folds)[0]
            if trained < left:
                yield (
                    f"dataset={config.dataset.name}: each of the {config.evaluate.folds} folds leaves {left} "
                    f"images to train on, and n_images={trained} takes {trained} of them"
                )

    def _with_contents(self, config: RefsamConfig) -> RefsamConfig:
        """With what identifies the data set and the checkpoint: other ones may take their places later."""
        dataset = replace(config.dataset, fingerprint=self._data_of(config.dataset).fingerprint)
        model = replace(config.model, weights_hash=self._weights_hash(config))
        return replace(config, dataset=dataset, model=model)

    def _missing(self, configs: Iterable[RefsamConfig]) -> Iterable[str]:
        for config in configs:
            data = self._data_of(config.dataset)
            if data.missing is not None:
                yield data.missing
            if config.model.weights == "pretrained" and (sentence := self._not_cached(config.model)):
                yield sentence

    def _not_cached(self, model: ModelConfig) -> str | None:
        key = repr(model)
        if key not in self._weights:
            self._weights[key] = weights_not_fetched(model)
        return self._weights[key]


@dataclass(frozen=True)
class _Data:
    total: int
    fingerprint: str
    missing: str | None
    facts: dict[str, ImageFacts] | None = None  # by the names of its images, where they are there
    overview: Overview | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        return None if self.facts is None else tuple(self.facts)


def _folds(config: RefsamConfig, overrides: dict[str, str]) -> Iterator[_Asked]:
    """What a job asks for: a run, or one for each fold."""
    if config.evaluate.folds is None or config.evaluate.fold is not None:
        yield config, overrides
        return
    for each in of_folds(config):
        yield each, {**overrides, "evaluate.fold": str(each.evaluate.fold)}


def _baselines(valid: Iterable[_Asked]) -> Iterator[_Asked]:
    """The initial model of every run, on the resource that comes first; equal ones collapse later."""
    for config, _ in valid:
        if config.kind == Kind.finetuning and config.baseline:
            yield replace(config, kind=Kind.baseline), {}


def plan_state_of(paths: RunPaths, evaluate: EvaluateConfig, status: Status) -> tuple[PlanState, str]:
    """What a run still needs, and a note for the plan.

    Args:
        status: from its record and from Slurm, see questions.statuses.
    """
    if status.state == State.unreadable:
        return PlanState.unreadable, status.message or ""
    if status.state == State.planned:
        if status.message is not None:  # nothing else leaves one in a run that has not begun
            return PlanState.resume, "its status.json is damaged and will be rewritten"
        return PlanState.new, ""
    if status.state == State.completed:
        try:
            read_yaml_sections(paths.config, "kind")
            rows = measured_rows(paths)
        except FileNotFoundError:
            rows = measured_rows(paths)  # of a run whose configuration is written again
        except ValueError as error:
            return PlanState.unreadable, str(error)
        absent = list(dict.fromkeys(wanted.mode for wanted in missing(evaluate, rows)))
        return (PlanState.evaluate, f"mode {', '.join(absent)}") if absent else (PlanState.done, "")
    if status.state in OPEN and status.job_id is not None:
        standing = PlanState.pending if status.state == State.pending else PlanState.running
        return standing, f"Slurm job {status.job_id}" + (f" on {status.host}" if status.host else "")
    if status.state in OPEN and is_held(paths):
        return PlanState.running, f"on {status.host}" if status.host else ""
    progress = (
        f"epoch {status.epoch} of {status.epochs}" if status.epoch is not None else "nothing trained yet"
    )
    reason = f"{status.reason}, " if status.reason else ""
    return PlanState.resume, f"{reason}{progress}"


def measured_rows(paths: RunPaths) -> list[MetricsRow]:
    """The rows of a run's metrics.json; none of a damaged one. Raises Unreadable."""
    try:
        return read_metrics(paths.metrics)
    except Unreadable:
        raise
    except (FileNotFoundError, ValueError):
        return []  # no usable metrics: they are measured again


def _folder(path: str) -> Path:
    root = Path(path)
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"runs={path}, but {existing} is a file; expected a folder")
    if not os.access(existing, os.R_OK | os.X_OK):
        raise ConfigError(f"runs={path}, but {existing} cannot be read; expected a folder that can be")
    return root


def _refuse(valid: Sequence[object], skipped: Sequence[Skipped], config: RefsamConfig) -> None:
    reasons = list(dict.fromkeys(item.reason for item in skipped if not item.is_excluded))
    if not reasons and not valid:
        raise ConfigError("exclude must leave something of the sweep, got a combination for each of its runs")
    if not reasons or (valid and config.on_invalid == "skip"):
        return
    more = (
        f" (and {len(reasons) - 1} more reasons; dry_run=true on_invalid=skip lists them)"
        if len(reasons) > 1
        else ""
    )
    raise ConfigError(reasons[0] + more)


def _varied(jobs: Sequence[Sequence[str]]) -> set[str]:
    """Keys that do not have the same value in all jobs."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in map(split_override, job):
            values.setdefault(key, set()).add(value)
    return {key for key, given in values.items() if len(given) > 1}


def _sweep_name(runs: Iterable[str]) -> str:
    """The same command asks for the same runs and finds its sweep again."""
    return "sweep-" + hashlib.sha256("\n".join(sorted(runs)).encode()).hexdigest()[:8]
