"""Which prompts the training gives the model: micro-sam's points and boxes in turn, one of them, or none.

Without prompts the model is asked for one mask of an image, and its target is the union of all objects. That
is one forward: there are no rounds of corrections, because what would correct is a prompt.
"""

from typing import Any

import torch
from micro_sam.training.sam_trainer import SamTrainer
from micro_sam.training.util import ConvertToSamInputs

from refsam.configuration.prompts import BOXES, NONE, POINTS

Choice = tuple[int, int, bool, bool]  # positive points, negative points, whether boxes, whether three masks
# Boxes are distorted by train.box_distortion, as micro-sam's are.
FIRST_PROMPTS: dict[str, Choice] = {
    POINTS: (1, 0, False, True),
    BOXES: (0, 0, True, False),
    NONE: (0, 0, False, False),
}


class ChosenPrompts(SamTrainer):
    """Mixin in front of SamTrainer or JointSamTrainer.

    Args:
        prompts: a value of train.prompts.
        kwargs: those of the micro-sam trainer.
    """

    def __init__(self, *, prompts: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompts = prompts
        if prompts == NONE:
            self.convert_inputs = UnpromptedInputs(transform=None)
            self.n_sub_iteration = 1

    def _get_prompt_and_multimasking_choices(self, current_iteration: int) -> Choice:
        alternating: Choice = super()._get_prompt_and_multimasking_choices(current_iteration)
        return FIRST_PROMPTS.get(self.prompts, alternating)

    def _get_prompt_and_multimasking_choices_for_val(self, current_iteration: int) -> Choice:
        alternating: Choice = super()._get_prompt_and_multimasking_choices_for_val(current_iteration)
        return FIRST_PROMPTS.get(self.prompts, alternating)

    def _interactive_train_iteration(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
        result: tuple[Any, ...] = super()._interactive_train_iteration(x, self._targets(y))
        return result

    def _interactive_val_iteration(
        self, x: torch.Tensor, y: torch.Tensor, val_iteration: int
    ) -> tuple[Any, ...]:
        result: tuple[Any, ...] = super()._interactive_val_iteration(x, self._targets(y), val_iteration)
        return result

    def _targets(self, y: torch.Tensor) -> torch.Tensor:
        """(batch, 1, H, W) ids of the objects to be found: without prompts, all objects as one."""
        return (y > 0).to(y.dtype) if self.prompts == NONE else y


class UnpromptedInputs(ConvertToSamInputs):
    """micro-sam's batched inputs for a model that is asked without a prompt."""

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, *_: object, **__: object
    ) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """The images, and of each the id of its only target.

        Args:
            x: (batch, 3, H, W) images.
            y: (batch, 1, H, W) of 0 and 1.
        """
        return [{"image": image, "original_size": image.shape[1:]} for image in x], [[1] for _ in y]
