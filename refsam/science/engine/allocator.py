"""Main memory that is freed is kept for the next tensor instead of being given back to the system.

On the CPU a step makes and frees some ten thousand tensors of 4 to 32 MiB. The C library gives such memory
back at once, and the system has to clear it page by page when it is asked for again: a sixth of the time of
decoding an object, of the whole step with eager attention a fifth.

It saves that. It costs memory that the process holds between its peaks. Larger tensors still go back, unless
there is room to keep them as well: on the heap, the tensors of the segmentation decoder (256 MiB each) leave
gaps (the C library wants a little more than an aligned block of the same size has left behind), and the
process grew to 1.4 times its peak, in 0.7 times the time.
"""

import ctypes
import os

# mallopt(3). Blocks above this size are mapped and given back one by one; the C library's own upper limit.
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 32 * 2**20
# Free memory at the end of the heap that is kept.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 2**30
# How many blocks may be mapped; with none, the heap has them all, and what is free at its end stays there.
M_MMAP_MAX, NO_BLOCKS, NEVER = -4, 0, -1
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory(large: bool = False) -> bool:
    """Tell the C library; false where it is not glibc, or where the environment tells it something else.

    Args:
        large: keep tensors of any size, in a process that has half as much memory again as it needs.
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
    if large:
        return bool(told and mallopt(M_MMAP_MAX, NO_BLOCKS) and mallopt(M_TRIM_THRESHOLD, NEVER))
    return bool(told and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
