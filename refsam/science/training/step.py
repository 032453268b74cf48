"""The interactive step with one graph alive at a time: of one chunk of objects in one sub-iteration.

micro-sam sums the losses of all sub-iterations and calls backward once, so all their graphs are alive
together. But the prompts of the next sub-iteration are made without gradients: each loss can be sent backward
at once, into a detached copy of the image embedding, and the encoder goes backward once at the end with the
summed gradient. The loss is a mean over objects, so it can be cut into chunks of objects in the same way.

It saves all graphs but one of mask decoder and masks. It costs one backward call per chunk, and nothing else:
the sums are the same, in another order.
"""

from collections.abc import Iterator
from typing import Any

import torch
from micro_sam.training.joint_sam_trainer import JointSamTrainer
from micro_sam.training.sam_trainer import SamTrainer
from segment_anything.utils.transforms import ResizeLongestSide

from refsam.science.engine.cache import EmbeddingCache, MemoryStore
from refsam.science.engine.prompts import BooleanPrompts

BatchedInputs = list[dict[str, Any]]
# What of a batched input has one row per object.
PER_OBJECT = ("point_coords", "point_labels", "boxes", "mask_inputs")


class LowMemoryStep(SamTrainer):
    """Mixin in front of SamTrainer; LowMemoryJointStep is the one in front of JointSamTrainer.

    Prompts, losses and random draws are micro-sam's own, in micro-sam's order. The gradients are there when
    the interactive iteration returns, and its loss has no graph any more.

    Args:
        object_chunk: how many objects of an image are decoded at a time.
        embeddings: of a frozen encoder; None keeps those of the latest batch.
        pooled: whether the patches of the training come again.
        kwargs: those of the trainer.
    """

    def __init__(
        self,
        *,
        object_chunk: int,
        embeddings: EmbeddingCache | None = None,
        pooled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.object_chunk = object_chunk
        self.embeddings = embeddings or EmbeddingCache(MemoryStore(0.0), self.device)
        self.pooled = pooled
        self.prompt_generator = BooleanPrompts()

    def _preprocess_batch(
        self, batched_inputs: BatchedInputs, y: torch.Tensor, sampled_ids: list[Any]
    ) -> tuple[BatchedInputs, torch.Tensor]:
        """micro-sam's, with the targets in one byte: (batch, objects, 1, H, W) bool."""
        batched_inputs, y_one_hot = super()._preprocess_batch(batched_inputs, y, sampled_ids)
        return batched_inputs, y_one_hot.bool()

    def _interactive_train_iteration(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
        # TensorBoard would show a mask of 0 and 1 in one byte as nearly black.
        *values, y_one_hot = super()._interactive_train_iteration(x, y)
        return *values, y_one_hot.float()

    def _compute_iterative_loss(
        self, batched_inputs: BatchedInputs, y_one_hot: torch.Tensor, num_subiter: int, multimask_output: bool
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of all sub-iterations; without graph: loss, mask loss, IoU loss, mean predicted IoU.

        Args:
            batched_inputs: micro-sam's, one per image: the image and the first prompts.
            y_one_hot: (batch, objects, 1, H, W) bool.
            num_subiter: number of sub-iterations.
            multimask_output: whether the first sub-iteration predicts three masks for each object.
        """
        embeddings, batched_inputs = self._image_embeddings(batched_inputs)
        leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
        batched_inputs, use_mask_inputs = self._use_mask_inputs(batched_inputs, y_one_hot)
        totals = torch.zeros(4, device=y_one_hot.device, dtype=torch.float64)
        for index in range(num_subiter):
            values, masks, logits = self._sub_iteration(
                batched_inputs, leaf, y_one_hot, multimask_output and index == 0, 1 / num_subiter
            )
            totals += values
            if index < num_subiter - 1:
                with torch.no_grad():
                    batched_inputs = self._update_prompts(
                        batched_inputs, y_one_hot, masks, logits, use_mask_inputs
                    )
        self._encoder_backward(embeddings, leaf)
        loss, mask_loss, iou_loss, model_iou = _in_precision_of(embeddings, totals / num_subiter)
        return loss, mask_loss, iou_loss, model_iou

    def _encoder_backward(self, embeddings: torch.Tensor, leaf: torch.Tensor) -> None:
        """Send the gradient that the detached `leaf` has collected through the encoder, if it is trained."""
        if embeddings.requires_grad:
            # The gradient is already scaled, where there is a scaler.
            with _full_precision(embeddings):
                embeddings.backward(leaf.grad)

    def _image_embeddings(self, batched_inputs: BatchedInputs) -> tuple[torch.Tensor, BatchedInputs]:
        """(batch, channels, rows, columns), and the inputs with the size of the images that the encoder saw.

        A frozen encoder keeps no graph, and sees a patch that it has seen before only if that was not kept.
        """
        if self.encoder_is_trained:
            embeddings, batched_inputs = self.model.image_embeddings_oft(batched_inputs)
            return embeddings, batched_inputs
        embeddings = self._frozen_embeddings(torch.stack([given["image"] for given in batched_inputs]))
        for given in batched_inputs:
            given["input_size"] = self._input_size(given["image"])
        return embeddings, batched_inputs

    def _frozen_embeddings(self, images: torch.Tensor) -> torch.Tensor:
        def encode(unknown: torch.Tensor) -> torch.Tensor:
            embeddings, _ = self.model.image_embeddings_oft([{"image": image} for image in unknown])
            return embeddings

        return self.embeddings.embed(images, encode, keep=self.pooled or not self.model.training)

    def _input_size(self, image: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the encoder's input that an image (3, H, W) fills."""
        return ResizeLongestSide.get_preprocess_shape(
            *image.shape[-2:], self.model.sam.image_encoder.img_size
        )

    @property
    def encoder_is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.sam.image_encoder.parameters())

    def _sub_iteration(
        self,
        batched_inputs: BatchedInputs,
        embeddings: torch.Tensor,
        y_one_hot: torch.Tensor,
        multimask_output: bool,
        share: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One sub-iteration forward and backward, chunk by chunk.

        Args:
            batched_inputs: one per image, with the prompts of this sub-iteration.
            embeddings: (batch, channels, rows, columns), a leaf that collects the gradient.
            y_one_hot: (batch, objects, 1, H, W) bool.
            multimask_output: whether there are three masks for each object.
            share: of this sub-iteration in the loss of the step.

        Returns:
            (4,) loss, mask loss, IoU loss and mean predicted IoU of this sub-iteration;
            (batch, objects, 1, H, W) bool, the masks with the best predicted IoU;
            (batch, objects, 1, h, w) float, their logits in the decoder's resolution.
        """
        n_objects = y_one_hot.shape[1]
        totals = torch.zeros(4, device=y_one_hot.device, dtype=torch.float64)
        masks, logits = [], []
        for objects in _chunks(n_objects, self.object_chunk):
            outputs = self._decode(batched_inputs, embeddings, objects, multimask_output)
            targets = y_one_hot[:, objects].float()
            losses = self._compute_loss(outputs, targets)
            # A chunk's loss is the mean over its own objects.
            weight = targets.shape[1] / n_objects
            self._backward(losses[0] * (weight * share))
            with torch.no_grad():
                ious = torch.stack([output["iou_predictions"] for output in outputs])
                totals += weight * torch.stack([*losses, ious.mean()])
                chunk_masks, chunk_logits = self._get_best_masks(outputs, ious)
            masks.append(chunk_masks.bool())
            logits.append(chunk_logits)
        return totals, torch.cat(masks, dim=1), torch.cat(logits, dim=1)

    def _decode(
        self, batched_inputs: BatchedInputs, embeddings: torch.Tensor, objects: slice, multimask_output: bool
    ) -> list[dict[str, torch.Tensor]]:
        """micro-sam's output of each image for some of its objects."""
        outputs: list[dict[str, torch.Tensor]] = self.model(
            batched_inputs=[_select(given, objects) for given in batched_inputs],
            image_embeddings=embeddings,
            multimask_output=multimask_output,
        )
        return outputs

    def _backward(self, loss: torch.Tensor) -> None:
        with _full_precision(loss):
            (self.scaler.scale(loss) if self.mixed_precision else loss).backward()

    def _backprop(self, loss: torch.Tensor) -> None:
        # The interactive loss has been sent backward, the one of the segmentation decoder has not.
        if loss.requires_grad:
            loss.backward()
        self.optimizer.step()

    def _backprop_mixed(self, loss: torch.Tensor) -> None:
        if loss.requires_grad:
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _interactive_val_iteration(
        self, x: torch.Tensor, y: torch.Tensor, val_iteration: int
    ) -> tuple[Any, ...]:
        """micro-sam's validation of one batch, chunk by chunk."""
        n_positive, n_negative, boxes, multimask_output = self._get_prompt_and_multimasking_choices_for_val(
            val_iteration
        )
        batched_inputs, ids = self.convert_inputs(
            x, y, n_positive, n_negative, boxes, self.n_objects_per_batch
        )
        batched_inputs, y_one_hot = self._preprocess_batch(batched_inputs, y, ids)
        embeddings, batched_inputs = self._image_embeddings(batched_inputs)
        n_objects = y_one_hot.shape[1]
        totals = torch.zeros(4, device=y_one_hot.device, dtype=torch.float64)
        for objects in _chunks(n_objects, self.object_chunk):
            outputs = self._decode(batched_inputs, embeddings, objects, multimask_output)
            targets = y_one_hot[:, objects].float()
            model_iou = torch.stack([output["iou_predictions"] for output in outputs]).mean()
            values = torch.stack([*self._compute_loss(outputs, targets), model_iou])
            totals += targets.shape[1] / n_objects * values
        loss, mask_loss, iou_loss, model_iou = _in_precision_of(embeddings, totals)
        return loss, mask_loss, iou_loss, model_iou, y_one_hot.float(), mask_loss


class LowMemoryJointStep(LowMemoryStep, JointSamTrainer):
    """Mixin in front of JointSamTrainer: a frozen encoder's embedding serves the segmentation decoder too."""

    def _instance_iteration(self, x: torch.Tensor, y: torch.Tensor, metric_for_val: bool = False) -> Any:
        """Loss of the segmentation decoder, and its metric for validation.

        Args:
            x: (batch, 3, H, W) images.
            y: (batch, 3, H, W) foreground, center and boundary distances.
            metric_for_val: whether the metric is asked for.
        """
        if self.encoder_is_trained or self.unetr.use_skip_connection:
            return super()._instance_iteration(x, y, metric_for_val)
        features = (self._frozen_embeddings(x), None, None)
        outputs = self.unetr.decode(features, self._input_size(x), tuple(x.shape[2:]))
        y = y.to(self.device)
        loss = self.instance_loss(outputs, y)
        return (loss, self.instance_metric(outputs, y)) if metric_for_val else loss


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _in_precision_of(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values in the type of a tensor of the model, but not in less than float32."""
    return values.to(torch.promote_types(tensor.dtype, torch.float32))


def _select(batched_input: dict[str, Any], objects: slice) -> dict[str, Any]:
    """The input of one image with the prompts of some of its objects."""
    return {key: value[objects] if key in PER_OBJECT else value for key, value in batched_input.items()}


def _full_precision(tensor: torch.Tensor) -> torch.autocast:
    """micro-sam's backward runs outside of autocast, ours is called inside of it."""
    return torch.autocast(tensor.device.type, enabled=False)
