"""Every finetuning strategy in every kind of model that it goes with."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from segment_anything.modeling import Sam
from steps import model_config
from strategy_models import (
    MODELS,
    PAIRS,
    Trained,
    fresh,
    image_and_boxes,
    masks,
    masks_of_transformers,
    mostly_slow,
    strategy,
    train_some_steps,
)
from torch import nn

from refsam.errors import ConfigError
from refsam.models.linear_layers import linear_layers as known_layers
from refsam.models.strategies import DECODER, PARTS, STRATEGIES
from refsam.science.engine.attention import use_fused_attention
from refsam.science.engine.checkpointing import checkpoint_encoder
from refsam.science.hugging_face import from_segment_anything
from refsam.science.models import PROMPT_FRAME, build_model
from refsam.science.strategies.adapter_files import write_adapter
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.merging import plain_state
from refsam.science.strategies.parts import count_parameters, linear_layers
from refsam.science.strategies.quantization import quantize, weights_bytes
from refsam.science.strategies.state import HOLDS, CheckpointPolicy, load_trained
from refsam.science.strategies.state import TRAINED as ONLY_TRAINED

LORA = r"lora_[AB]\.default\.weight"
# Names, within a block of the encoder, of all that each strategy is to train there.
TRAINED = {
    "full": r".*",
    "freeze_encoder": r"(?!)",
    "decoder": r"(?!)",
    "lora": r"attn\.qkv\.w_[ab]_linear_[qv]\.weight",
    "qlora": r"attn\.qkv\.w_[ab]_linear_[qv]\.weight",
    "fact": r"attn\.qkv\.([qv]_FacTs|FacT[uv])\.weight",
    "adaptformer": r"mlp\.(alpha|(up|down)_proj\.(weight|bias))",
    "ssf": r".*\.(scale|shift)|patch_embed\.proj\.(scale|shift)",
    "attention": r"attn\..*",
    "bias": r".*bias",
    "layernorm": r"(layer_)?norm[12]\..*",
    "late_lora": r"attn\.qkv\.w_[ab]_linear_[qv]\.weight",
    "late_qlora": r"attn\.qkv\.w_[ab]_linear_[qv]\.weight",
    "late_ft": r".*",
    "hf_lora": rf".*\.{LORA}",
    "dora": rf".*\.({LORA}|lora_magnitude_vector\.default\.weight)",
    "hf_qlora": rf".*\.{LORA}",
    "qdora": rf".*\.({LORA}|lora_magnitude_vector\.default\.weight)",
    "rslora": rf".*\.{LORA}",
    "pissa": rf".*\.{LORA}",
    "loha": r".*\.hada_w[12]_[ab]\.default",
    "lokr": r".*\.lokr_w[12](_[ab])?\.default",
    "oft": r".*\.oft_R\.default\.weight",
    "hra": r".*\.hra_u\.default",
    "ia3": r".*\.ia3_l\.default",
}
# Savings act on the modules of an encoder: all strategies on one, and one of each kind on the others.
SAVED_PAIRS = [
    pair
    for pair in PAIRS
    if pair[0] != "freeze_encoder" and (pair[1] == "vit" or pair[0] in ("lora", "dora", "hf_qlora"))
]
LATE = ("late_lora", "late_qlora", "late_ft")
BLOCK = re.compile(r"image_encoder\.(layers\.\d+\.)?(blocks|layers)\.(\d+)\.(?P<rest>.*)")
Memory = dict[tuple[str, str], Trained]


@pytest.fixture(scope="module")
def trained() -> Callable[[str, str], Trained]:
    """A function that trains a strategy in a model for some steps, once."""
    memory: Memory = {}

    def train(name: str, model: str) -> Trained:
        if (name, model) not in memory:
            memory[name, model] = train_some_steps(apply_strategy(fresh(model), strategy(name)))
        return memory[name, model]

    return train


def is_meant(name: str, parameter: str) -> bool:
    """Whether strategy `name` is to train `parameter`."""
    if not parameter.startswith("image_encoder"):
        return True
    block = BLOCK.fullmatch(parameter)
    if block is None:
        return name == "full" or (name == "ssf" and ".patch_embed.proj.s" in parameter)
    # Of the three blocks of the ViTs, half are two.
    late = name not in LATE or int(block.group(3)) >= 1
    return late and re.fullmatch(TRAINED[name], block.group("rest")) is not None


def test_the_table_of_trained_names_has_every_strategy() -> None:
    assert TRAINED.keys() == STRATEGIES.keys()


@pytest.mark.parametrize(("name", "model"), mostly_slow(PAIRS))
def test_a_strategy_trains_what_it_is_to_train_and_nothing_else(
    name: str, model: str, trained: Callable[[str, str], Trained]
) -> None:
    result = trained(name, model)
    assert sum(result.losses[-2:]) < sum(result.losses[:2])
    unmoved = set()
    for parameter, value in result.sam.named_parameters():
        assert value.requires_grad == is_meant(name, parameter), parameter
        same = torch.equal(value, result.before[parameter])
        if not value.requires_grad:
            assert same, parameter
        elif same:
            unmoved.add(parameter)
    # What no prompt of these steps asks for: masks as prompts, the labels of padding and of negative points;
    # of three masks those that are never the best; in vit_t a classifier, which nothing asks.
    silent = r"prompt_encoder\..*|mask_decoder\.output_hypernetworks_mlps\..*|image_encoder\.(norm_)?head\..*"
    assert [parameter for parameter in unmoved if not re.fullmatch(silent, parameter)] == []
    if name != "full":
        for buffer, value in result.sam.image_encoder.named_buffers(prefix="image_encoder"):
            assert torch.equal(value, result.before[buffer]), buffer


@pytest.mark.parametrize("model", MODELS)
def test_the_segmentation_decoder_alone_leaves_the_model_as_it_is(model: str) -> None:
    sam = apply_strategy(fresh(model), strategy(DECODER))
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert torch.equal(masks(sam), masks(fresh(model)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("full", ["prompt_encoder"]),
        ("full", ["mask_decoder"]),
        ("full", ["prompt_encoder", "mask_decoder"]),
        ("freeze_encoder", ["image_encoder", "prompt_encoder"]),
        ("freeze_encoder", ["image_encoder", "mask_decoder"]),
        ("dora", ["mask_decoder"]),
        ("hf_lora", ["prompt_encoder", "mask_decoder"]),
    ],
)
def test_any_parts_can_be_frozen_beside_a_strategy(name: str, frozen: list[str], model: str) -> None:
    result = train_some_steps(apply_strategy(fresh(model), strategy(name, freeze=frozen)))
    moved = set()
    for parameter, value in result.sam.named_parameters():
        part = parameter.partition(".")[0]
        assert value.requires_grad == (part not in frozen and is_meant(name, parameter)), parameter
        if not torch.equal(value, result.before[parameter]):
            moved.add(part)
            assert value.requires_grad, parameter
    assert moved == set(PARTS) - set(frozen)
    for buffer, value in result.sam.named_buffers():
        if buffer.partition(".")[0] in frozen:
            assert torch.equal(value, result.before[buffer]), buffer


@pytest.mark.parametrize(("name", "model"), mostly_slow(PAIRS))
def test_the_checkpoints_of_a_strategy_give_the_same_masks(
    name: str, model: str, trained: Callable[[str, str], Trained], tmp_path: Path
) -> None:
    """Both of them, holding everything or only what is trained, as files."""
    sam = trained(name, model).sam
    expected = masks(sam)
    assert not torch.allclose(expected, masks(fresh(model)), atol=1e-3)
    for adapter_only in (False, True):
        keeping = CheckpointPolicy(strategy(name), adapter_only)
        latest = through_file(keeping.latest(sam), tmp_path)
        again = apply_strategy(fresh(model), strategy(name))
        again.load_state_dict(keeping.restored(again, latest)["model_state"])
        assert torch.equal(masks(again), expected)
        best = through_file(keeping.best(sam), tmp_path)
        if best.get(HOLDS) == ONLY_TRAINED:
            again = apply_strategy(fresh(model), strategy(name))
            load_trained(again, best["model_state"])
            assert torch.equal(masks(again), expected)
        else:
            plain = fresh(model)
            plain.load_state_dict(best["model_state"])
            torch.testing.assert_close(masks(plain), expected, rtol=0, atol=1e-4)
        assert (best.get(HOLDS) == ONLY_TRAINED) == (adapter_only or not STRATEGIES[name].mergeable)
    if not STRATEGIES[name].mergeable:
        with pytest.raises(TypeError, match="cannot be merged"):
            plain_state(sam)


def through_file(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is read of a checkpoint that was written."""
    torch.save(values, folder / "checkpoint.pt")
    read: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return read


