"""The losses of the two studies, of predicted masks and predicted IoU.

- `dice`, micro-sam's: Dice of each object's mask, and the squared error of its predicted IoU.
- `dice_focal`, the Hugging Face study's: Dice + 20 · focal loss, and the squared error of the predicted IoU.
  It is monai's DiceFocalLoss(sigmoid=True, squared_pred=True, lambda_focal=20), whose focal loss weighs
  objects and background alike; train.focal_alpha weighs them as Lin et al. 2017 do.

Both are means over objects, so that a step can be cut into chunks of objects. Of three masks for one object
the best one counts, as in Segment Anything.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch.nn.functional import mse_loss
from torchvision.ops import sigmoid_focal_loss

from refsam.configuration.schema import TrainConfig
from refsam.science.micro_sam import DiceBasedDistanceLoss, DiceLoss

FOCAL_WEIGHT = 20.0
FOCAL_GAMMA = 2.0  # of the focal loss (Lin et al. 2017, arXiv:1708.02002)
NO_ALPHA = -1.0  # of torchvision: objects and background weigh the same
EPSILON = 1e-7

Outputs = list[dict[str, torch.Tensor]]
MaskLosses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Of the model's outputs (one per image: `masks` (objects, masks, H, W) logits, `iou_predictions` (objects,
# masks)) and targets (images, objects, 1, H, W) of 0 and 1: loss, mask loss and IoU loss.
MaskLoss = Callable[[Outputs, torch.Tensor], MaskLosses]


class StepLosses(NamedTuple):
    """The losses of one batch, means over images and objects, without graph.

    Attributes:
        loss: of the interactive segmentation: mask loss + IoU loss.
        mask_loss: of the masks.
        iou_loss: squared error of the predicted IoU.
        model_iou: mean predicted IoU, which is no loss.
        instance_loss: of the segmentation decoder, where there is one.
    """

    loss: torch.Tensor
    mask_loss: torch.Tensor
    iou_loss: torch.Tensor
    model_iou: torch.Tensor
    instance_loss: torch.Tensor | None = None


def mean_losses(losses: Sequence[StepLosses]) -> StepLosses:
    """The means over the batches of a step."""
    known = [[value for value in of_batch if value is not None] for of_batch in losses]
    return StepLosses(*(torch.stack(column).mean(dim=0) for column in zip(*known, strict=True)))


def mask_loss_of(settings: TrainConfig) -> MaskLoss:
    """The function of train.loss."""
    if settings.loss == "dice":
        return dice_loss
    return partial(dice_focal_loss, alpha=settings.focal_alpha, threshold=settings.mask_threshold)


def is_mask(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which pixels are in a mask: at 0 as in Segment Anything those above, else as in the study those from
    the threshold on.
    """
    return logits > 0 if threshold == 0 else logits >= threshold


def instance_loss() -> DiceBasedDistanceLoss:
    """micro-sam's loss of the segmentation decoder: of foreground, center and boundary distances."""
    return DiceBasedDistanceLoss(mask_distances_in_bg=True)


def dice_loss(outputs: Outputs, targets: torch.Tensor) -> MaskLosses:
    """micro-sam's loss, mask loss and IoU loss (SamTrainer of micro-sam 1.8), with its order of sums.

    Args:
        outputs: one per image: `masks` (objects, masks, H, W) logits, and `iou_predictions` (objects, masks).
        targets: (images, objects, 1, H, W) of 0 and 1.
    """
    dice = DiceLoss(reduce_channel=None)
    mask_losses, iou_losses = [], []
    for output, target in zip(outputs, targets, strict=True):
        probabilities = output["masks"].sigmoid()
        masks = [probabilities[:, index : index + 1] for index in range(probabilities.shape[1])]
        # DiceLoss has one value per channel: objects are the channels here.
        of_masks = torch.stack([dice(mask.swapaxes(0, 1), target.swapaxes(0, 1)) for mask in masks])
        mask_losses.append(of_masks.min(dim=0).values.mean())
        with torch.no_grad():
            true_iou = torch.stack([_iou(mask > 0.5, target) for mask in masks]).swapaxes(0, 1)
        iou_losses.append(squared_error(true_iou, output["iou_predictions"]))
    mask_loss, iou_loss = (reduce(torch.add, values) / len(values) for values in (mask_losses, iou_losses))
    return mask_loss + iou_loss, mask_loss, iou_loss


def squared_error(true_iou: torch.Tensor, predicted_iou: torch.Tensor) -> torch.Tensor:
    """torch's mse_loss in the wider type of the two, to which PyTorch 2.7 does not bring them itself."""
    wider = torch.promote_types(true_iou.dtype, predicted_iou.dtype)
    return mse_loss(true_iou.to(wider), predicted_iou.to(wider))


def _iou(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(objects,) IoU of masks (objects, 1, H, W)."""
    overlap = predicted.logical_and(target).sum(dim=(1, 2, 3))
    union = predicted.logical_or(target).sum(dim=(1, 2, 3))
    return overlap / (union + EPSILON)


def dice_focal_loss(
    outputs: Outputs, targets: torch.Tensor, alpha: float | None = None, threshold: float = 0.0
) -> MaskLosses:
    """Loss, mask loss and IoU loss, each a mean over images and objects.

    Args:
        outputs: one per image: `masks` (objects, masks, H, W) logits, and `iou_predictions` (objects, masks).
        targets: (images, objects, 1, H, W) of 0 and 1.
        alpha: weight of objects in the focal loss, and one minus that of background; None: both weigh 1.
        threshold: logit from which a pixel is in the mask whose IoU is to be predicted.
    """
    per_image = [
        _of_image(output, target, NO_ALPHA if alpha is None else alpha, threshold)
        for output, target in zip(outputs, targets, strict=True)
    ]
    mask_loss = torch.stack([mask for mask, _ in per_image]).mean()
    iou_loss = torch.stack([iou for _, iou in per_image]).mean()
    return mask_loss + iou_loss, mask_loss, iou_loss


def _of_image(
    output: dict[str, Any], target: torch.Tensor, alpha: float, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = output["masks"].float()
    target = target.float().expand_as(logits)
    probabilities = logits.sigmoid()
    overlap = (probabilities * target).sum((-2, -1))
    dice = 1 - 2 * overlap / ((probabilities.square() + target.square()).sum((-2, -1)) + EPSILON)
    focal = sigmoid_focal_loss(logits, target, alpha, FOCAL_GAMMA).mean((-2, -1))
    best, _ = (dice + FOCAL_WEIGHT * focal).min(dim=1)
    with torch.no_grad():
        predicted, true = is_mask(logits, threshold), target > 0
        union = (predicted | true).sum((-2, -1))
        true_iou = (predicted & true).sum((-2, -1)) / (union + EPSILON)
    return best.mean(), mse_loss(output["iou_predictions"], true_iou.to(output["iou_predictions"].dtype))
