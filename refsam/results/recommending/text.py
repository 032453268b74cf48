"""An answer of `refsam recommend` as lines to read, and as one mapping for programs."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from refsam.results.comparing.find_setting import listed
from refsam.results.recommending.candidates import SECONDS_PER_HOUR, Candidate, Quality
from refsam.results.recommending.recommend import OWN, Advice


def lines(advice: Advice, command: Sequence[str]) -> list[str]:
    """The answer: the winner, the runner-up, what it rests on, and the command that runs the winner."""
    if advice.winner is None:
        return advice.notes
    order = f"best {advice.mode} {advice.metric}" if advice.source == OWN else "quality not known"
    said = [f"For {advice.limits.words} ({order}):", "", *_of("Use", advice.winner, advice)]
    if advice.runner_up is not None:
        said += ["", *_of("Runner-up", advice.runner_up, advice)]
    else:
        said += ["", "Runner-up: none; no other setting is known to meet the limits."]
    return [*said, "", *advice.notes, "", "To run it:", "", f"    {shlex.join(command)}"]


def as_json(advice: Advice, command: Sequence[str] | None) -> dict[str, Any]:
    """The answer for programs; None for what there is not."""
    return {
        "limits": asdict(advice.limits),
        "source": advice.source,
        "dataset": advice.dataset,
        "mode": advice.mode,
        "metric": advice.metric if advice.source == OWN else None,
        "winner": _values(advice.winner),
        "runner_up": _values(advice.runner_up),
        "clear": None if advice.verdict is None else advice.verdict.clear,
        "p_over_seeds": None if advice.verdict is None else advice.verdict.p_over_seeds,
        "difference": None if advice.difference is None else asdict(advice.difference),
        "notes": advice.notes,
        "problems": advice.problems,
        "command": None if command is None else shlex.join(command),
    }


def _of(title: str, candidate: Candidate, advice: Advice) -> list[str]:
    said = [f"{title}: {candidate.words}"]
    if candidate.quality is not None:
        said.append(f"  quality    {advice.mode} {advice.metric} {_quality(candidate.quality)}")
    else:
        said.append("  quality    not measured")
    if candidate.memory is not None:
        said.append(f"  memory     {candidate.memory.gib:.1f} GB is sufficient ({candidate.memory.words})")
    if candidate.time is not None:
        said.append(f"  training   {duration(candidate.time.seconds)} ({candidate.time.words})")
    else:
        said.append("  training   time not known on this kind of machine")
    if candidate.setting is not None:
        said.append(f"  runs       {listed(candidate.setting.run_ids, ', ')}")
    return said


def _quality(quality: Quality) -> str:
    said = f"{quality.mean:.3f}"
    if quality.deviation is not None:
        said += f" ± {quality.deviation:.3f} over {quality.n_runs} seeds"
    if quality.low is not None and quality.high is not None:
        images = "" if quality.n_test_images is None else f"{quality.n_test_images} "
        said += f", 95 % interval {quality.low:.3f} to {quality.high:.3f} over {images}test images"
    return said if quality.n_runs > 1 else f"{said}; 1 seed"


def duration(seconds: float) -> str:
    """`11.5 min` or `2.3 h`."""
    if seconds < 60:
        return "under a minute"
    if seconds < SECONDS_PER_HOUR:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / SECONDS_PER_HOUR:.1f} h"


def _values(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    memory, time, quality = candidate.memory, candidate.time, candidate.quality
    return {
        **candidate.values,
        "fields": dict(candidate.fields),
        "run_ids": [] if candidate.setting is None else candidate.setting.run_ids,
        "memory_gib": None if memory is None else memory.gib,
        "memory_from": None if memory is None else memory.words,
        "training_seconds": None if time is None else time.seconds,
        "training_from": None if time is None else time.words,
        "quality": None if quality is None else asdict(quality),
    }
