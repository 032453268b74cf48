"""Mask decoder and prompt encoder trained, frozen, or adapted; and 4 bits in the whole model."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from segment_anything.modeling import Sam
from strategy_models import fresh, masks, masks_of_transformers, strategy, strategy_of_file, train_some_steps
from torch import nn
from torch.nn.functional import linear
from transformers import SamConfig, SamModel

from refsam.configuration.schema import PeftConfig
from refsam.models.strategies import FREEZE, frozen_parts
from refsam.science.hugging_face import HuggingFaceSam, from_segment_anything
from refsam.science.models import PROMPT_FRAME
from refsam.science.strategies.adapter_files import write_adapter
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.merging import plain_state
from refsam.science.strategies.parts import linear_layers
from refsam.science.strategies.quantization import dequantized, quantize

QKV = [r"image_encoder\..*\.attn\.qkv"]
LORA, MAGNITUDE = r"\.lora_[AB]\.default\.weight", r"\.lora_magnitude_vector\.default\.weight"
ADAPTED = [("hf_lora", None), ("dora", None), ("hf_qlora", "all"), ("qdora", "all")]
MODELS = ("vit", "hugging_face")


def adapting(name: str, layers: str | None) -> PeftConfig:
    return strategy(name, decoder="adapt", targets=QKV, quantized_layers=layers)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "layers"), ADAPTED)
def test_adapting_the_decoder_trains_updates_of_its_queries_and_values_and_nothing_else(
    name: str, layers: str | None, model: str
) -> None:
    result = train_some_steps(apply_strategy(fresh(model), adapting(name, layers)), learning_rate=1e-2)
    chosen = r"image_encoder\..*\.attn\.qkv|mask_decoder\..*\.[qv]_proj"
    update = f"({LORA}|{MAGNITUDE})" if "dora" in name else LORA
    trained = trained_names(result.sam)
    assert all(re.fullmatch(f"({chosen}){update}", each) for each in trained)
    adapted = {re.sub(f"({LORA}|{MAGNITUDE})$", "", each) for each in trained}
    assert len(adapted) == len(result.sam.image_encoder.blocks) + 14  # two each of seven attentions
    for parameter, value in result.sam.named_parameters():
        assert torch.equal(value, result.before[parameter]) == (parameter not in trained), parameter
    assert not result.sam.prompt_encoder.training


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "layers"), ADAPTED)
def test_an_adapted_decoder_is_merged_and_opened_by_peft(
    name: str, layers: str | None, model: str, tmp_path: Path
) -> None:
    peft = adapting(name, layers)
    sam = train_some_steps(apply_strategy(fresh(model), peft)).sam
    expected = masks(sam)
    assert not torch.allclose(expected, masks(fresh(model)), atol=1e-3)
    plain = fresh(model)
    plain.load_state_dict(plain_state(sam))
    torch.testing.assert_close(masks(plain), expected, rtol=0, atol=1e-4)
    write_adapter(sam, peft, tmp_path)
    base: nn.Module = fresh(model)
    if model == "hugging_face":
        base = from_segment_anything(fresh("vit"))
        base.prompt_encoder.input_image_size = PROMPT_FRAME
    if layers is not None:
        quantize(base, peft)
        base.is_loaded_in_4bit = True
    opened = PeftModel.from_pretrained(base, tmp_path).base_model.model
    given = masks_of_transformers(opened) if model == "hugging_face" else masks(opened)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)


def test_freezing_the_decoder_is_the_same_as_freezing_both_parts() -> None:
    assert frozen_parts(strategy("full", decoder=FREEZE)) == ["prompt_encoder", "mask_decoder"]
    names = trained_names(apply_strategy(fresh("vit"), strategy("lora", decoder=FREEZE)))
    assert names
    assert all(name.startswith("image_encoder") for name in names)


@pytest.mark.parametrize("model", MODELS)
def test_all_linear_layers_of_the_model_lie_in_4_bits(model: str) -> None:
    sam = apply_strategy(fresh(model), adapting("hf_qlora", "all"))
    quantized = {
        name.removesuffix(".base_layer"): layer
        for name, layer in linear_layers(sam).items()
        if type(layer).__name__ == "Linear4bit"
    }
    assert quantized.keys() == linear_layers(fresh(model)).keys()
    assert any(name.startswith("mask_decoder") for name in quantized)
    states = [layer.weight.quant_state for layer in quantized.values()]
    assert {(state.quant_type, state.nested) for state in states} == {("nf4", True)}
    of_encoder = apply_strategy(fresh(model), strategy("hf_qlora"))
    assert not any(
        type(layer).__name__ == "Linear4bit" for layer in linear_layers(of_encoder.mask_decoder).values()
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_products_with_weights_in_4_bits_have_the_precision_of_the_run(precision: torch.dtype) -> None:
    sam: Sam = fresh("vit")
    quantize(sam, adapting("hf_qlora", "all"))
    layer = sam.image_encoder.blocks[0].attn.qkv
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        found = layer(x)
        expected = linear(x, dequantized(layer), layer.bias)
    assert torch.equal(found.to(precision), expected.to(precision))
    assert expected.dtype == precision
    assert layer.bias.dtype == torch.float32


def test_the_study_s_updates_of_sam_vit_base_have_their_number() -> None:
    """Rank 128: of 768 to 2304 in 12 blocks, of 256 to 256 in 4 layers and of 256 to 128 in 10."""
    peft = replace(strategy_of_file("dora"), decoder="adapt", rank=128, targets=QKV)
    with torch.device("meta"):
        sam = apply_strategy(HuggingFaceSam(SamModel(SamConfig()), PROMPT_FRAME), peft)
    trained = {name: value.numel() for name, value in sam.named_parameters() if value.requires_grad}
    of_magnitudes = sum(count for name, count in trained.items() if "lora_magnitude_vector" in name)
    updates = 12 * 128 * (768 + 2304) + 4 * 128 * (256 + 256) + 10 * 128 * (256 + 128)
    magnitudes = 12 * 2304 + 4 * 256 + 10 * 128
    assert sum(trained.values()) - of_magnitudes == updates == 5_472_256
    assert of_magnitudes == magnitudes == 29_952
