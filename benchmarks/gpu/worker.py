"""The process in which rows are measured, one after the other, until one fails.

PyTorch and micro-sam are imported once. What may hang or be killed hangs or is killed here, and the program
that reads the answers goes on with a new worker.
"""

import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from types import TracebackType
from typing import Any

from benchmarks.gpu.page import FAILED, MEASURED, Result
from benchmarks.gpu.rows import FULL, SMALL, Row, rows

NO_GPU = 2  # exit status of a worker without one; the last line of its log says why
START_SECONDS = 180.0  # for the imports, on a slow file system
END_SECONDS = 60.0  # of a process that has said its last, on a busy machine


def worker_command(small: bool) -> list[str]:
    """Of a worker that measures the rows of a scale."""
    return [sys.executable, "-m", "benchmarks.gpu.worker", *(["--small"] if small else [])]


class NoGpu(Exception):
    """There is none, or PyTorch has no kernels for it."""


class Worker:
    """A worker; another one is started when a row is asked for and the last has ended.

    Args:
        command: of the process.
        patience: seconds for an ordinary row.
        log: where it writes what it has to say beside its answers.

    Raises:
        NoGpu: when it is entered and finds no GPU.
    """

    def __init__(self, command: Sequence[str], patience: float, log: Path) -> None:
        self._command = command
        self._patience = patience
        self._log = log
        self._child: Popen[bytes] | None = None

    def __enter__(self) -> "Worker":
        self._log.write_text("")
        self._start(START_SECONDS)  # what else goes wrong, the first row says
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def measure(self, row: Row, seconds: float) -> Result:
        """What became of a row that may take so many seconds."""
        started = time.monotonic()
        if self._child is None:
            why = self._start(min(START_SECONDS, seconds))
            if self._child is None:
                return Result(row.name, FAILED, f"no worker: {why}", round(time.monotonic() - started, 1))
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading tells
            self._child.stdin.write(f"{row.name}\n".encode())
            self._child.stdin.flush()
        answer, why = self._read(min(row.patience * self._patience, seconds))
        took = round(time.monotonic() - started, 1)
        if answer is None:
            return Result(row.name, FAILED, why, took)
        if "error" in answer:
            self._end()
            return Result(row.name, FAILED, answer["error"], took)
        return Result(row.name, MEASURED, "", took, answer["lines"])

    def _start(self, seconds: float) -> str:
        """Start a worker and wait until it is ready; why it is not, where there is none afterwards."""
        with self._log.open("ab") as log:
            self._child = Popen(self._command, stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True)
        return self._read(seconds)[1]

    def _read(self, seconds: float) -> tuple[dict[str, Any] | None, str]:
        """An answer; or None, and in one sentence why there is none: then there is no worker any more."""
        child = self._child
        assert child is not None
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], seconds)[0]:
            self._end()
            return None, f"no answer within {seconds:.0f} s"
        line = child.stdout.readline()
        if line:
            return json.loads(line), ""
        try:
            status = child.wait(timeout=END_SECONDS)
        except TimeoutExpired:
            status = None
        self._end()
        last = ["", *self._log.read_text(errors="replace").strip().splitlines()][-1]
        if status == NO_GPU:
            raise NoGpu(last)
        return None, f"the process ended with status {status}: {last}"

    def _end(self) -> None:
        """End the worker and what it has started."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                pipe.close()
            self._child = None


def sentence(error: BaseException) -> str:
    """An error by its kind and its first line."""
    first = (str(error).strip().splitlines() or ["no words"])[0]
    return f"{type(error).__name__}: {first[:300]}"


def main() -> None:
    """Answer each name of a row with a line of JSON; an error is the last answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    scale = SMALL if "--small" in sys.argv else FULL

    from benchmarks.gpu.measurements import MEASUREMENTS, gpu_of
    from refsam.errors import ConfigError

    try:
        device = gpu_of(scale)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_GPU)

    from refsam.science.hardware import release_memory

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    gc.freeze()  # what was imported stays; looking for it between rows would take half a second each time
    answer({})
    known = {row.name: row for row in rows(scale)}
    for line in sys.stdin:
        row = known[line.strip()]
        try:
            lines = MEASUREMENTS[row.kind](scale, *row.arguments)
        except Exception as error:
            traceback.print_exc()
            answer({"error": sentence(error)})
            return
        release_memory(device)
        answer({"lines": lines})


if __name__ == "__main__":
    main()
