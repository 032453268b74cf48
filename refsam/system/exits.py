"""The end of a process that has imported large libraries."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """For the whole of a program, before it imports anything large: end without taking the libraries apart.

    Python takes away every object at its end, which takes 3 seconds of processor time after PyTorch was
    imported, where the kernel takes the memory of the process at once. What others have registered to be done
    at the end is done before, threads are waited for, and the exit status is the one that it would be.
    """
    status = 1  # of an exception, whose traceback Python writes before

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # the first to be registered is the last to be called
    try:
        yield
    except SystemExit as wish:
        status = wish.code if isinstance(wish.code, int) else 0 if wish.code is None else 1
        raise
    status = 0