@pytest.mark.parametrize(("name", "model"), mostly_slow(SAVED_PAIRS))
def test_fused_attention_and_checkpointing_leave_the_gradients_of_what_is_put_into_layers(
    name: str, model: str
) -> None:
    results = []
    for saves in (False, True):
        torch.manual_seed(5)
        sam = apply_strategy(fresh(model), strategy(name)).train()
        with torch.no_grad():
            # Also where initialization is zero and would hide a term.
            for parameter in trained_of_encoder(sam):
                parameter.add_(0.1 * torch.randn(parameter.shape))
        if saves and model == "hugging_face":
            sam.use_attention("fused")
        elif saves:
            use_fused_attention(sam.image_encoder)
        if saves:
            checkpoint_encoder(sam.image_encoder, every=1)
        image, _ = image_and_boxes(sam.image_encoder.img_size)
        torch.manual_seed(6)  # of dropout
        embedding = sam.image_encoder(image)
        given = torch.autograd.grad(embedding.square().sum(), trained_of_encoder(sam), allow_unused=True)
        results.append([embedding, *given])
    # What is added to all scores of a softmax has no gradient but rounding.
    noise = 1e-4 * max(float(values.norm()) for values in results[1] if values is not None)
    for ours, theirs in zip(*results, strict=True):
        if theirs is not None:  # a classifier that nothing asks
            assert (ours - theirs).norm() < 1e-3 * theirs.norm() + noise


