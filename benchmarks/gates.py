"""The ReLUs of the segmentation decoder with the gates of another step.

A ReLU passes what is above zero. Of the decoder's hundreds of millions, float32's rounding moves some across
zero, and each switches a part of the gradient on or off. With the same gates, what two ways to compute the
same gradient differ by otherwise can be seen.
"""

from functools import partial

import torch
from torch import nn


class ReplayedGates:
    """Keeps which inputs of a module's ReLUs were above zero, or lets through those that were kept.

    Args:
        parts: whose ReLUs are replaced, in place; each is called once in a forward.
        kept: the gates of another step, `kept` of its instance; None to use and keep the own.
    """

    def __init__(self, parts: list[nn.Module], kept: list[torch.Tensor] | None) -> None:
        found = [module for part in parts for module in part.modules() if isinstance(module, nn.ReLU)]
        if kept is not None and len(kept) != len(found):
            raise ValueError(f"{len(found)} ReLUs, and gates of {len(kept)}")
        self.kept = [torch.empty(0, dtype=torch.bool)] * len(found) if kept is None else kept
        self.switched = [0] * len(found)  # gates that the own inputs would have set otherwise
        for index, module in enumerate(found):
            module.forward = partial(self._pass, index, kept is not None)

    @property
    def switched_share(self) -> float:
        """Share of all gates that differ from those that were kept."""
        return sum(self.switched) / sum(gate.numel() for gate in self.kept)

    def _pass(self, index: int, replayed: bool, x: torch.Tensor) -> torch.Tensor:
        own = x > 0
        if not replayed:
            self.kept[index] = own
        gate = self.kept[index].to(x.device)
        self.switched[index] = int((own != gate).sum())
        return torch.where(gate, x, 0.0)
