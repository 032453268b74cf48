"""How much memory a process takes while something is done."""

import threading
import time

import psutil

MIB = 2**20
SECONDS_BETWEEN_SAMPLES = 0.01


class PeakMemory:
    """The largest resident memory of this process while the context is open, in MiB, and that before it."""

    def __enter__(self) -> "PeakMemory":
        self._process = psutil.Process()
        self.base = self.peak = self._resident()
        self._open = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()

    def _watch(self) -> None:
        while self._open:
            self.peak = max(self.peak, self._resident())
            time.sleep(SECONDS_BETWEEN_SAMPLES)

    def _resident(self) -> float:
        return float(self._process.memory_info().rss) / MIB
