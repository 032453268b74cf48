"""The losses of the two studies, of predicted masks and predicted IoU.

- `dice`, micro-sam's: Dice of each object's mask, and the squared error of its predicted IoU.
- `dice_focal`, the Hugging Face study's: Dice + 20 · focal loss, and the squared error of the predicted IoU.

Both are means over objects, so that a step can be cut into chunks of objects. Of three masks for one object
the best one counts, as in Segment Anything.
"""

from typing import Any

import torch
from torch.nn.functional import mse_loss
from torchvision.ops import sigmoid_focal_loss

FOCAL_WEIGHT = 20.0
# Of the focal loss (Lin et al. 2017, arXiv:1708.02002).
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
EPSILON = 1e-7

Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def dice_focal_loss(outputs: list[dict[str, Any]], targets: torch.Tensor) -> Losses:
    """Loss, mask loss and IoU loss, each a mean over images and objects.

    Args:
        outputs: one per image: `masks` (objects, masks, H, W) logits, and `iou_predictions` (objects, masks).
        targets: (images, objects, 1, H, W) of 0 and 1.
    """
    per_image = [_of_image(output, target) for output, target in zip(outputs, targets, strict=True)]
    mask_loss = torch.stack([mask for mask, _ in per_image]).mean()
    iou_loss = torch.stack([iou for _, iou in per_image]).mean()
    return mask_loss + iou_loss, mask_loss, iou_loss


def _of_image(output: dict[str, Any], target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = output["masks"].float()
    target = target.float().expand_as(logits)
    probabilities = logits.sigmoid()
    overlap = (probabilities * target).sum((-2, -1))
    dice = 1 - 2 * overlap / ((probabilities.square() + target.square()).sum((-2, -1)) + EPSILON)
    focal = sigmoid_focal_loss(logits, target, FOCAL_ALPHA, FOCAL_GAMMA).mean((-2, -1))
    best, _ = (dice + FOCAL_WEIGHT * focal).min(dim=1)
    with torch.no_grad():
        predicted, true = logits > 0, target > 0
        union = (predicted | true).sum((-2, -1))
        true_iou = (predicted & true).sum((-2, -1)) / (union + EPSILON)
    return best.mean(), mse_loss(output["iou_predictions"], true_iou.to(output["iou_predictions"].dtype))
