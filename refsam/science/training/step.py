"""The gradients of a step, with one graph alive at a time: of one chunk of objects in one sub-iteration.

micro-sam sums the losses of all sub-iterations and calls backward once, so all their graphs are alive
together. But the prompts of the next sub-iteration are made without gradients: each loss can be sent backward
at once, into a detached copy of the image embedding, and the encoder goes backward once at the end with the
summed gradient. The loss is a mean over objects, so it can be cut into chunks of objects in the same way.

It saves all graphs but one of mask decoder and masks. It costs one backward call per chunk, and nothing else:
the sums are the same, in another order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from refsam.science.micro_sam import UNETR, DiceBasedDistanceLoss, TrainableSAM
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.encoder import Encoder
from refsam.science.training.losses import MaskLoss, Outputs, StepLosses, is_mask
from refsam.science.training.prompts import BatchedInputs, Choice, Prompts, select_objects

Targets = torch.Tensor  # (batch, objects, 1, H, W) bool or float of 0 and 1


@dataclass(frozen=True)
class Step:
    """The functions that a step of the training calls. Their losses have no graph.

    x is (batch, 3, H, W), images of values 0 to 255; y is (batch, 1 or 4, H, W): ids of objects and, for the
    segmentation decoder, foreground, center and boundary distances.

    Attributes:
        interactive: of x, y and the number of the step: gradients of the interactive loss; its losses, and
            the targets.
        segmentation: of x and y: gradients of the segmentation decoder's loss, which is returned. None where
            the optimizer steps once: without the decoder, and where `interactive` has its gradients too.
        validate: of x, y and the number of the batch: all losses, without gradients, the targets, and the
            mean IoU of the images where train.stop_on asks for it, else None.
    """

    interactive: Callable[[torch.Tensor, torch.Tensor, int], tuple[StepLosses, Targets]]
    segmentation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    validate: Callable[[torch.Tensor, torch.Tensor, int], tuple[StepLosses, Targets, torch.Tensor | None]]


class Encoded(NamedTuple):
    """A batch with its first prompts.

    Attributes:
        inputs: micro-sam's batched inputs, one per image.
        targets: (batch, objects, 1, H, W) bool.
        embeddings: (batch, channels, rows, columns).
        leaf: the same without graph, which collects the gradient.
    """

    inputs: BatchedInputs
    targets: torch.Tensor
    embeddings: torch.Tensor
    leaf: torch.Tensor


@dataclass
class Interactive:
    """The interactive segmentation: iterative prompting of a Segment Anything model.

    Attributes:
        object_chunk: how many objects of an image are decoded at a time.
        iou_threshold: logit from which a pixel is in the mask, for the mean IoU of a validation's images;
            None where that is not measured.
    """

    model: TrainableSAM
    encoder: Encoder
    prompts: Prompts
    loss: MaskLoss
    arithmetic: Arithmetic
    n_sub_iterations: int
    object_chunk: int
    iou_threshold: float | None = None

    def gradients(self, x: torch.Tensor, y: torch.Tensor, iteration: int) -> tuple[StepLosses, Targets]:
        """Step.interactive, of micro-sam's loss: the mean over all sub-iterations."""
        choice = self.prompts.of_training(iteration)
        with self.arithmetic.forward():
            batch = self.encode(x, y, choice)
            losses = self.iterate(batch, multimask_output=choice[-1])
            self.encoder_backward(batch)
        return losses, batch.targets

    def encode(self, x: torch.Tensor, y: torch.Tensor, choice: Choice) -> Encoded:
        """The images' embeddings and first prompts."""
        inputs, targets = self.prompts.first(x, y[:, :1], choice, self.arithmetic.device)
        embeddings = self.encoder.encode(inputs)
        leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
        return Encoded(inputs, targets, embeddings, leaf)

    def iterate(self, batch: Encoded, multimask_output: bool) -> StepLosses:
        """The gradients of all sub-iterations, those of the encoder in batch.leaf.

        Args:
            batch: whose inputs are given the prompts of every sub-iteration, in place.
            multimask_output: whether the first sub-iteration predicts three masks for each object.
        """
        rounds = self.n_sub_iterations
        totals = torch.zeros(4, device=batch.targets.device, dtype=torch.float64)
        for index in range(rounds):
            values, masks, logits = self._sub_iteration(batch, multimask_output and index == 0, 1 / rounds)
            totals += values
            if index < rounds - 1:
                with torch.no_grad():
                    self.prompts.correct(batch.inputs, batch.targets, masks, logits)
        return StepLosses(*_in_precision_of(batch.embeddings, totals / rounds))

    def encoder_backward(self, batch: Encoded) -> None:
        """Send the gradient that the leaf has collected through the encoder, if that is trained."""
        if batch.embeddings.requires_grad:
            # The gradient is already scaled, where there is a scaler.
            with self.arithmetic.full_precision():
                batch.embeddings.backward(batch.leaf.grad)

    def validate(
        self, x: torch.Tensor, y: torch.Tensor, index: int
    ) -> tuple[StepLosses, Targets, torch.Tensor | None]:
        """The losses of one prediction, from the prompts of batch number `index` of the validation.

        The IoU of an image is that of the pixels of all its objects together, as in evaluation; its mask of
        an object is the one with the best predicted IoU.
        """
        choice = self.prompts.of_validation(index)
        with self.arithmetic.forward():
            batch = self.encode(x, y, choice)
            totals = torch.zeros(4, device=batch.targets.device, dtype=torch.float64)
            overlap, union = (torch.zeros(len(x), device=batch.targets.device) for _ in range(2))
            for objects, weight in self._chunks(batch):
                outputs, losses = self._predict(batch, objects, multimask_output=choice[-1])
                ious = _predicted_ious(outputs)
                totals += weight * torch.stack([*losses, ious.mean()])
                masks = best_masks(outputs, ious, self.iou_threshold or 0.0)[0]
                targets = batch.targets[:, objects]
                overlap += (masks & targets).sum((1, 2, 3, 4))
                union += (masks | targets).sum((1, 2, 3, 4))
        miou = None if self.iou_threshold is None else (overlap / union).mean()
        return StepLosses(*_in_precision_of(batch.embeddings, totals)), batch.targets, miou

    def _sub_iteration(
        self, batch: Encoded, multimask_output: bool, share: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One sub-iteration forward and backward, chunk by chunk.

        Args:
            batch: with the prompts of this sub-iteration.
            multimask_output: whether there are three masks for each object.
            share: of this sub-iteration in the loss of the step.

        Returns:
            (4,) loss, mask loss, IoU loss and mean predicted IoU of this sub-iteration;
            (batch, objects, 1, H, W) bool, the masks with the best predicted IoU;
            (batch, objects, 1, h, w) float, their logits in the decoder's resolution.
        """
        totals = torch.zeros(4, device=batch.targets.device, dtype=torch.float64)
        masks, logits = [], []
        for objects, weight in self._chunks(batch):
            outputs, losses = self._predict(batch, objects, multimask_output)
            self.arithmetic.backward(losses[0] * (weight * share))
            with torch.no_grad():
                ious = _predicted_ious(outputs)
                totals += weight * torch.stack([*losses, ious.mean()])
                chunk_masks, chunk_logits = best_masks(outputs, ious)
            masks.append(chunk_masks)
            logits.append(chunk_logits)
        return totals, torch.cat(masks, dim=1), torch.cat(logits, dim=1)

    def _chunks(self, batch: Encoded) -> Iterator[tuple[slice, float]]:
        """Objects that are decoded together, and their share: a chunk's loss is the mean over its own."""
        count, size = batch.targets.shape[1], self.object_chunk
        for first in range(0, count, size):
            last = min(first + size, count)
            yield slice(first, last), (last - first) / count

    def _predict(
        self, batch: Encoded, objects: slice, multimask_output: bool
    ) -> tuple[Outputs, tuple[torch.Tensor, ...]]:
        """micro-sam's output of each image for some of its objects, and their losses."""
        outputs: Outputs = self.model(
            batched_inputs=[select_objects(given, objects) for given in batch.inputs],
            image_embeddings=batch.leaf,
            multimask_output=multimask_output,
        )
        return outputs, self.loss(outputs, batch.targets[:, objects].float())


@dataclass
class Segmentation:
    """The segmentation decoder; it shares the embedding of a frozen encoder.

    Attributes:
        unetr: the encoder with the decoder.
        encoder: the same encoder.
        loss: of predicted and true foreground, center and boundary distances.
    """

    unetr: UNETR
    encoder: Encoder
    loss: DiceBasedDistanceLoss
    arithmetic: Arithmetic

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Step.segmentation."""
        loss = self.measure(x, y)
        self.arithmetic.backward(loss)
        return loss.detach()

    def measure(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        device = self.arithmetic.device
        with self.arithmetic.forward():
            if self.encoder.is_trained or self.unetr.use_skip_connection:
                outputs = self.unetr(x.to(device))
            else:
                outputs = self.decode(x, self.encoder.frozen(x))
            return self.loss(outputs, y[:, 1:].to(device))

    def decode(self, x: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """(batch, 3, H, W) distances in the images x, from their embeddings."""
        features = (embeddings, None, None)
        outputs: torch.Tensor = self.unetr.decode(features, self.encoder.input_size(x), tuple(x.shape[2:]))
        return outputs


def refsam_step(interactive: Interactive, segmentation: Segmentation | None) -> Step:
    """Two losses one after the other, each with its own optimizer step, as micro-sam trains them."""

    def validate(
        x: torch.Tensor, y: torch.Tensor, index: int
    ) -> tuple[StepLosses, Targets, torch.Tensor | None]:
        losses, targets, miou = interactive.validate(x, y, index)
        if segmentation is not None:
            losses = losses._replace(instance_loss=segmentation.measure(x, y))
        return losses, targets, miou

    return Step(interactive.gradients, None if segmentation is None else segmentation.gradients, validate)


def decoder_step(segmentation: Segmentation) -> Step:
    """The segmentation decoder's loss alone, as micro-sam's train_instance_segmentation; the rest is frozen.

    Of the interactive losses there are none, so they are 0, and the metric is a third of the decoder's loss.
    """

    def losses(instance_loss: torch.Tensor) -> StepLosses:
        none = torch.zeros_like(instance_loss)
        return StepLosses(instance_loss, none, none, none, instance_loss)

    def gradients(x: torch.Tensor, y: torch.Tensor, iteration: int) -> tuple[StepLosses, Targets]:
        return losses(segmentation.gradients(x, y)), y[:, :1]

    def validate(x: torch.Tensor, y: torch.Tensor, index: int) -> tuple[StepLosses, Targets, None]:
        return losses(segmentation.measure(x, y)), y[:, :1], None

    return Step(gradients, None, validate)


def best_masks(
    outputs: Outputs, ious: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the masks that were predicted for each object, the one with the best predicted IoU.

    Args:
        outputs: one per image.
        ious: (batch, objects, masks), predicted.
        threshold: logit from which a pixel is in the mask.

    Returns:
        (batch, objects, 1, H, W) bool; (batch, objects, 1, h, w) float, logits in the decoder's resolution.
    """
    best = torch.zeros_like(ious).scatter(2, ious.argmax(dim=2, keepdim=True), value=1).bool()
    masks, logits = (torch.stack([output[name] for output in outputs]) for name in ("masks", "low_res_masks"))
    chosen = masks[best].view(*masks.shape[:2], 1, *masks.shape[-2:])
    return is_mask(chosen, threshold), logits[best].view(*logits.shape[:2], 1, *logits.shape[-2:])


def _predicted_ious(outputs: Outputs) -> torch.Tensor:
    return torch.stack([output["iou_predictions"] for output in outputs])


def _in_precision_of(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values in the type of a tensor of the model, but not in less than float32."""
    return values.to(torch.promote_types(tensor.dtype, torch.float32))
