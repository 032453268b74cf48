"""micro-sam's iterative prompts from masks of one byte per pixel.

Between two sub-iterations the masks and targets of all objects are there at once, at full resolution, and
with what is computed from them they are the only memory of a step that grows with n_objects. They are yes or
no for every pixel, which micro-sam keeps in four bytes, at 1 MiB for an object of 512 x 512 pixels. It saves
three quarters of that, and costs nothing.
"""

from typing import Any

import torch

from refsam.science.micro_sam import IterativePromptGenerator


class BooleanPrompts(IterativePromptGenerator):
    """The same points from the same draws, for masks that are bool."""

    def __call__(self, segmentation: torch.Tensor, prediction: torch.Tensor, **_: Any) -> tuple[Any, ...]:
        """One point where each object is missing, and one where something else was taken for it.

        Args:
            segmentation: (objects, 1, H, W) bool, the objects.
            prediction: (objects, 1, H, W) bool, what was predicted.

        Returns:
            (objects, 2, 2) coordinates x, y; (objects, 2) labels 1 and 0; None; None.
        """
        missing, hit = segmentation & ~prediction, segmentation & prediction
        positive, positive_labels = self._get_positive_points(missing, hit, is_3d=False)
        del missing, hit
        negative, negative_labels = self._get_negative_points(
            prediction & ~segmentation, segmentation, is_3d=False
        )
        points = torch.stack([torch.tensor(positive), torch.tensor(negative)], dim=1)
        labels = torch.stack([torch.tensor(positive_labels), torch.tensor(negative_labels)], dim=1)
        return points, labels, None, None

    def _get_negative_locations_in_obj_bbox(self, true_object: torch.Tensor, custom_df: int = 3) -> Any:
        # It subtracts, of one object at a time.
        return super()._get_negative_locations_in_obj_bbox(true_object.float(), custom_df)
