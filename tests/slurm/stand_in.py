"""A stand-in for the science inside a Slurm job: it keeps the record, and does what `behaviour.txt` says."""

import os
import time
from pathlib import Path

from refsam.records.attempts import read_attempt
from refsam.records.paths import RunPaths
from refsam.records.status import TRAINED, Reason, State, now, read_status, run_lock, write_status
from refsam.system.cgroups import memory_gib
from refsam.system.files import write_json

ENTRY_POINT = "stand_in:execute"
PATIENCE = 900  # seconds after which a stand-in gives up that nobody has cancelled
GIB = 1024**3


def execute(root: Path) -> None:
    paths = RunPaths(root)
    with run_lock(paths):
        before = read_status(paths)
        attempt = before.attempt if before.state is State.pending else before.attempt + 1  # Slurm's requeue
        saved = attempt if (root / "behaviour.txt").read_text() == "save and wait" else None
        status = before.changed(
            state=State.running, attempt=attempt, started_at=now(), pid=os.getpid(), steps=saved
        )
        write_status(paths, status)
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FROM_THE_PROLOGUE", "SLURM_CPUS_PER_TASK")
        seen: dict[str, object] = {name: os.environ.get(name) for name in names}
        slurm = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
        write_json(root / "seen.json", {**seen, "memory_gb": memory_gib(), "slurm": slurm})
        with (root / "starts.txt").open("a") as starts:
            starts.write(f"{os.environ['SLURM_JOB_ID']}\n")
        try:
            behave(root)
        except BaseException as error:
            reason = Reason.cancelled if isinstance(error, KeyboardInterrupt) else Reason.error
            write_status(paths, status.changed(state=State.failed, reason=reason, message=repr(error)))
            raise
        if os.environ.get("REFSAM_TRAINS_ONLY") == "1":
            paths.results.mkdir(exist_ok=True)
            write_json(paths.training, {})
            write_status(paths, status.changed(phase=TRAINED))
        else:
            write_status(paths, status.changed(state=State.completed, ended_at=now()))


def behave(root: Path) -> None:
    behaviour = (root / "behaviour.txt").read_text()
    if behaviour == "hungry by the chunk, its supervisor first":  # the kernel kills the whole job
        Path(f"/proc/{os.getppid()}/oom_score_adj").write_text("1000")
        Path("/proc/self/oom_score_adj").write_text("0")
    if behaviour.startswith("hungry by the chunk"):  # 0.4 GiB for each object at a time
        paths = RunPaths(root)
        settings = read_attempt(paths, read_status(paths).attempt).settings
        chunk = settings.get("train.object_chunk", 5)
        paths.results.mkdir(exist_ok=True)
        write_json(paths.savings, {"object_chunk": chunk, "checkpoint_every": None, "precision": "float32"})
        print(len(bytearray(chunk * 2 * GIB // 5)))
    if behaviour == "hungry":  # for more than the 1 GiB of its request
        print(len(bytearray(3 * GIB // 2)))
    if behaviour == "fail":
        raise ValueError("the data is not there")
    if behaviour in ("wait", "save and wait"):
        deadline = time.monotonic() + PATIENCE
        while not (root.parent / "go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nothing happened")
            time.sleep(0.1)
