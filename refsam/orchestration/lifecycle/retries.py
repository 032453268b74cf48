"""What happens after an attempt has failed: whether the run is tried again by itself, and what changes.

What was computed is the same experiment in every attempt: n_objects never changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from refsam.records.attempts import (
    BATCH,
    CHECKPOINTING,
    CHECKPOINTING_DECODER,
    CHUNK,
    HARDWARE_PRECISION,
    PRECISION,
    Attempt,
)
from refsam.records.status import Reason

Settings = dict[str, Any]
FLOAT32 = "float32"


@dataclass(frozen=True)
class Rule:
    """What follows one reason.

    Attributes:
        fruitless: how many attempts in a row may end for such a reason without anything new saved.
        change: the settings of the next attempt by the one that failed; None when nothing is left to change.
        nothing_left: what is said then.
    """

    fruitless: int = 0
    change: Callable[[Attempt], Settings | None] | None = None
    nothing_left: str = ""


def save_memory(attempt: Attempt) -> Settings | None:
    """Less memory, the mildest first: half the objects at a time, checkpointing of the encoder, of the
    segmentation decoder, then a lower precision, unless that has diverged.

    In the evaluation: half the prompts at a time.
    """
    used = attempt.used
    if BATCH in used:
        return {**attempt.settings, BATCH: used[BATCH] // 2} if used[BATCH] > 1 else None
    if used.get(CHUNK) is None:
        return None  # nothing was trained yet, or by micro-sam's own step
    if used[CHUNK] > 1:
        return {**attempt.settings, CHUNK: used[CHUNK] // 2}
    if used.get(CHECKPOINTING) != 1:
        return {**attempt.settings, CHUNK: 1, CHECKPOINTING: "on"}
    if used.get(CHECKPOINTING_DECODER) is False:  # None: there is no decoder
        return {**attempt.settings, CHECKPOINTING_DECODER: "on"}
    hardware = used.get(HARDWARE_PRECISION, FLOAT32)
    has_diverged = attempt.settings.get(PRECISION) == FLOAT32
    if used.get(PRECISION) == FLOAT32 and hardware != FLOAT32 and not has_diverged:
        return {**attempt.settings, PRECISION: hardware}
    return None


def compute_in_float32(attempt: Attempt) -> Settings | None:
    """Full precision, where a lower one was used: 16 bits overflow, or round a small loss to nothing."""
    if attempt.used.get(PRECISION, FLOAT32) == FLOAT32:
        return None
    return {**attempt.settings, PRECISION: FLOAT32}


TABLE: dict[Reason, Rule] = {
    Reason.out_of_memory: Rule(change=save_memory, nothing_left="nothing is left that would save memory"),
    Reason.diverged: Rule(change=compute_in_float32, nothing_left="its precision is float32 already"),
    # The next one would get no further in the same time.
    Reason.timeout: Rule(fruitless=0),
    # A partition may be busy, and a node may die, before anything is saved.
    Reason.preempted: Rule(fruitless=5),
    Reason.node_failure: Rule(fruitless=5),
}  # error, cancelled and lost: never by itself


@dataclass(frozen=True)
class Decision:
    """Whether a run goes on by itself, and in one sentence why not, or with what.

    Attributes:
        settings: of the next attempt, where they change.
    """

    again: bool
    words: str
    settings: Settings | None = None


def decide(attempts: Sequence[Attempt]) -> Decision:
    """What follows the last of the attempts, which has failed."""
    last = attempts[-1]
    rule = TABLE.get(last.reason) if last.reason is not None else None
    if rule is None:
        return Decision(False, f"{last.reason or 'what happened'} is not tried again by itself")
    if rule.change is not None:
        settings = rule.change(last)
        if settings is None:
            return Decision(False, rule.nothing_left)
        changed = {name: value for name, value in settings.items() if last.settings.get(name) != value}
        return Decision(True, ", ".join(f"{name}={value}" for name, value in changed.items()), settings)
    if _fruitless(attempts) > rule.fruitless:
        return Decision(False, "no new checkpoint was saved since the previous attempt")
    return Decision(True, "it goes on from its last checkpoint")


def settings_of_next(attempts: Sequence[Attempt]) -> Settings:
    """What the attempt after these has instead of the values in config.yaml."""
    if not attempts:
        return {}
    last = attempts[-1]
    rule = TABLE.get(last.reason) if last.reason is not None else None
    changed = rule.change(last) if rule is not None and rule.change is not None else None
    return last.settings if changed is None else changed


def _fruitless(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts were interrupted and got no further than those before."""
    count = 0
    for index in range(len(attempts) - 1, -1, -1):
        attempt = attempts[index]
        rule = TABLE.get(attempt.reason) if attempt.reason is not None else None
        before = max((earlier.progress for earlier in attempts[:index]), default=(0, 0))
        if rule is None or rule.change is not None or attempt.progress > before:
            break
        count += 1
    return count
