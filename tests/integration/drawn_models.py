"""Parts of a Segment Anything that need no training to segment discs, for tests of what is done with them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from segment_anything import SamPredictor

FRAME = 1024
LOW = 32  # rows and columns of the masks that the decoder gives
RADII = torch.tensor([2.4, 4.0, 7.0])


class Coordinates(torch.nn.Module):
    """A prompt encoder that hands points on as they are."""

    input_image_size = (FRAME, FRAME)

    def get_dense_pe(self) -> None:
        return None

    def forward(self, points: Any, boxes: Any, masks: Any) -> tuple[torch.Tensor, None]:
        coordinates: torch.Tensor = points[0]
        return coordinates, None


class Discs(torch.nn.Module):
    """A mask decoder that draws discs of three radii around the first point, likely or not by its place."""

    def forward(
        self, sparse_prompt_embeddings: torch.Tensor, multimask_output: bool, **rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        center = sparse_prompt_embeddings[:, 0] * LOW / FRAME
        axis = torch.arange(LOW) + 0.5
        distance = torch.hypot(
            axis[None, :, None] - center[:, 1, None, None], axis[None, None, :] - center[:, 0, None, None]
        )
        low = 2 * (RADII[None, :, None, None] - distance[:, None])
        likelihood = 0.75 + 0.25 * torch.sin(center.sum(1)[:, None] * RADII)
        number = 3 if multimask_output else 1
        return low[:, :number], likelihood[:, :number]


class KnownDistances(torch.nn.Module):
    """A segmentation decoder that knows the labels of the images by their shapes, with noise.

    Args:
        labels: (H, W) each, all of different shapes.
    """

    def __init__(self, labels: Iterable[NDArray[Any]]) -> None:
        super().__init__()
        self.known = {one.shape: _distances(one) for one in labels}

    def forward(self, embedding: torch.Tensor, input_size: Any, original_size: Any) -> torch.Tensor:
        return torch.from_numpy(self.known[tuple(original_size)][None])


def draw_discs(predictor: SamPredictor) -> None:
    """Let the predictor's model draw discs."""
    predictor.model.prompt_encoder, predictor.model.mask_decoder = Coordinates(), Discs()


def _distances(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Foreground, and twice the distance to the center, (3, H, W)."""
    generator = np.random.default_rng(0)
    inner = np.zeros(labels.shape)
    for number in np.unique(labels)[1:]:
        depth = distance_transform_edt(labels == number)
        inner = np.maximum(inner, depth / depth.max())
    noise = generator.normal(0, 0.5, (3, *labels.shape))
    return (np.stack([labels > 0, 1 - inner, 1 - inner]) + noise).astype("float32")
