"""What the C library takes for tensors that have no values: it places blocks that nobody ever writes to.

A process is larger than its tensors: what was freed stays on the heap between blocks that are in use, and
blocks above a threshold lie beside the heap. That follows from the order and the sizes of the requests, and
from what engine.allocator has asked for, so the library itself answers. Memory that is not written to takes
none.
"""

import ctypes
import resource
from pathlib import Path

ALIGNMENT = 64  # of PyTorch's tensors on a CPU (c10/core/alignment.h)
SMALL_BYTES = 2**16  # blocks below do not move the peak
OWN_PAGES = Path("/proc/self/statm")
DATA = 5  # proc(5): pages that the process may write to, those included that it has never written to
PAGE_BYTES = resource.getpagesize()


class Heap:
    """Blocks of the C library of this process, and by how much the process grows with them.

    Attributes:
        peak: the most bytes since `begin_peak`, above what there was in the beginning.

    Raises:
        OSError: where there is no /proc (macOS).
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._allocate, self._free = library.posix_memalign, library.free
        self._allocate.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
        self._free.argtypes = [ctypes.c_void_p]
        self._before = _data_bytes()
        self.peak = 0

    @property
    def bytes(self) -> int:
        """What the process has grown by: blocks, and free places that the C library keeps."""
        return _data_bytes() - self._before

    def begin_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.bytes

    def take(self, size: int) -> ctypes.c_void_p:
        """A block of `size` bytes. Raises MemoryError where the system does not promise them."""
        block = ctypes.c_void_p()
        if self._allocate(ctypes.byref(block), ALIGNMENT, size):
            raise MemoryError(f"the system does not promise {size} bytes of memory")
        if size >= SMALL_BYTES:
            self.peak = max(self.peak, self.bytes)
        return block

    def free(self, block: ctypes.c_void_p) -> None:
        """Give a block back to the C library, which may keep it."""
        self._free(block)


def _data_bytes() -> int:
    return int(OWN_PAGES.read_text(encoding="ascii").split()[DATA]) * PAGE_BYTES
