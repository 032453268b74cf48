"""One process at a time changes which jobs of a runs folder are in Slurm's queue."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from refsam.errors import RunFailed
from refsam.orchestration.slurm.patience import Say, is_hurried
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.status import AlreadyRunning, holder_words, run_lock

LOCK_SECONDS = 600.0  # for another submission into the same folder to end


@contextmanager
def only_submitter(folder: RunsFolder, say: Say, patience: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of the runs folder. Raises RunFailed when another process holds it for too long."""
    folder.root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as lock:
        try:
            lock.enter_context(run_lock(RunPaths(folder.root)))
        except AlreadyRunning as error:
            who = holder_words(RunPaths(folder.root))
            if is_hurried():
                raise RunFailed(f"{who} is submitting into {folder.root}") from error
            say(f"{who[0].upper()}{who[1:]} is submitting into {folder.root}; waiting for it")
            try:
                lock.enter_context(run_lock(RunPaths(folder.root), patience))
            except AlreadyRunning as late:
                who = holder_words(RunPaths(folder.root))
                words = f"{who} has been submitting into {folder.root} for {patience:.0f} seconds"
                raise RunFailed(words) from late
        yield
