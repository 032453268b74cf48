"""One step in a process of its own under a limit of memory, or from the records of an earlier one."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import RefsamConfig
from refsam.errors import RunFailed
from refsam.orchestration import machine
from refsam.orchestration.fit.limits import CUDA, Ended, memory_limit
from refsam.orchestration.fit.requests import FREE_SHARE, FitRequest
from refsam.orchestration.fit.search import OutOfTime
from refsam.orchestration.in_job.job import thread_environment
from refsam.records.fits import FitsFolder, FitStep, StepMeasurement, StepOutcome
from refsam.system.files import read_json

SCIENCE = "refsam.science.fit"
RESULTS = ("message", "seconds", "peak_gib", "base_gib", "precision")  # that a measurement has as they are
STEP_SECONDS = 3600.0  # after which a step is given up; the largest take minutes on one core

Say = Callable[[str], None]


@dataclass
class Measurer:
    """Measures the steps of one request; call it with a Step.

    Args:
        known: what was measured before, by anybody on this hardware; new measurements are added.
        folder: where they are kept.
        deadline: time.monotonic after which no step is begun.

    Raises:
        OutOfTime: after the deadline.
        RunFailed: when a step ended with another error than a lack of memory.
    """

    request: FitRequest
    known: list[StepMeasurement]
    folder: FitsFolder
    say: Say
    deadline: float = float("inf")
    used: list[StepMeasurement] = field(default_factory=list)  # in the order in which they were asked for

    def __call__(self, step: FitStep) -> StepMeasurement:
        measured = self.look_up(step)
        before = measured is not None
        if measured is None:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            measured = self._run(step)
            self.folder.add_measurement(measured)
            self.known.append(measured)
        if measured in self.used:
            return measured
        self.used.append(measured)
        words = describe(measured, self.request.usable_gib)
        self.say(f"{self.request.label}: {words}{', known' if before else ''}")
        return measured

    @property
    def threads(self) -> int:
        return min(self.request.config.resource.request.cores, machine.cores())

    def look_up(self, step: FitStep) -> StepMeasurement | None:
        """What earlier measurements under this or another limit say about the step here, if anything."""
        usable_gib = self.request.usable_gib
        for measured in self.known:
            same = (measured.setup, measured.step, measured.hardware, measured.threads)
            if same != (self.request.setup, step, self.request.hardware, self.threads):
                continue
            if measured.outcome is StepOutcome.out_of_memory and measured.limit_gib >= usable_gib:
                return measured
            if measured.outcome is StepOutcome.fits and measured.peak_gib is not None:
                if min(measured.limit_gib, measured.peak_gib) <= usable_gib:
                    return measured
                if self.request.setup.device != CUDA:
                    # A GPU's allocator may do with less than it took; what a process had in memory, it needs.
                    return replace(measured, outcome=StepOutcome.out_of_memory)
        return None

    def _run(self, step: FitStep) -> StepMeasurement:
        on_gpu = self.request.setup.device == CUDA
        limit = None if on_gpu else self._main_memory()
        with tempfile.TemporaryDirectory(prefix="refsam-fit-") as name, memory_limit(limit) as limited:
            folder = Path(name)
            freeze(folder / "config.yaml", configured(self.request.config, step))
            files = (str(folder / "config.yaml"), str(folder / "result.json"))
            command = [sys.executable, "-m", SCIENCE, *files]
            environment = {**os.environ, **thread_environment(self.threads)}
            if on_gpu:
                command += ["--gpu-gib", str(self.request.usable_gib)]
            else:
                environment["CUDA_VISIBLE_DEVICES"] = ""
            ended = limited.run(command, environment, folder / "log", STEP_SECONDS)
            result = self._result(folder, ended)
            return StepMeasurement(
                setup=self.request.setup,
                step=step,
                hardware=self.request.hardware,
                threads=self.threads,
                limit_gib=self.request.usable_gib,
                limited_by=CUDA if on_gpu else limited.kind,
                outcome=StepOutcome(result["outcome"]),
                **{name: result.get(name) for name in RESULTS},
                versions=result.get("versions", {}),
            )

    def _main_memory(self) -> float:
        """The limit in GiB. Raises RunFailed where others have taken so much that nothing would follow."""
        free = FREE_SHARE * machine.memory_available_gb()
        usable_gib = self.request.usable_gib
        if free < usable_gib:
            raise RunFailed(
                f"{self.request.label}: a step may take {usable_gib:.1f} GiB, and {free:.1f} GiB are "
                "free now; close other programs or give a smaller --limit-gb, and the same command goes on "
                "from here"
            )
        return usable_gib

    def _result(self, folder: Path, ended: Ended) -> dict[str, Any]:
        try:
            result: dict[str, Any] = read_json(folder / "result.json")
        except FileNotFoundError:
            if ended.killed_for_memory:
                return {"outcome": StepOutcome.out_of_memory, "message": "killed by the kernel"}
            log = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            how = "took too long" if ended.timed_out else f"ended with status {ended.status}"
            raise RunFailed(f"{self.request.label}: a step {how}: {log[-1] if log else 'no word'}") from None
        return result


def configured(config: RefsamConfig, step: FitStep) -> RefsamConfig:
    """The configuration of a run that computes `step`."""
    train = replace(config.train, engine=step.engine, n_sub_iterations=step.n_sub_iterations)
    if step.object_chunk is None:  # micro-sam's own step has none of the options
        train = replace(train, joint="separate", optimizer_in_backward=False)
    else:
        train = replace(
            train,
            object_chunk=step.object_chunk,
            checkpoint_encoder="on" if step.checkpoint_encoder else "off",
            checkpoint_decoder="on" if step.checkpoint_decoder else "off",
        )
    return replace(config, n_objects=step.n_objects, train=train)


def describe(measured: StepMeasurement, usable_gib: float) -> str:
    """One line for a person."""
    step = measured.step
    parts = [f"{step.engine}, {step.n_objects} objects, {step.n_sub_iterations} sub-iterations"]
    if step.object_chunk is not None:
        parts.append(f"chunk {step.object_chunk}")
    checkpointed = [name for name in ("encoder", "decoder") if getattr(step, f"checkpoint_{name}")]
    if checkpointed:
        parts.append(f"{' and '.join(checkpointed)} checkpointed")
    if measured.outcome is StepOutcome.fits and measured.peak_gib is not None:
        parts.append(f"{measured.peak_gib:.1f} of {usable_gib:.1f} GiB")
        if measured.seconds is not None:
            parts.append(f"{measured.seconds:.1f} s")
    elif measured.peak_gib is not None:
        parts.append(f"{measured.peak_gib:.1f} GiB do not fit into {usable_gib:.1f} GiB")
    else:
        parts.append(f"does not fit into {usable_gib:.1f} GiB")
    return ", ".join(parts)
