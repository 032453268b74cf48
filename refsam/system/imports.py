"""Large libraries are imported without looking for garbage among what they make, which all stays."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """What is made in it is kept to the end of the process, and no collection of garbage looks at it again.

    PyTorch and what is imported with it are 1.5 million objects. Looking through them took 2 of 13 seconds of
    processor time while they were made, and one second in each later collection.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else some tell at the end that they were not taken away
        if collected:
            gc.enable()
