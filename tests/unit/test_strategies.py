"""Which strategies go with which models."""

import pytest

from refsam.configuration.schema import ModelConfig, PeftConfig
from refsam.configuration.strategies import strategy_problem


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


def test_lora_on_vit_t_says_why_not_and_what_goes_instead() -> None:
    problem = strategy_problem(model("vit_t"), lora())
    assert problem is not None
    assert problem.startswith(
        "peft.name=lora does not go with model.architecture=vit_t (micro-sam operates on transformer blocks, "
        "and TinyViT has none of them), allowed: full, freeze_encoder, hf_lora, dora"
    )
