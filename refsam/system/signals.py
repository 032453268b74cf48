"""Signals that ask a run to stop. The first one interrupts it: at once, or when what it holds is done.

A run is asked by Ctrl-C, by SIGTERM (scancel, preemption, the local queue) and by SIGUSR1 or SIGUSR2 (Slurm,
before the time limit). One word is enough: whatever comes after it finds the run saving what it has.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit status of commands after Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class _Listener:
    """What this process has been asked; there is one, as there is one handler for a signal."""

    def __init__(self) -> None:
        self.active = False
        self.forget()

    def forget(self) -> None:
        self.held = False
        self.received: signal.Signals | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            self.check()

    def check(self) -> None:
        if self.active and self.received is not None and not self.held:
            raise KeyboardInterrupt(self.received.name)


_listener = _Listener()


@contextmanager
def handling(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Let `handler` answer these signals meanwhile.

    Python lets only the main thread handle signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def listening() -> Iterator[None]:
    """Raise KeyboardInterrupt with the name of the first of SIGNALS that arrives.

    A signal that was blocked for this process before it could listen is received now; SIGINT stays blocked
    where it was, because somebody else decides about a terminal's Ctrl-C. In another thread than the main one
    and inside of another `listening` nothing changes.
    """
    if _listener.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener.forget()
    _listener.active = True
    with handling(SIGNALS, _listener.handle):
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS) - {signal.SIGINT})
            yield
        finally:
            _listener.active = False


def received() -> signal.Signals | None:
    """The signal that asked this process to stop; None while nothing has."""
    return _listener.received


def hold() -> None:
    """From here to `release` a signal is only noted: something is changed that must not be cut in two."""
    _listener.held = True


def release() -> None:
    """Raise KeyboardInterrupt if a signal has come meanwhile."""
    _listener.held = False
    check()


def check() -> None:
    """Raise KeyboardInterrupt again: an interruption may be lost in code that is called by C."""
    _listener.check()


@contextmanager
def answering_ctrl_c(sentence: str) -> Iterator[None]:
    """Leave with one line and exit status 130 at Ctrl-C. A command imports what is heavy inside of this."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"refsam: {sentence}", file=sys.stderr)
        sys.exit(INTERRUPTED)
