"""Which strategies go with which models."""

import importlib.util
from dataclasses import asdict

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.schema import ModelConfig, PeftConfig
from refsam.models.strategies import STRATEGIES, strategy_label, strategy_problem, target_layers
from refsam.orchestration.planning.checks import combination_problem


def model(architecture: str) -> ModelConfig:
    return ModelConfig(name=architecture, architecture=architecture, weights="random", memory_gb=1)


def lora(**values: object) -> PeftConfig:
    given: dict[str, object] = {"name": "lora", "rank": 4, "update_matrices": ["q", "v"]}
    return PeftConfig(**{**given, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["vit_t", "vit_b", "vit_l", "vit_h", "vit_nano"])
@pytest.mark.parametrize(
    "peft",
    [
        PeftConfig(name="auto"),
        PeftConfig(name="full"),
        PeftConfig(name="freeze_encoder", freeze=["image_encoder"]),
        PeftConfig(name="freeze_encoder", freeze=["image_encoder", "prompt_encoder"]),
        lora(),
        lora(rank=1, update_matrices=["q", "k", "v", "mlp"], freeze=["mask_decoder"]),
    ],
    ids=lambda peft: f"{peft.name}-{len(peft.freeze)}-{peft.rank}",
)
def test_the_table_allows_every_strategy_but_lora_on_vit_t(architecture: str, peft: PeftConfig) -> None:
    problem = strategy_problem(model(architecture), peft)
    assert (problem is not None) == (peft.name == "lora" and architecture == "vit_t")


@pytest.mark.parametrize(
    ("peft", "parts"),
    [
        (PeftConfig(name="lorra"), ["peft.name=lorra", "lora", "freeze_encoder"]),
        (lora(freeze=["image_encoder"]), ["peft.freeze=[image_encoder]", "peft.name=lora", "mask_decoder"]),
        (lora(rank=0), ["peft.rank=0", "1 and more"]),
        (lora(rank=None), ["peft.rank=None", "1 and more"]),
        (lora(update_matrices=["q", "w"]), ["peft.update_matrices=[q,w]", "q, k, v, mlp"]),
        (lora(update_matrices=[]), ["peft.update_matrices=[]", "q, k, v, mlp"]),
        (lora(freeze=["head"]), ["peft.freeze=[head]", "image_encoder, prompt_encoder, mask_decoder"]),
        (
            PeftConfig(name="full", freeze=["image_encoder"]),
            ["peft.freeze=[image_encoder]", "peft.name=full"],
        ),
        (PeftConfig(name="freeze_encoder"), ["peft.freeze=[]", "image_encoder"]),
        (PeftConfig(name="full", rank=4), ["peft.rank=4", "peft.name=full"]),
        (
            PeftConfig(name="freeze_encoder", freeze=["mask_decoder", "image_encoder", "prompt_encoder"]),
            ["peft.freeze=[mask_decoder,image_encoder,prompt_encoder]", "nothing"],
        ),
    ],
)
def test_a_problem_names_the_field_what_was_given_and_what_is_allowed(
    peft: PeftConfig, parts: list[str]
) -> None:
    problem = strategy_problem(model("vit_b"), peft)
    assert problem is not None
    assert "\n" not in problem
    for part in parts:
        assert part in problem


def of_file(*overrides: str) -> PeftConfig:
    """A strategy of conf/peft, with overrides."""
    return compose(list(overrides)).peft


@pytest.mark.parametrize(
    ("architecture", "overrides", "parts"),
    [
        ("vit_b", ("peft=lora", "peft.rank=769"), ["peft.rank=769", "blocks.0.attn.qkv", "1 to 768"]),
        ("vit_t", ("peft=dora", "peft.rank=129"), ["peft.rank=129", "layers.1.blocks.0", "1 to 128"]),
        ("vit_t", ("peft=loha", "peft.rank=320", "peft.share=10"), []),
        (
            "vit_b",
            ("peft=dora", "peft.targets=['.*attention.*']"),
            [
                "peft.targets: .*attention.*",
                "image_encoder.blocks.N.attn.qkv, image_encoder.blocks.N.attn.proj",
            ],
        ),
        ("vit_b", ("peft=dora", "peft.targets=['(']"), ["peft.targets=[(]", "regular expressions"]),
        ("vit_b", ("peft=dora", "peft.targets=[]"), ["peft.targets=[]", "regular expressions"]),
        ("vit_b", ("peft=dora", "peft.dropout=1"), ["peft.dropout=1", "less than 1"]),
        ("vit_b", ("peft=dora", "peft.alpha=0"), ["peft.alpha=0", "a number > 0"]),
        ("vit_b", ("peft=dora", "+peft.options.r=3"), ["peft.options={r", "LoraConfig"]),
        (
            "vit_b",
            ("peft=dora", "peft.quantization=nf4"),
            ["peft.quantization=nf4", "peft.name=dora", "rank"],
        ),
        ("vit_b", ("peft=qdora", "peft.quantization=int8"), ["peft.quantization=int8", "nf4 or fp4"]),
        ("vit_b", ("peft=late_lora", "peft.share=0"), ["peft.share=0", "up to 100"]),
        ("vit_b", ("peft=late_ft", "peft.share=null"), ["peft.share=None", "percentage"]),
        ("vit_b", ("peft=adaptformer", "peft.projection=0"), ["peft.projection=0", "1 and more"]),
        ("vit_b", ("peft=oft",), ["peft.name=oft", "model.architecture=vit_b", "peft's OFT", "hra"]),
        (
            "vit_b",
            ("peft=dora", "peft.freeze=[image_encoder]"),
            ["peft.freeze=[image_encoder]", "prompt_encoder"],
        ),
        ("vit_b", ("peft=dora", "peft.freeze=[prompt_encoder,mask_decoder]"), []),
        ("vit_b", ("peft=full", "peft.freeze=[mask_decoder]"), []),
    ],
)
def test_settings_are_held_against_the_layers_of_the_model(
    architecture: str, overrides: tuple[str, ...], parts: list[str]
) -> None:
    problem = strategy_problem(model(architecture), of_file(*overrides))
    assert (problem is None) == (parts == [])
    for part in parts:
        assert part in str(problem)


@pytest.mark.parametrize("architecture", ["vit_t", "vit_b", "vit_l", "vit_h", "vit_nano"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_settings_of_a_file_go_with_every_model_that_its_strategy_goes_with(
    architecture: str, name: str
) -> None:
    problem = strategy_problem(model(architecture), of_file(f"peft={name}"))
    assert (problem is None) == (architecture not in STRATEGIES[name].excluded)


@pytest.mark.parametrize(("share", "blocks"), [(None, 12), (50, 6), (25, 3), (8, 1), (1, 1), (100, 12)])
def test_a_share_of_the_blocks_are_the_last_ones(share: float | None, blocks: int) -> None:
    names = [
        f"image_encoder.blocks.{block}.{layer}" for block in range(12) for layer in ("attn.qkv", "mlp.lin1")
    ]
    assert target_layers(names, [".*"], share) == names[24 - 2 * blocks :]


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (("peft=lora",), "lora"),
        (("peft=lora_32",), "lora, rank 32"),
        (("peft=freeze_encoder",), "freeze_encoder"),
        (("peft=freeze_encoder", "peft.freeze=[prompt_encoder,image_encoder]"),
         "freeze_encoder, frozen image_encoder prompt_encoder"),
        (("peft=full", "peft.freeze=[mask_decoder]"), "full, frozen mask_decoder"),
        (("peft=late_ft_25",), "late_ft 25 %"),
        (("peft=late_lora", "peft.update_matrices=[q,k,v]"), "late_lora 50 %, update matrices q k v"),
        (("peft=dora", "peft.rank=8", "peft.alpha=16"), "dora, rank 8, alpha 16"),
        (("peft=qdora", "peft.double_quantization=false"), "qdora, double quantization False"),
        (("peft=oft", "peft.options.oft_block_size=16"), "oft, options {'oft_block_size': 16}"),
    ],
)  # fmt: skip
def test_tables_tell_strategies_of_one_name_apart_by_their_settings(
    overrides: tuple[str, ...], label: str
) -> None:
    assert strategy_label(asdict(of_file(*overrides))) == label


@pytest.mark.parametrize("name", STRATEGIES)
def test_tables_call_a_strategy_as_its_file_is_by_its_name(name: str) -> None:
    assert strategy_label(asdict(of_file(f"peft={name}"))).removesuffix(" 50 %") == name


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("peft=dora", "peft.decoder=adapt"), None),
        (("peft=lora", "peft.decoder=freeze"), None),
        (("peft=qdora", "peft.decoder=adapt", "peft.quantized_layers=all"), None),
        (
            ("peft=lora", "peft.decoder=adapt"),
            "peft.decoder=adapt does not go with peft.name=lora, whose updates go into the image encoder "
            "only, allowed: train, freeze",
        ),
        (
            ("peft=dora", "peft.decoder=adapt", "peft.freeze=[mask_decoder]"),
            "peft.decoder=adapt does not go with peft.freeze=[mask_decoder], allowed: train, freeze",
        ),
        (
            ("peft=qdora", "peft.quantized_layers=all"),
            "peft.decoder=train does not go with peft.quantized_layers=all, because weights in 4 bits are "
            "not trained, allowed: freeze, adapt",
        ),
        (
            ("peft=dora", "peft.quantized_layers=all"),
            "peft.quantized_layers=all does not go with peft.name=dora, which takes: rank, targets, alpha, "
            "dropout, share, options",
        ),
        (
            ("peft=freeze_encoder", "peft.decoder=freeze"),
            "peft.freeze=[image_encoder] with peft.decoder=freeze leaves nothing of the model to train, "
            "allowed: at most 2 of its parts",
        ),
        (
            ("peft=dora", "peft.decoder=adapt", "peft.rank=129"),
            "peft.rank=129 is larger than the layer "
            "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj (256 inputs, 128 outputs), "
            "allowed: 1 to 128",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of", ["vit_b", "sam_vit_base"])
def test_what_cannot_be_done_with_the_decoder_is_said_in_the_plan(
    overrides: tuple[str, ...], problem: str | None, of: str
) -> None:
    config = compose([f"model={of}", "n_objects=5", *overrides])
    assert strategy_problem(config.model, config.peft) == problem


def test_without_bitsandbytes_a_sweep_leaves_out_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["peft=qdora", "n_objects=5", "dataset=nuclei"])
    assert combination_problem(config, 48) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    problem = combination_problem(config, 48)
    assert problem is not None
    assert "peft.name=qdora" in problem
    assert "pip install 'refsam[quantized]'" in problem
    assert combination_problem(compose(["peft=dora", "n_objects=5", "dataset=nuclei"]), 48) is None


def test_without_bitsandbytes_a_sweep_leaves_out_its_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["peft=full", "n_objects=5", "dataset=nuclei", "train.optimizer=lion"])
    assert combination_problem(config, 48) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert combination_problem(config, 48) == (
        "train.optimizer=lion needs bitsandbytes, which is not installed here: "
        "pip install 'refsam[quantized]'"
    )


def test_a_limit_of_the_gradient_norm_needs_all_gradients_at_once() -> None:
    limited = ("train.max_grad_norm=1", "train.optimizer_in_backward=true")
    problem = combination_problem(compose(["peft=full", "n_objects=5", "dataset=nuclei", *limited]), 48)
    assert problem is not None
    assert problem.startswith("train.optimizer_in_backward=true does not go with train.max_grad_norm=1.0")


def test_lora_on_vit_t_says_why_not_and_what_goes_instead() -> None:
    problem = strategy_problem(model("vit_t"), lora())
    assert problem is not None
    assert problem.startswith(
        "peft.name=lora does not go with model.architecture=vit_t (micro-sam operates on transformer blocks, "
        "and TinyViT has none of them), allowed: full, freeze_encoder, decoder, hf_lora, dora"
    )
