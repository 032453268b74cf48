"""One run, from its frozen configuration to its results.

This is what a job executes. It holds the run's lock, keeps status.json up to date, does only what the record
says is missing, and leaves the reason in the record when it fails.
"""

import errno
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from refsam.configuration.frozen import load, with_settings
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.errors import ConfigError
from refsam.records import endings
from refsam.records.attempts import free_number, parse_attempt, read_attempt
from refsam.records.endings import Ending, failed
from refsam.records.paths import RunPaths
from refsam.records.recovery import read_record
from refsam.records.status import TRAINED, State, hold_reserve, now, run_lock, write_status
from refsam.science.data import test_images, training_loaders, validation_images
from refsam.science.environment import describe_environment
from refsam.science.evaluation import evaluate, unmeasured
from refsam.science.hardware import choose_device, is_out_of_memory, release_memory
from refsam.science.randomness import be_deterministic, let_kernels_be_fast, seed_everything
from refsam.science.strategies.opening import predictor_and_decoder
from refsam.science.training.build import train
from refsam.science.training.recorder import Diverged, Progress
from refsam.system import own_job, signals
from refsam.system.files import write_json

SECONDS_BETWEEN_WRITES = 1.0
MESSAGE_LENGTH = 300
KILLED_WORKER = r"DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly)"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StatusWriter:
    """Writes status.json of the run that this process holds, between transitions once a second at most."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        before = read_record(paths)
        # Who has begun the attempt has counted it; without anybody it is counted here.
        begun = read_attempt(paths, before.attempt)
        goes_on = before.state is State.pending or (begun.started_at and not begun.ended_at)
        attempt = before.attempt if goes_on else free_number(paths, before.attempt + 1)
        self._status = before.again(
            state=State.running,
            attempt=attempt,
            job_id=own_job.job_id(),
            job_name=own_job.job_name(),
            evaluation_job_id=before.evaluation_job_id,
            host=own_job.host(),
            pid=os.getpid(),
            phase="loading",
            submitted_at=before.submitted_at,
            started_at=now(),
        )
        self._written = 0.0
        self.transition()

    @property
    def attempt(self) -> int:
        return self._status.attempt

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
            phase="training",
            epoch=progress.epoch,
            epochs=progress.epochs,
            steps=progress.saved,
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

    def trained(self) -> None:
        """The last word of a run that another job evaluates."""
        self._last_word(phase=TRAINED)

    def completed(self) -> None:
        self._last_word(state=State.completed, phase=None, ended_at=now())

    def failed(self, ending: Ending, **facts: object) -> None:
        self._status = failed(self._status, ending, **facts)
        self._last_word()

    def _last_word(self, **changes: Any) -> None:
        self._status = self._status.changed(seconds_left=None, **changes)
        write_status(self._paths, self._status, is_last_word=True)


def execute(root: Path) -> None:
    """Run the run in the directory `root` to its end, from wherever its record says it is.

    With REFSAM_TRAINS_ONLY=1 in the environment that is the end of the training.

    Whatever makes the run fail is written to its status and raised again, so that the job ends with an error
    and its log has the traceback.

    The reserve that it holds on the disk is left to whoever started it, who has words of their own to write.

    Raises:
        AlreadyRunning: when another process holds the run.
        KeyboardInterrupt: when the process was asked to stop; the run can be continued.
    """
    paths = RunPaths(root)
    with signals.listening(), run_lock(paths, own_job.lock_seconds()):
        status = StatusWriter(paths)
        try:
            hold_reserve(paths)
            config = with_settings(load(paths.config), _settings(paths, status.attempt))
            trains_only = os.environ.get("REFSAM_TRAINS_ONLY") == "1"
            is_complete = _execute(config, paths, status, trains_only)
        except BaseException as error:
            status.failed(_ending(error), **_facts(error))
            raise
        if is_complete:
            status.completed()
        else:
            status.trained()


def _settings(paths: RunPaths, attempt: int) -> dict[str, Any]:
    """What an attempt does differently; nothing where nobody has begun it. Raises ValueError, OSError."""
    try:
        return parse_attempt(paths, attempt).settings
    except FileNotFoundError:
        return {}


def _execute(config: RefsamConfig, paths: RunPaths, status: StatusWriter, trains_only: bool) -> bool:
    """Train and evaluate, or only train; whether nothing is left to do."""
    if "REFSAM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["REFSAM_THREADS"]))
    be_deterministic()
    seed_everything(config.seed, "run")
    trained = config.kind is Kind.baseline or paths.training.exists()
    evaluated_on = config.evaluate.resource if trained and not trains_only else None
    device = choose_device(replace(config, resource=evaluated_on or config.resource))
    status.transition(device=device.type)
    paths.results.mkdir(parents=True, exist_ok=True)
    # What trained the model is kept when only an evaluation is made up for, perhaps on another machine.
    if not (paths.training.exists() and paths.environment.exists()):
        write_json(paths.environment, describe_environment(config, device))
    if config.train.engine == "micro_sam":
        let_kernels_be_fast(device)
    if not trained:
        train(config, paths, training_loaders(config), status.training)
    if trains_only:
        return False
    if unmeasured(config, paths):
        release_memory(device)
        let_kernels_be_fast(device)
        predictor, decoder = predictor_and_decoder(config, paths, device)
        evaluate(
            config,
            predictor,
            test_images(config),
            paths,
            status.evaluation,
            decoder=decoder,
            validation=validation_images(config),
        )
    return True


def _ending(error: BaseException) -> Ending:
    asked = signals.received()
    if asked in (signal.SIGUSR1, signal.SIGUSR2):
        return endings.TIME_LIMIT
    # Whatever went wrong after it was asked to stop, such as helpers that were asked as well, that is why.
    if asked is not None or isinstance(error, KeyboardInterrupt):
        return endings.STOPPED
    if _lost_a_helper(error):
        return endings.HELPER_KILLED
    if is_out_of_memory(error):
        return endings.NO_MEMORY
    if isinstance(error, Diverged):
        return endings.DIVERGED
    if isinstance(error, ConfigError):
        return endings.BAD_INPUT
    if isinstance(error, OSError) and error.errno in FULL:
        return endings.DISK_FULL
    return endings.RAISED


def _facts(error: BaseException) -> dict[str, object]:
    """What the sentence of an ending may name."""
    return {
        "error": type(error).__name__,
        "problem": error if isinstance(error, ConfigError) else _first_line(error),
        "what": getattr(error, "filename", None) or "a file",
    }


def _lost_a_helper(error: BaseException) -> bool:
    """Whether a worker of a DataLoader was killed; by whom, nobody tells this process."""
    return isinstance(error, RuntimeError) and re.search(KILLED_WORKER, str(error)) is not None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:MESSAGE_LENGTH]
