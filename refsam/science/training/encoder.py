"""The image encoder as the losses see it: a frozen one keeps no graph, and its embeddings are kept."""

from typing import Any

import torch
from segment_anything.utils.transforms import ResizeLongestSide

from refsam.science.engine.cache import EmbeddingCache, MemoryStore
from refsam.science.micro_sam import TrainableSAM

BatchedInputs = list[dict[str, Any]]


class Encoder:
    """The encoder of a model that is trained.

    Args:
        embeddings: of a frozen encoder; None keeps those of the latest batch.
        pooled: whether the patches of the training come again.
        fixed: whether those of the validation do.
    """

    def __init__(
        self,
        model: TrainableSAM,
        embeddings: EmbeddingCache | None = None,
        *,
        pooled: bool = False,
        fixed: bool = True,
    ) -> None:
        self.model = model
        self.embeddings = embeddings or EmbeddingCache(MemoryStore(0.0), model.sam.device)
        self.pooled = pooled
        self.fixed = fixed

    @property
    def is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.sam.image_encoder.parameters())

    def encode(self, batched_inputs: BatchedInputs) -> torch.Tensor:
        """(batch, channels, rows, columns); the inputs get the size of the images that the encoder saw.

        A frozen encoder sees a patch that it has seen before only if that was not kept.
        """
        if self.is_trained:
            embeddings: torch.Tensor = self.model.image_embeddings_oft(batched_inputs)[0]
            return embeddings
        embeddings = self.frozen(torch.stack([given["image"] for given in batched_inputs]))
        for given in batched_inputs:
            given["input_size"] = self.input_size(given["image"])
        return embeddings

    def frozen(self, images: torch.Tensor) -> torch.Tensor:
        """The embeddings of `images`, (batch, 3, H, W), by a frozen encoder."""

        def encode(unknown: torch.Tensor) -> torch.Tensor:
            embeddings, _ = self.model.image_embeddings_oft([{"image": image} for image in unknown])
            return embeddings

        keep = self.pooled if self.model.training else self.fixed
        return self.embeddings.embed(images, encode, keep=keep)

    def input_size(self, image: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the encoder's input that an image (3, H, W) fills."""
        return ResizeLongestSide.get_preprocess_shape(
            *image.shape[-2:], self.model.sam.image_encoder.img_size
        )