def trained_of_encoder(sam: Sam) -> list[nn.Parameter]:
    return [parameter for parameter in sam.image_encoder.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", ["fact", "qdora", "pissa", "adaptformer"])
def test_a_strategy_trains_in_mixed_precision(name: str) -> None:
    sam = apply_strategy(fresh("vit"), strategy(name))
    with torch.autocast("cpu", torch.bfloat16):
        image, _ = image_and_boxes(sam.image_encoder.img_size)
        loss = sam.image_encoder(image).float().square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in trained_of_encoder(sam)]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert {parameter.dtype for parameter in trained_of_encoder(sam)} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "model"), mostly_slow([pair for pair in PAIRS if STRATEGIES[pair[0]].adapter])
)
def test_peft_opens_the_adapter_on_a_fresh_base(
    name: str, model: str, trained: Callable[[str, str], Trained], tmp_path: Path
) -> None:
    sam = trained(name, model).sam
    write_adapter(sam, strategy(name), tmp_path)
    opened = PeftModel.from_pretrained(base_for_peft(model, name), tmp_path).base_model.model
    given = masks_of_transformers(opened) if model == "hugging_face" else masks(opened)
    torch.testing.assert_close(given, masks(sam), rtol=0, atol=1e-4)


def base_for_peft(model: str, name: str) -> nn.Module:
    """What a run of the strategy starts from; of family hf a transformers.SamModel."""
    base: nn.Module = fresh(model)
    if model == "hugging_face":
        base = from_segment_anything(fresh("vit"))
        base.prompt_encoder.input_image_size = PROMPT_FRAME
    if STRATEGIES[name].quantized:
        quantize(base, strategy(name))
        base.is_loaded_in_4bit = True
    return base


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.quantized])
def test_a_quantized_base_lies_in_4_bits(name: str) -> None:
    sam = apply_strategy(fresh("vit"), strategy(name))
    plain = {
        layer.removesuffix(".base_layer").replace(".qkv_proj", ""): module
        for layer, module in linear_layers(sam).items()
        if type(module).__name__ == "Linear4bit"
    }
    before = {key: value for key, value in linear_layers(fresh("vit")).items() if "image_encoder" in key}
    assert plain.keys() == before.keys()
    for layer, module in plain.items():
        values = before[layer].weight.numel()
        assert module.weight.dtype == torch.uint8
        assert module.weight.untyped_storage().nbytes() == values / 2
        assert module.weight.quant_state.quant_type == "nf4"
        assert module.weight.quant_state.nested
        assert not module.weight.requires_grad
    weights = sum(module.weight.numel() for module in before.values())
    # Half a byte for each, a byte for each block of 64, and 1.2 KiB for each layer: its 16 values, the 256
    # values of the constants, and a description.
    expected = weights / 2 + weights / 64 + 1.2 * 1024 * len(before)
    saved = weights_bytes(fresh("vit")) - weights_bytes_without_updates(sam)
    assert saved == pytest.approx(4 * weights - expected, rel=0.02)


