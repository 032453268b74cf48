"""micro-sam's iterative prompts from masks of one byte per pixel.

Between two sub-iterations the masks and targets of all objects are there at once, at full resolution, and
with what is computed from them they are the only memory of a step that grows with n_objects. They are yes or
no for every pixel, which micro-sam keeps in four bytes, at 1 MiB for an object of 512 x 512 pixels. It saves
three quarters of that, and on a GPU all waits of the host but a few.
"""

from typing import Any

import numpy as np
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
        missing, extra = segmentation & ~prediction, prediction & ~segmentation
        # micro-sam asks every region of every object for its pixels: on a GPU the host waits for each answer.
        any_missing, any_extra = missing.flatten(1).any(1), extra.flatten(1).any(1)
        inside = torch.where(any_missing[:, None, None, None], missing, segmentation & prediction)
        del missing
        positive = _drawn(inside, {})
        negative = _drawn(extra, self._elsewhere(segmentation, any_extra))
        del inside, extra
        # Contiguous: by the strides of its factors a product of matrices rounds otherwise.
        points = torch.stack([torch.tensor(positive), torch.tensor(negative)], dim=1)
        return points, torch.tensor([[1, 0]] * len(points)), None, None

    def _elsewhere(
        self, segmentation: torch.Tensor, any_extra: torch.Tensor
    ) -> dict[int, tuple[torch.Tensor, ...]]:
        """The pixels near, or else outside of, the objects that nothing else was taken for, by number."""
        found = {}
        for number, is_there in enumerate(any_extra.tolist()):
            if not is_there:
                near = self._get_negative_locations_in_obj_bbox(segmentation[number])
                found[number] = near if len(near[0]) else torch.where(~segmentation[number])
        return found

    def _get_negative_locations_in_obj_bbox(self, true_object: torch.Tensor, custom_df: int = 3) -> Any:
        # It subtracts, of one object at a time.
        return super()._get_negative_locations_in_obj_bbox(true_object.float(), custom_df)


def _drawn(regions: torch.Tensor, others: dict[int, tuple[torch.Tensor, ...]]) -> list[list[int]]:
    """x and y of a pixel of each region, drawn from numpy's generator as micro-sam draws them.

    Args:
        regions: (objects, 1, H, W) bool.
        others: where a region is empty: the coordinates of pixels to draw from instead.
    """
    width = regions.shape[-1]
    pixels = regions.flatten(1)
    counts = pixels.sum(1).tolist()
    at = pixels.nonzero()[:, 1]
    first, chosen, drawn = 0, [], dict[int, list[int]]()
    for number, count in enumerate(counts):
        if number in others:
            columns, rows = others[number][-1], others[number][-2]
            index = np.random.choice(len(columns))
            drawn[number] = [int(columns[index]), int(rows[index])]
        else:
            chosen.append((number, first + np.random.choice(count)))
        first += count
    places = at[torch.tensor([place for _, place in chosen], dtype=torch.int64, device=at.device)].tolist()
    for (number, _), place in zip(chosen, places, strict=True):
        drawn[number] = [place % width, place // width]
    return [drawn[number] for number in range(len(counts))]
