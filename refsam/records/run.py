"""A run as everything but its records knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing the schema imports Hydra, which those who only look at a sweep do without
    from refsam.configuration.schema import RefsamConfig


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        run_id: its name, from what it computes (records/identity.py).
        config: resolved, as it is or will be frozen.
        label: short name for tables, which none of the others beside it has.
    """

    run_id: str
    config: RefsamConfig
    label: str
