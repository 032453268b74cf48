"""Where a training stands in the middle of an epoch, so that the same numbers follow from there.

Parameters change only when the optimizer steps. Between two of its steps a training can be left at any
moment: what has been drawn, counted and averaged since the last position is taken back, and computed again.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from refsam.science.training.history import EpochMeans


@dataclass(frozen=True)
class ResumeState:
    """A moment after a step of the optimizer, or before the first one of an epoch.

    Attributes:
        iteration: steps of the training done.
        means: of the epoch so far.
        losses: of the interactive half of a step whose other half is still to come; None between steps.
        statistics: copies of the running statistics of batch normalization, which a forward pass changes.
    """

    iteration: int
    means: EpochMeans
    losses: tuple[torch.Tensor, ...] | None
    random: dict[str, Any]
    statistics: list[torch.Tensor]
    scaler: dict[str, Any]

    def restore(self, statistics: Sequence[torch.Tensor], scaler: Any) -> None:
        """Take back what has changed since in the model and in the scaler."""
        with torch.no_grad():
            for tensor, before in zip(statistics, self.statistics, strict=True):
                tensor.copy_(before)
        scaler.load_state_dict(self.scaler)

    def to_values(self, epoch_seconds: float) -> dict[str, Any]:
        """Tensors and plain values, for latest.pt; the statistics are in its weights."""
        return {
            "means": asdict(self.means),
            "losses": None if self.losses is None else [loss.detach().cpu() for loss in self.losses],
            "random": self.random,
            "epoch_seconds": epoch_seconds,
        }


def position(
    iteration: int,
    means: EpochMeans,
    losses: tuple[torch.Tensor, ...] | None,
    device: torch.device,
    statistics: Sequence[torch.Tensor],
    scaler: Any,
) -> ResumeState:
    """The position now."""
    return ResumeState(
        iteration=iteration,
        means=replace(means, sums=dict(means.sums)),
        losses=losses,
        random=random_states(device),
        statistics=[tensor.detach().clone() for tensor in statistics],
        scaler=scaler.state_dict(),
    )


def running_statistics(modules: Sequence[nn.Module]) -> list[torch.Tensor]:
    """The buffers of batch normalization in `modules`, each once."""
    found: dict[int, torch.Tensor] = {}
    for module in modules:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                found.update({id(buffer): buffer for buffer in part.buffers()})
    return list(found.values())


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all generators that a training draws from, as tensors and plain values."""
    kind, numbers, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(numbers).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Continue all generators from what `random_states` has given, perhaps on another kind of device."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["device"] is not None:
        torch.cuda.set_rng_state(states["device"], device)
