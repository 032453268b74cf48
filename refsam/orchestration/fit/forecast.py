"""What a step takes, counted on fake tensors in another process, in place of measuring it.

Forecaster stands where Measurer does, so the same search finds what fits, and a forecast is a Fit whose
`limited_by` is `forecast`: all that uses fits uses it where nothing was measured.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import refsam
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import AUTO, Precision, RefsamConfig
from refsam.errors import RunFailed
from refsam.orchestration.fit.measure import Say, configured, describe
from refsam.orchestration.fit.requests import CPU, CUDA, FitRequest, LeftOut, problem_of, stated_memory
from refsam.records.fits import FORECAST, FitsFolder, FitStep, Setup, StepMeasurement, StepOutcome

SCIENCE = "refsam.science.forecast"
NO_MACHINE = "no machine"
VERSIONS = {"refsam": refsam.__version__}
BFLOAT16_SINCE = 8.0  # compute capability of GPUs that `train.precision=auto` takes it on
COUNTED_OBJECTS = (1, 8, 45)  # of micro-sam's step, between which lines are drawn
FEW_SUB_ITERATIONS = 2  # of refsam's step: it holds no more of eight


class Counter(AbstractContextManager["Counter"]):
    """The process that counts, started by the first question; its answers are kept as measurements are.

    Args:
        folder: where they are kept.
        again: whether to count also what this version of refsam has counted before.
    """

    def __init__(self, folder: FitsFolder, again: bool) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = folder
        self._known: dict[tuple[Setup, FitStep], float] = {}
        for counted in [] if again else folder.read_measurements():
            if counted.limited_by == FORECAST and counted.versions == VERSIONS:
                self._known[counted.setup, counted.step] = counted.peak_gib or 0.0

    def __exit__(self, *failure: object) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    def peak_gib(self, request: FitRequest, step: FitStep) -> float:
        """The most memory that a step takes.

        Raises:
            RunFailed: where it cannot be counted.
        """
        key = (request.setup, step)
        if key not in self._known:
            peak = self._count(request.config, request.setup, step)
            self._folder.add_measurement(_as_measurement(request, step, peak, peak))
            self._known[key] = peak
        return self._known[key]

    def _count(self, config: RefsamConfig, setup: Setup, step: FitStep) -> float:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", SCIENCE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # ended with the fork that counts
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="refsam-forecast-") as folder:
            path = Path(folder) / "config.yaml"
            freeze(path, configured(config, step))
            try:
                self._process.stdin.write(f"{path} {setup.device}\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process that counts has ended"}
        if "error" in answer:
            raise RunFailed(
                f"{config.model.name}, {config.peft.name}: no forecast of this step ({answer['error']}); "
                "measure it with refsam fit on the resource"
            )
        return float(answer["peak_gib"])


@dataclass
class Forecaster:
    """Counts the steps of one request; call it with a FitStep, as a Measurer.

    Of micro-sam's step a few numbers of objects stand for all. Its peak is the largest of moments that grow
    with the objects and of others (the encoder's backward, the segmentation decoder): a line between two
    numbers is never below it, and one that goes on from small numbers is.
    """

    request: FitRequest
    counter: Counter
    say: Say
    used: list[StepMeasurement] = field(default_factory=list)
    threads: int = 0

    def __call__(self, step: FitStep) -> StepMeasurement:
        measured = _as_measurement(self.request, step, self._peak_gib(step), self.request.usable_gib)
        if measured not in self.used:
            self.used.append(measured)
            self.say(f"{self.request.label}: {describe(measured, self.request.usable_gib)}, forecast")
        return measured

    def _peak_gib(self, step: FitStep) -> float:
        if step.engine == "refsam":
            step = replace(step, n_sub_iterations=min(FEW_SUB_ITERATIONS, step.n_sub_iterations))
            return self.counter.peak_gib(self.request, step)
        number = step.n_objects
        below = max((each for each in COUNTED_OBJECTS if each <= number), default=number)
        above = min((each for each in COUNTED_OBJECTS if each >= number), default=number)
        first, second = (
            self.counter.peak_gib(self.request, replace(step, n_objects=each)) for each in (below, above)
        )
        return first + (second - first) / max(1, above - below) * (number - below)


def _as_measurement(request: FitRequest, step: FitStep, peak_gib: float, limit_gib: float) -> StepMeasurement:
    return StepMeasurement(
        setup=request.setup,
        step=step,
        hardware=request.hardware,
        threads=0,
        limit_gib=limit_gib,
        limited_by=FORECAST,
        outcome=StepOutcome.fits if peak_gib <= limit_gib else StepOutcome.out_of_memory,
        peak_gib=peak_gib,
        precision=request.setup.precision,
        versions=VERSIONS,
    )


def _precisions(config: RefsamConfig) -> tuple[Precision, ...]:
    """In which a step is forecast: in both that `auto` may take where the GPU is not known."""
    if config.train.precision != AUTO:
        return (Precision(config.train.precision),)
    capability = config.resource.compute_capability
    if config.resource.device != CUDA or capability is None:
        return (Precision.float32, Precision.bfloat16)
    return (Precision.bfloat16 if capability >= BFLOAT16_SINCE else Precision.float32,)


def forecast_requests(
    combinations: Sequence[tuple[tuple[str, ...], RefsamConfig]], limit_gib: float | None
) -> tuple[list[FitRequest], list[LeftOut]]:
    """One request for each combination and precision that it may be computed in, and what none is made of."""
    requests: list[FitRequest] = []
    left_out: list[LeftOut] = []
    for overrides, config in combinations:
        device = CUDA if config.resource.device == CUDA else CPU
        memory = limit_gib or stated_memory(config, device)
        problem = problem_of(config)
        if problem is None and memory is None:
            problem = f"resource={config.resource.name} says no memory; give it with --limit-gb"
        if problem is not None or memory is None:
            left_out.append(LeftOut(overrides, problem or ""))
            continue
        for precision in _precisions(config):
            chosen = replace(config, train=replace(config.train, precision=precision))
            requests.append(
                FitRequest(
                    config=chosen,
                    overrides=overrides,
                    setup=Setup.of(chosen, device),
                    memory_gib=float(memory),
                    simulated=True,
                    hardware=NO_MACHINE,
                )
            )
    return requests, left_out
