"""Comparisons against peers, each one command that prints a table and writes a CSV and a figure."""

import sys
from types import TracebackType


def _one_line_for_ctrl_c(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C has no traceback, also while a benchmark imports PyTorch; a shell sees exit status 130."""
    if issubclass(kind, KeyboardInterrupt):
        print("benchmarks: stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _one_line_for_ctrl_c
