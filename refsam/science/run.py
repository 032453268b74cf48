"""One run, from its frozen configuration to its results: `python -m refsam.science.run RUN_DIRECTORY`.

This is what a job executes. It holds the run's lock, keeps status.json up to date, does only what the record
says is missing, and leaves the reason in the record when it fails.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from refsam.configuration.frozen import load
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.errors import BadInput
from refsam.records.files import write_json
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, Status, now, read_status, run_lock, write_status
from refsam.science.data import test_images, training_loaders
from refsam.science.environment import describe_environment
from refsam.science.evaluation import evaluate, missing_modes
from refsam.science.hardware import choose_device
from refsam.science.models import initial_predictor, load_predictor
from refsam.science.randomness import be_deterministic, seed_everything
from refsam.science.trainers import Progress
from refsam.science.training import train

SECONDS_BETWEEN_WRITES = 1.0
MESSAGE_LENGTH = 300
# What torch's allocators for main memory say, in a plain RuntimeError.
ALLOCATION_FAILURES = ("not enough memory", "can't allocate memory", "Cannot allocate memory")


class StatusWriter:
    """Writes status.json of the run that this process holds, between transitions once a second at most."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        try:
            before = read_status(paths)
        except ValueError:
            before = Status()  # damaged, and about to be replaced
        # The submitter counts the attempt when it writes `pending`; without a submitter it is counted here.
        attempt = before.attempt if before.state is State.pending else before.attempt + 1
        self._status = Status(
            state=State.running,
            attempt=attempt,
            job_id=_job_id() or before.job_id,
            host=os.uname().nodename,
            pid=os.getpid(),
            phase="loading",
            submitted_at=before.submitted_at,
            started_at=now(),
        )
        self._written = 0.0
        self.transition()

    def transition(self, **changes: Any) -> None:
        """Change the status and write it now."""
        self._status = self._status.changed(**changes)
        write_status(self._paths, self._status)
        self._written = time.monotonic()

    def update(self, **changes: Any) -> None:
        """Change the status, and write it unless that was done within the last second."""
        self._status = self._status.changed(**changes)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.transition()

    def training(self, progress: Progress) -> None:
        """The report of the training."""
        self.update(
            phase=progress.phase,
            epoch=progress.epoch,
            epochs=progress.epochs,
            best_epoch=progress.best_epoch,
            best_metric=progress.best_metric,
            loss=progress.loss,
            seconds_left=progress.seconds_left,
        )

    def evaluation(self, phase: str, done: int, total: int) -> None:
        """The report of the evaluation, after `done` of `total` images."""
        if self._status.phase != phase:
            self._evaluation_started = time.monotonic()
            self.transition(phase=phase, seconds_left=None)
        if done:
            seconds = (time.monotonic() - self._evaluation_started) / done
            self.update(seconds_left=seconds * (total - done))

    def completed(self) -> None:
        self.transition(state=State.completed, phase=None, seconds_left=None, ended_at=now())

    def failed(self, reason: Reason, message: str) -> None:
        self.transition(state=State.failed, reason=reason, message=message, seconds_left=None, ended_at=now())


def execute(root: Path) -> None:
    """Run the run in the directory `root` to its end, from wherever its record says it is.

    Whatever makes the run fail is written to its status and raised again, so that the job ends with an error
    and its log has the traceback.

    Raises:
        AlreadyRunning: when another process holds the run.
        KeyboardInterrupt: when the process was asked to stop; the run can be continued.
    """
    paths = RunPaths(root)
    with run_lock(paths):
        status = StatusWriter(paths)
        try:
            _execute(load(paths.config), paths, status)
        except BaseException as error:
            status.failed(*_reason_and_message(error))
            raise
        status.completed()


def _execute(config: RefsamConfig, paths: RunPaths, status: StatusWriter) -> None:
    if "REFSAM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["REFSAM_THREADS"]))
    be_deterministic()
    seed_everything(config.seed, "run")
    device = choose_device(config)
    status.transition(device=str(device))
    paths.results.mkdir(parents=True, exist_ok=True)
    trained = config.kind is Kind.baseline or paths.training.exists()
    # What trained the model is kept when only an evaluation is made up for, perhaps on another machine.
    if not (paths.training.exists() and paths.environment.exists()):
        write_json(paths.environment, describe_environment(config, device))
    if not trained:
        train(config, paths, training_loaders(config), status.training)
    if missing_modes(config, paths):
        if config.kind is Kind.baseline:
            predictor = initial_predictor(config.model, config.seed, device)[0]
        else:
            predictor = load_predictor(paths.best, config.model, device)[0]
        evaluate(config, predictor, test_images(config), paths, status.evaluation)


def _reason_and_message(error: BaseException) -> tuple[Reason, str]:
    if isinstance(error, KeyboardInterrupt):
        return Reason.cancelled, "The run was stopped; the same command continues it."
    if _is_out_of_memory(error):
        return Reason.out_of_memory, f"The memory did not suffice: {_first_line(error)}"
    if isinstance(error, BadInput):
        return Reason.error, str(error)
    return Reason.error, f"{type(error).__name__}: {_first_line(error)}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_FAILURES)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:MESSAGE_LENGTH]


def _job_id() -> str | None:
    """The job's name for Slurm, as sacct and scancel take it; None outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Only the first one interrupts: a second must not break into the writing of the last status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("SIGTERM")


def main() -> None:
    """The command line: one argument, the run directory. Without submitit, SIGTERM is answered here."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m refsam.science.run RUN_DIRECTORY")
    signal.signal(signal.SIGTERM, _interrupt)
    execute(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