def weights_bytes_without_updates(sam: Sam) -> int:
    updates = sum(
        value.untyped_storage().nbytes()
        for name, value in sam.image_encoder.named_parameters()
        if value.requires_grad
    )
    return weights_bytes(sam) - updates


def test_parameters_in_4_bits_count_by_their_values() -> None:
    plain = apply_strategy(fresh("vit"), strategy("hf_lora"))
    quantized = apply_strategy(fresh("vit"), strategy("hf_qlora"))
    assert count_parameters(quantized.parameters()) == count_parameters(plain.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_a_pattern_that_matches_nothing_names_the_layers_that_there_are(model: str) -> None:
    with pytest.raises(ConfigError, match=r"image_encoder\..*\.N\.attn\.qkv") as caught:
        apply_strategy(fresh(model), strategy("dora", targets=[r".*\.attention\..*"]))
    assert r"peft.targets: .*\.attention\..* matches no linear layer" in str(caught.value)


def test_a_rank_larger_than_the_layer_names_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"peft.rank=25 is larger than the layer image_encoder\.blocks\.0"):
        apply_strategy(fresh("vit"), strategy("lora", rank=25))


def test_updates_may_go_into_the_mask_decoder_which_is_then_frozen_beside_them() -> None:
    targets = [r"mask_decoder\..*\.(q|k|v|out)_proj"]
    sam = apply_strategy(fresh("vit"), strategy("hf_lora", targets=targets))
    names = {name for name, value in sam.named_parameters() if value.requires_grad}
    assert any(name.startswith("image_encoder") for name in names)  # nothing in it is adapted
    decoder = {name for name in names if name.startswith("mask_decoder")}
    assert decoder
    assert all("lora_" in name for name in decoder)


def test_without_bitsandbytes_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"peft.name=qdora .* pip install 'refsam\[quantized\]'"):
        apply_strategy(fresh("vit"), strategy("qdora"))


@pytest.mark.parametrize("architecture", ["vit_t", "vit_b", "vit_l", "vit_h", "vit_nano"])
def test_the_layers_that_the_plan_knows_are_those_of_the_model(architecture: str) -> None:
    config = model_config(architecture)
    # Without memory for the weights; TinyViT cannot be built so.
    with torch.device("cpu" if architecture in ("vit_t", "vit_nano") else "meta"):
        layers = linear_layers(build_model(config))
    sizes = {
        name: (layer.in_features, layer.out_features)
        for name, layer in layers.items()
        if name.startswith("image_encoder") or re.fullmatch(r"mask_decoder\..*_proj", name)
    }
    assert known_layers(config) == sizes
