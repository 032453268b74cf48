"""Tiny models of every kind that strategies are put into, trained for some steps on one image."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from mobile_sam.modeling import TinyViT
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from steps import Case, Ended, LossRecorder, discs, model_config, seed_a_step, step_functions
from torch import nn
from transformers import SamModel

from refsam.configuration.compose import compose
from refsam.configuration.schema import PeftConfig, Precision
from refsam.models.strategies import DECODER, STRATEGIES
from refsam.science.engine.prompts import BooleanPrompts
from refsam.science.hugging_face import HuggingFaceSam, from_segment_anything
from refsam.science.models import PROMPT_FRAME, load_model, trainable_sam
from refsam.science.training import loop
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.learner import Learner

MODELS = ("vit", "tiny_vit", "hugging_face")
# What the table says of them: their family and architecture.
KINDS = {"vit": {"micro_sam", "vit_nano"}, "tiny_vit": {"micro_sam", "vit_t"}, "hugging_face": {"hf"}}
# Without the one that trains nothing of the model: its own tests train the segmentation decoder.
PAIRS = [
    (name, model)
    for model in MODELS
    for name in STRATEGIES
    if name != DECODER and not KINDS[model] & set(STRATEGIES[name].excluded)
]
QUICK = {("full", "vit"), ("freeze_encoder", "tiny_vit"), ("lora", "vit"), ("hf_lora", "hugging_face")}
# Of conf/peft, what is too large for layers of 16 channels.
SMALL: dict[str, Any] = {"rank": 2, "projection": 2}
STEPS = 8


@dataclass(frozen=True)
class Trained:
    """A model before and after some steps."""

    sam: Sam
    before: dict[str, torch.Tensor]
    losses: list[float]


def strategy(name: str, **values: Any) -> PeftConfig:
    """The strategy of conf/peft/NAME.yaml, small."""
    file = strategy_of_file(name)
    small = {key: value for key, value in SMALL.items() if getattr(file, key) is not None}
    if name == "oft":
        small["options"] = {"oft_block_size": 8}
    return replace(file, **small | values)


def strategy_of_file(file: str) -> PeftConfig:
    """The strategy of conf/peft/FILE.yaml as it is."""
    return compose([f"peft={file}"]).peft


def fresh(model: str) -> Sam:
    """A model with the same random weights at every time."""
    if model == "tiny_vit":
        return small_tiny_vit()
    sam = load_model(model_config("tiny"), 0, "cpu").sam
    return HuggingFaceSam(from_segment_anything(sam), PROMPT_FRAME) if model == "hugging_face" else sam


class SmallTinyViT(TinyViT):
    """MobileSAM's, for images of 64 x 64 pixels; its own gives the embedding as 64 x 64 tokens always."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x.unflatten(1, (4, 4)).permute(0, 3, 1, 2))


def small_tiny_vit() -> Sam:
    """MobileSAM's vit_t with fewer channels and blocks, for images of 64 x 64 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = SmallTinyViT(
            img_size=64,
            num_classes=4,
            embed_dims=[16, 16, 16, 320],  # only before this width does TinyViT keep its resolution
            depths=[1, 1, 2, 1],
            num_heads=[1, 1, 2, 2],
            window_sizes=[4, 4, 4, 4],
            mlp_ratio=2.0,
            drop_path_rate=0.0,
            mbconv_expand_ratio=2.0,
        )
        transformer = TwoWayTransformer(depth=1, embedding_dim=256, mlp_dim=32, num_heads=4)
        prompts = PromptEncoder(
            embed_dim=256,
            image_embedding_size=(4, 4),
            input_image_size=(PROMPT_FRAME, PROMPT_FRAME),
            mask_in_chans=4,
        )
        decoder = MaskDecoder(transformer=transformer, transformer_dim=256, iou_head_hidden_dim=32)
        return Sam(encoder, prompts, decoder).eval()


def mostly_slow(pairs: list[tuple[str, str]]) -> list[Any]:
    """Pairs to parametrize a test with, of which make test-fast takes one of each kind."""
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in pairs]


def train_some_steps(sam: Sam, steps: int = STEPS, learning_rate: float = 1e-3) -> Trained:
    """`steps` steps of our trainer on one image of discs, with Adam."""
    model = trainable_sam(sam)
    x, y = discs(Case(shape=(64, 64), dtype=torch.float32))
    batches = [(x, y[:, :1])] * steps
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    arithmetic = Arithmetic(Precision.float32, torch.device("cpu"))
    learner = Learner(model, None, optimizer, None, arithmetic)
    case = Case(n_objects=4, n_sub_iterations=1)
    functions = step_functions(case, learner, object_chunk=4, generator=BooleanPrompts())
    seed_a_step()
    before = {name: value.detach().clone() for name, value in sam.named_parameters()}
    before |= {name: value.detach().clone() for name, value in sam.named_buffers()}
    recorder = LossRecorder(iteration=0, steps=steps)
    with pytest.raises(Ended):
        loop.train(learner, functions, (batches, batches), recorder, seed=7)
    return Trained(sam, before, [losses[0] for losses in recorder.losses])


def masks(sam: nn.Module) -> torch.Tensor:
    """(2, 3, h, w) logits of `sam` for two boxes in an image of noise, in evaluation mode."""
    sam.eval()
    image, boxes = image_and_boxes(sam.image_encoder.img_size)
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        logits, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(image),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    return logits


def masks_of_transformers(model: SamModel) -> torch.Tensor:
    """What `masks` gives for a HuggingFaceSam, from transformers' model with the same frame of prompts."""
    model.eval()
    image, boxes = image_and_boxes(model.config.vision_config.image_size)
    with torch.no_grad():
        output = model(pixel_values=image, input_boxes=boxes[None])
    return output.pred_masks[0]


def image_and_boxes(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 3, size, size) noise, and two boxes in the frame of prompts."""
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(2))
    return image, torch.tensor([[100.0, 120.0, 500.0, 420.0], [300.0, 500.0, 900.0, 1000.0]])
