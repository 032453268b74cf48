"""What saved memory in an attempt, as it really was: by it the next one saves more."""

from datetime import datetime
from typing import Any

from refsam.orchestration import retries
from refsam.records.attempts import read_attempt
from refsam.records.files import read_json
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, Status

SAVINGS = {
    "object_chunk": retries.CHUNK,
    "checkpoint_every": retries.CHECKPOINTING,
    "precision": retries.PRECISION,
    "hardware_precision": retries.HARDWARE_PRECISION,
}


def used_savings(paths: RunPaths, status: Status, trained: bool) -> dict[str, Any]:
    """What the training of the attempt of `status` wrote down, or the batch of its evaluation.

    Args:
        trained: whether it has written results/savings.json.
    """
    if status.reason is Reason.out_of_memory and paths.config.exists():
        # Both bring OmegaConf, which few attempts need.
        from refsam.configuration.frozen import load, with_settings
        from refsam.configuration.schema import Kind

        config = with_settings(load(paths.config), read_attempt(paths, status.attempt).settings)
        if paths.training.exists() or config.kind is Kind.baseline:
            return {retries.BATCH: config.evaluate.batch_size}
    if not trained:
        return {}
    values = read_json(paths.savings)
    return {name: values[key] for key, name in SAVINGS.items() if key in values}


def has_trained(paths: RunPaths, number: int) -> bool:
    """Whether the training of an attempt had begun, by the time of results/savings.json."""
    started_at = read_attempt(paths, number).started_at
    if started_at is None or not paths.savings.exists():
        return False
    return paths.savings.stat().st_mtime >= datetime.fromisoformat(started_at).timestamp()
