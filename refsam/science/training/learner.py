"""What is trained, and what trains it: the models, their optimizer, its schedule and its precision."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from refsam.science.micro_sam import UNETR, TrainableSAM
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.optimizers import Schedule, load_optimizer_state

ENCODER = "encoder."  # of the segmentation decoder's network: the encoder of the model


@dataclass(frozen=True)
class Learner:
    """All that changes in a training.

    Attributes:
        model: Segment Anything.
        unetr: its encoder with the segmentation decoder, if that is trained too.
        max_grad_norm: to which larger gradients are scaled down; None for no limit.
        accumulate: batches of a step.
    """

    model: TrainableSAM
    unetr: UNETR | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    arithmetic: Arithmetic
    max_grad_norm: float | None = None
    accumulate: int = 1

    @property
    def models(self) -> list[nn.Module]:
        return [self.model] if self.unetr is None else [self.model, self.unetr]

    def switch(self, *, training: bool) -> None:
        """Take the models to training or to evaluation mode."""
        for model in self.models:
            model.train(training)

    def step(self, batches: int) -> None:
        """The optimizer's step for the mean of the gradients of so many batches, whose sum is there."""
        if batches > 1:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad /= batches
        self.arithmetic.step(self.optimizer, self.max_grad_norm)

    def after_step(self) -> None:
        """Let a schedule that counts steps set the learning rate of the next one."""
        if isinstance(self.schedule, LambdaLR):
            self.schedule.step()

    def after_validation(self, metric: float) -> None:
        """Let a schedule that looks at the validation set the learning rate of the next epoch."""
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(metric)

    @property
    def learning_rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    @property
    def is_finite(self) -> bool:
        """Whether all that is trained is a number."""
        trained = [value for model in self.models for value in model.parameters() if value.requires_grad]
        return bool(torch.stack([value.isfinite().all() for value in trained]).all())

    def decoder_state(self) -> dict[str, Any]:
        """Of both checkpoints: the segmentation decoder's weights, where there is one."""
        if self.unetr is None:
            return {}
        state = self.unetr.state_dict()
        return {"decoder_state": {key: state[key] for key in state if not key.startswith(ENCODER)}}

    def optimization_state(self) -> dict[str, Any]:
        """Of latest.pt: what the next step depends on beside the weights."""
        state = {
            "optimizer_state": self.optimizer.state_dict(),
            "scheduler_state": self.schedule.state_dict(),
        }
        if self.arithmetic.scaler.is_enabled():
            state["scaler_state"] = self.arithmetic.scaler.state_dict()
        return state

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take over all states of a latest.pt.

        Raises:
            RuntimeError: when they belong to another model.
        """
        self.model.load_state_dict(checkpoint["model_state"])
        if self.unetr is not None:
            own = self.unetr.state_dict()
            encoder = {key: own[key] for key in own if key.startswith(ENCODER)}
            self.unetr.load_state_dict({**encoder, **checkpoint["decoder_state"]})
        load_optimizer_state(self.optimizer, checkpoint["optimizer_state"])
        self.schedule.load_state_dict(checkpoint["scheduler_state"])
        if self.arithmetic.scaler.is_enabled():
            self.arithmetic.scaler.load_state_dict(checkpoint["scaler_state"])
