"""transformers' SamModel behind segment_anything's interface: the same weights give the same step."""

from dataclasses import replace

import pytest
import torch
from segment_anything.modeling import Sam
from steps import PEFTS, Case, Step, assert_same_gradients, model_of, reference, take_step

from refsam.science.engine.checkpointing import checkpoint_encoder
from refsam.science.engine.masks import use_linear_resizing
from refsam.science.hugging_face import ATTENTIONS, HuggingFaceSam
from refsam.science.state_names import segment_anything_name

# Positions are encoded in float32 in either, and transformers takes the eager softmax in float32 too.
TOLERANCE = {"sdpa": 1e-6, "fused": 1e-6, "eager": 1e-5}


def with_names_of_segment_anything(step: Step) -> Step:
    """The gradients of a step of transformers' model, under the names that the others have."""
    prefix = "sam."

    def renamed(name: str) -> str:
        return prefix + segment_anything_name(name.removeprefix(prefix)) if name.startswith(prefix) else name

    gradients = [{renamed(name): value for name, value in of_step.items()} for of_step in step.gradients]
    return replace(step, gradients=gradients)


@pytest.mark.parametrize("peft", PEFTS)
@pytest.mark.parametrize("iteration", [0, 1], ids=["point", "box"])
@pytest.mark.parametrize("object_chunk", [None, 2], ids=["micro-sam's step", "our step"])
def test_the_gradients_are_those_of_segment_anything(
    peft: str, iteration: int, object_chunk: int | None
) -> None:
    case = Case(peft=peft, iteration=iteration)
    step = with_names_of_segment_anything(take_step(replace(case, hugging_face=True), object_chunk))
    assert_same_gradients(step, reference(case), TOLERANCE["sdpa"])
    assert step.losses == pytest.approx(reference(case).losses, rel=1e-7)


def test_the_segmentation_decoder_stands_on_it_too() -> None:
    case = Case(decoder=True)
    step = with_names_of_segment_anything(take_step(replace(case, hugging_face=True), 5))
    assert_same_gradients(step, reference(case), TOLERANCE["sdpa"])
    assert step.losses == pytest.approx(reference(case).losses, rel=1e-7)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_attention_gives_the_same_gradients(kind: str) -> None:
    def switch(sam: Sam) -> None:
        assert isinstance(sam, HuggingFaceSam)
        sam.use_attention(kind)
        assert {type(block.attn) for block in sam.image_encoder.blocks} == {ATTENTIONS[kind]}

    savings = (use_linear_resizing, switch, lambda sam: checkpoint_encoder(sam.image_encoder, 1))
    step = take_step(Case(hugging_face=True, savings=savings), 5)
    assert_same_gradients(with_names_of_segment_anything(step), reference(Case()), TOLERANCE[kind])


def test_masks_of_eager_and_sdpa_attention_are_equal() -> None:
    """In float32, as they are used, from all kinds of prompts."""
    sam = model_of(Case(hugging_face=True)).eval()
    assert isinstance(sam, HuggingFaceSam)
    generator = torch.Generator().manual_seed(1)
    image = 255 * torch.rand((1, 3, 128, 128), generator=generator)
    points = 1024 * torch.rand((3, 2, 2), generator=generator), torch.tensor([[1, 0]] * 3)
    boxes = 1024 * torch.rand((3, 4), generator=generator)
    masks = torch.rand((3, 1, *sam.prompt_encoder.mask_input_size), generator=generator)
    for prompts in ((points, None, None), (None, boxes, None), (points, boxes, masks), (None, None, None)):
        found = {}
        for kind in ATTENTIONS:
            sam.use_attention(kind)
            with torch.no_grad():
                sparse, dense = sam.prompt_encoder(*prompts)
                embedding, positions = (
                    sam.image_encoder(sam.preprocess(image)),
                    sam.prompt_encoder.get_dense_pe(),
                )
                found[kind] = sam.mask_decoder(embedding, positions, sparse, dense, True)[0]
        scale = found["eager"].abs().max()
        for kind in ("sdpa", "fused"):
            assert (found[kind] - found["eager"]).abs().max() < 1e-4 * scale
