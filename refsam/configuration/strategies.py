"""Which finetuning strategy goes with which model; known without torch, for the plan."""

from dataclasses import dataclass

from refsam.configuration.schema import AUTO, ModelConfig, PeftConfig
from refsam.errors import nearest

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
UPDATE_MATRICES = ("q", "k", "v", "mlp")


@dataclass(frozen=True)
class Strategy:
    """What one value of peft.name means. Parts are those of PARTS, architectures those of ModelConfig."""

    must_freeze: tuple[str, ...] = ()
    may_freeze: tuple[str, ...] = ()
    low_rank: bool = False
    excluded_architectures: tuple[str, ...] = ()


STRATEGIES = {
    "full": Strategy(),
    "freeze_encoder": Strategy(must_freeze=("image_encoder",), may_freeze=PARTS),
    # LoRA freezes the encoder's own weights and trains its updates: the encoder cannot be frozen as a whole.
    # vit_t's TinyViT has no such attention blocks, and micro-sam refuses it.
    "lora": Strategy(
        may_freeze=("prompt_encoder", "mask_decoder"), low_rank=True, excluded_architectures=("vit_t",)
    ),
}


def strategy_problem(model: ModelConfig, peft: PeftConfig) -> str | None:
    """Why `model` cannot be finetuned by `peft`, in one sentence, or None when it can.

    `auto` is no problem here: it stands for a strategy of the resource's file.
    """
    if peft.name == AUTO:
        return None
    strategy = STRATEGIES.get(peft.name)
    if strategy is None:
        allowed = (AUTO, *STRATEGIES)
        hint = nearest(peft.name, allowed)
        return f"peft.name={peft.name} is not a finetuning strategy, allowed: {', '.join(allowed)}{hint}"
    return (
        _architecture_problem(model, peft, strategy)
        or _freezing_problem(peft, strategy)
        or _low_rank_problem(peft, strategy)
    )


def _architecture_problem(model: ModelConfig, peft: PeftConfig, strategy: Strategy) -> str | None:
    if model.architecture not in strategy.excluded_architectures:
        return None
    allowed = [
        name for name, other in STRATEGIES.items() if model.architecture not in other.excluded_architectures
    ]
    return (
        f"peft.name={peft.name} does not go with model.architecture={model.architecture}, "
        f"allowed: {', '.join(allowed)}"
    )


def _freezing_problem(peft: PeftConfig, strategy: Strategy) -> str | None:
    given = f"peft.freeze={_listed(peft.freeze)}"
    unknown = [part for part in peft.freeze if part not in PARTS]
    if unknown:
        return f"{given} names no part of the model: {unknown[0]}, allowed: {', '.join(PARTS)}"
    refused = [part for part in peft.freeze if part not in strategy.may_freeze]
    if refused:
        allowed = ", ".join(strategy.may_freeze) or "nothing"
        return f"{given} does not go with peft.name={peft.name}, which can freeze: {allowed}"
    missing = [part for part in strategy.must_freeze if part not in peft.freeze]
    if missing:
        return f"{given} does not go with peft.name={peft.name}, which has to freeze: {', '.join(missing)}"
    if set(peft.freeze) == set(PARTS):
        return f"{given} leaves nothing of the model to train, allowed: at most {len(PARTS) - 1} of its parts"
    return None


def _low_rank_problem(peft: PeftConfig, strategy: Strategy) -> str | None:
    if not strategy.low_rank:
        if peft.rank is not None or peft.update_matrices:
            return (
                f"peft.rank={peft.rank} and peft.update_matrices={_listed(peft.update_matrices)} "
                f"do not go with peft.name={peft.name}, allowed: null and []"
            )
        return None
    if peft.rank is None or peft.rank < 1:
        return f"peft.rank={peft.rank} does not go with peft.name={peft.name}, allowed: 1 and more"
    unknown = [matrix for matrix in peft.update_matrices if matrix not in UPDATE_MATRICES]
    if unknown or not peft.update_matrices:
        return (
            f"peft.update_matrices={_listed(peft.update_matrices)} cannot be updated, "
            f"allowed: one or more of {', '.join(UPDATE_MATRICES)}"
        )
    return None


def _listed(names: list[str]) -> str:
    return f"[{','.join(names)}]"
