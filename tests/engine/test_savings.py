"""Each saving on its own computes what it takes the place of."""

import statistics
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import mobile_sam.modeling
import pytest
import segment_anything.modeling
import torch
from peft import LoraConfig, inject_adapter_in_model
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from steps import Case, model_of
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, interpolate

from refsam.configuration.compose import compose
from refsam.science.engine import attention, late_convolution
from refsam.science.engine.attention import FusedAttention, use_fused_attention
from refsam.science.engine.checkpointing import checkpoint_encoder, encoder_blocks
from refsam.science.engine.late_convolution import LateConvolution
from refsam.science.engine.mask_decoder import use_lean_mask_decoder
from refsam.science.engine.masks import use_linear_resizing
from refsam.science.models import load_model

CPU = torch.device("cpu")
SIZES = [
    ((1024, 1024), (512, 512)),
    ((1024, 1024), (1024, 1024)),
    ((1024, 768), (64, 48)),
    ((701, 1024), (350, 511)),
    ((1024, 333), (2000, 650)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("input_size", "original_size"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_linear_map_is_both_resizings(
    input_size: tuple[int, int], original_size: tuple[int, int], dtype: torch.dtype
) -> None:
    sam = model_of(Case())
    sam.image_encoder.img_size = 1024
    masks = torch.randn(2, 3, 256, 256, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(2, 3, *original_size, dtype=dtype)
    expected = sam.postprocess_masks(masks, input_size, original_size)
    (expected_gradient,) = torch.autograd.grad(expected, masks, cotangent)
    use_linear_resizing(sam)
    resized = sam.postprocess_masks(masks, input_size, original_size)
    (gradient,) = torch.autograd.grad(resized, masks, cotangent)
    # Weights of interpolation are computed by torch in the type of its input.
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(resized, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block_bytes", [16 * 2**20, 3 * 5 * 8 * 8, 1], ids=["whole", "rows", "one row"])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 8), (1, 3)])
def test_fused_attention_is_the_attention(
    height: int, width: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    eager = Attention(24, num_heads=3, use_rel_pos=True, input_size=(height, width)).double()
    for parameter in eager.parameters():
        nn.init.normal_(parameter)
    fused = Attention(24, num_heads=3, use_rel_pos=True, input_size=(height, width)).double()
    fused.load_state_dict(eager.state_dict())
    use_fused_attention(fused)
    assert type(fused) is FusedAttention
    x = torch.randn(2, height, width, 24, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    expected, attended = eager(x), fused(x)
    torch.testing.assert_close(attended, expected)
    wanted = torch.autograd.grad(expected, [x, *eager.parameters()], cotangent)
    given = torch.autograd.grad(attended, [x, *fused.parameters()], cotangent)
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_in_one_product_is_that_in_blocks() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 15, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    by_row, by_column = (torch.randn(2, 15, n, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    given = (query, key, value, by_row, by_column)
    in_blocks, in_one = attention._Blockwise.apply(*given), attention.with_one_product(*given)
    torch.testing.assert_close(in_one, in_blocks)
    cotangent = torch.randn_like(value)
    for ours, theirs in zip(
        torch.autograd.grad(in_one, given, cotangent),
        torch.autograd.grad(in_blocks, given, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("architecture", ["vit_b", "vit_l", "vit_h"])
def test_one_product_of_the_published_sizes_has_as_many_columns_as_its_kernel_asks_for(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's sdp_utils.cpp: in half precision the memory-efficient kernel wants a multiple of 8."""
    given = []
    monkeypatch.setattr(
        attention, "scaled_dot_product_attention", lambda *args, **_: given.append(args) or args[2]
    )
    channels = 80 if architecture == "vit_h" else 64
    for side in (14, 64):  # windows, and all of a padded image
        tokens = torch.zeros(1, side * side, channels, dtype=torch.bfloat16)
        offsets = torch.zeros(1, side * side, side, dtype=torch.bfloat16)
        attention.with_one_product(tokens, tokens, tokens, offsets, offsets)
    widths = [(query.shape[-1], key.shape[-1], value.shape[-1]) for query, key, value in given]
    assert widths == ([(112, 112, 80), (208, 208, 80)] if channels == 80 else [(96, 96, 64), (192, 192, 64)])


def test_the_index_of_relative_positions_may_be_made_in_an_evaluation_first() -> None:
    attention.offsets.cache_clear()
    table = torch.randn(13, 4, requires_grad=True)
    with torch.inference_mode():
        seen = attention._by_offset(7, table)
    again = attention._by_offset(7, table)
    again.sum().backward()
    torch.testing.assert_close(again.detach(), seen.clone())
    assert attention.offsets.cache_info().hits == 1
    torch.testing.assert_close(again, get_rel_pos(7, 7, table))


def test_the_attention_of_the_published_vit_is_fused() -> None:
    encoder = load_model(compose(["model=vit_b", "model.weights=random"]).model, 0, CPU).sam.image_encoder
    use_fused_attention(encoder)
    assert all(type(block.attn) is FusedAttention for block in encoder.blocks)


def test_an_encoder_without_such_attention_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no attention"):
        use_fused_attention(nn.Linear(2, 2))


def test_savings_keep_the_names_of_the_parameters() -> None:
    sam = model_of(Case(peft="lora"))
    names = list(sam.state_dict())
    use_linear_resizing(sam)
    assert use_lean_mask_decoder(sam)
    use_fused_attention(sam.image_encoder)
    checkpoint_encoder(sam.image_encoder, 1)
    assert list(sam.state_dict()) == names


@pytest.mark.parametrize(("every", "computed"), [(1, 6), (2, 5)])
def test_checkpointed_blocks_are_computed_again(every: int, computed: int) -> None:
    encoder = model_of(Case()).image_encoder
    calls = []
    for block in encoder_blocks(encoder):
        block.norm1.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_encoder(encoder, every)
    encoder(torch.randn(1, 3, 128, 128)).sum().backward()
    # Three blocks: all of them twice, or the first and the last one twice and the other once.
    assert len(calls) == computed
    calls.clear()
    with torch.no_grad():
        encoder(torch.randn(1, 3, 128, 128))
    assert len(calls) == 3


@pytest.mark.parametrize("library", [segment_anything.modeling, mobile_sam.modeling])
@pytest.mark.parametrize("n_points", [1, 9])
@pytest.mark.parametrize("multimask_output", [True, False], ids=["three masks", "one mask"])
@pytest.mark.parametrize("with_masks", [True, False], ids=["masks given", "no masks"])
def test_the_lean_mask_decoder_is_the_mask_decoder(
    library: Any, n_points: int, multimask_output: bool, with_masks: bool
) -> None:
    torch.manual_seed(0)
    transformer = library.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=48, num_heads=4)
    sizes = {"transformer_dim": 32, "iou_head_depth": 3, "iou_head_hidden_dim": 24}
    decoder = library.MaskDecoder(transformer=transformer, **sizes).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    image, encoding = torch.randn(2, 1, 32, 5, 7, dtype=torch.float64)
    points = torch.randn(3, n_points, 32, dtype=torch.float64)
    dense = torch.randn(3, 32, 5, 7) if with_masks else torch.randn(1, 32, 1, 1).expand(3, -1, 5, 7)
    inputs = [value.requires_grad_() for value in (image, points, dense.double())]
    weights = list(decoder.parameters())

    def decode() -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        results = decoder(
            image_embeddings=inputs[0],
            image_pe=encoding,
            sparse_prompt_embeddings=inputs[1],
            # Of no mask the prompt encoder gives one vector, which torch expands without writing it out.
            dense_prompt_embeddings=inputs[2] if with_masks else inputs[2][:1, :, :1, :1].expand(3, -1, 5, 7),
            multimask_output=multimask_output,
        )
        loss = sum(
            (result * torch.linspace(0, 1, result.numel()).view_as(result)).sum() for result in results
        )
        return list(results), list(torch.autograd.grad(loss, inputs + weights, allow_unused=True))

    expected, expected_gradients = decode()
    assert use_lean_mask_decoder(SimpleNamespace(mask_decoder=decoder))
    results, gradients = decode()
    torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-9)
    # A missing gradient is not one of zero: Adam moves a parameter for the latter.
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-8)


def test_the_lean_mask_decoder_is_as_precise_in_mixed_precision() -> None:
    """Against float32, no gradient is further off than twice what the plain decoder's are."""
    torch.manual_seed(0)
    modeling = segment_anything.modeling
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=48, num_heads=4)
    sizes = {"transformer_dim": 32, "iou_head_depth": 3, "iou_head_hidden_dim": 24}
    decoder = modeling.MaskDecoder(transformer=transformer, **sizes)
    # As many positions as Segment Anything has: it is the sums over them that rounding can spoil.
    image, encoding = torch.randn(2, 1, 32, 64, 64)
    points = torch.randn(2, 3, 32)
    target = torch.randn(2, 3, 256, 256).sigmoid().round()

    def gradients(mixed: bool) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, mixed):
            masks, _ = decoder(image, encoding, points, torch.zeros(2, 32, 64, 64), multimask_output=True)
        loss = binary_cross_entropy_with_logits(masks.float(), target)
        found = torch.autograd.grad(loss, list(decoder.parameters()), allow_unused=True)
        names = [name for name, _ in decoder.named_parameters()]
        return {name: value for name, value in zip(names, found, strict=True) if value is not None}

    exact = gradients(mixed=False)
    largest = max(float(value.norm()) for value in exact.values())
    names = [name for name, value in exact.items() if float(value.norm()) > 1e-4 * largest]

    def errors() -> dict[str, float]:
        found = gradients(mixed=True)
        return {name: float((found[name] - exact[name]).norm() / exact[name].norm()) for name in names}

    expected = errors()
    assert use_lean_mask_decoder(SimpleNamespace(mask_decoder=decoder))
    usual = statistics.median(expected.values())
    for name, error in errors().items():
        assert error < 2 * max(expected[name], usual), name


def test_a_mask_decoder_with_adapters_is_left_alone() -> None:
    sam = model_of(Case())
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), sam.mask_decoder)
    before = type(sam.mask_decoder)
    assert not use_lean_mask_decoder(sam)
    assert type(sam.mask_decoder) is before


@pytest.mark.parametrize("values_at_once", [1, 2**20], ids=["a channel at a time", "all channels"])
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 3, 40, 33), (1, 4, 16, 17), (1, 2, 1, 1)])
def test_the_late_convolution_is_enlarging_and_convolving(
    shape: tuple[int, ...], values_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_convolution, "VALUES_AT_ONCE", values_at_once)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    enlarged = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    expected = conv2d(enlarged, weight, bias, padding=1)
    result = LateConvolution.apply(x, weight, bias)
    torch.testing.assert_close(result, expected)
    cotangent = torch.randn_like(result)
    gradients = torch.autograd.grad(result, (x, weight, bias), cotangent)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, weight, bias), cotangent))


FAULTS = """
import resource, sys
import torch
from refsam.science.engine.allocator import keep_freed_memory
assert keep_freed_memory(large=sys.argv[1] == "large")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
before = faults()
torch.ones(3 * 2**22)
print(faults() - before)
"""


@pytest.mark.slow
def test_a_large_tensor_takes_the_memory_of_a_larger_one_before() -> None:
    """A tensor of 48 MiB has 12288 pages, each of which the system clears when it is new."""

    def pages(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert pages("large") < 1000
    assert pages("small") > 10000
