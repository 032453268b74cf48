"""Python imports this at its start. A program that computes with refsam gets a GPU that is not there.

PRETENDED_GPU holds its compute capability and GiB, as `6.1 8`. Programs that are to use no GPU see none.
"""

import os
import sys
from pathlib import Path

PROGRAMS = ("refsam.science", "benchmarks.gpu.worker")

if os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(
    name in each for name in PROGRAMS for each in sys.orig_argv
):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from pretended_gpu import gpu

    capability, gib = os.environ["PRETENDED_GPU"].split()
    major, minor = map(int, capability.split("."))
    name = f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '0')}"
    of_process = gpu((major, minor), float(gib), name)  # its end would take the GPU away
    of_process.__enter__()
