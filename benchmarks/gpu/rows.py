"""The rows of `python -m benchmarks.gpu`: what is measured, in which order, and how large.

Rows that say most come first, so that a run that is cut has them. Nothing here imports PyTorch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("float32", "bfloat16", "float16")
STRATEGIES = ("full", "lora", "freeze_encoder")
ENGINES = ("refsam", "micro_sam")
MODES = ("point", "box", "amg", "ais", "apg")


@dataclass(frozen=True)
class Scale:
    """How large the rows are.

    Attributes:
        models: of the steps, the one that says most first; it is also that of the other rows.
        epoch_model: that is trained for an epoch with workers.
        overrides: of every configuration.
        counts: of objects, in the order in which they are measured.
        limits: of the GPU's memory in GiB, the largest first.
        sub_iterations: of a step whose gradients are compared; the others have those of the study.
        blocks: channels and heads of attention by the model that has them.
        grid: rows and columns of an encoder's embedding.
        window: of a block that attends within windows.
        repeats: of a product or block that is timed.
        product: rows and columns of a matrix product that is timed.
        forecasts: engine and strategy of the steps that are forecast.
        samples: of the epoch with workers.
        points_per_side: of the grid in which AMG asks.
        patience: seconds after which a row is given up.
    """

    models: tuple[str, ...] = ("vit_b", "vit_t")
    epoch_model: str = "vit_t"
    overrides: tuple[str, ...] = ()
    counts: tuple[int, ...] = (10, 1, 45)
    limits: tuple[float, ...] = (32, 16, 8)
    sub_iterations: int = 2
    blocks: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"vit_b": (768, 12), "vit_h": (1280, 16)}
    )
    grid: int = 64
    window: int = 14
    repeats: int = 5
    product: int = 4096
    forecasts: tuple[tuple[str, str], ...] = (
        *(("refsam", "full"), ("refsam", "freeze_encoder"), ("micro_sam", "full")),
    )
    samples: int = 16
    points_per_side: int = 32
    patience: float = 60.0


FULL = Scale()
# For the GPU that is not there (tests/gpu): the same rows in seconds on a CPU.
SMALL = Scale(
    models=("vit_nano",),
    epoch_model="vit_nano",
    overrides=(
        *("model.custom.image_size=64", "model.custom.patch_size=8", "model.custom.embed_dim=16"),
        *("model.custom.depth=2", "model.custom.num_heads=2", "model.custom.global_attn_indexes=[1]"),
        *(
            "model.custom.window_size=4",
            "model.custom.prompt_embed_dim=16",
            "model.custom.decoder_mlp_dim=16",
        ),
        *("model.custom.decoder_num_heads=2", "model.custom.unetr_features=2"),
        *("train.patch_shape=[64,64]", "train.n_sub_iterations=2"),
    ),
    counts=(4,),
    limits=(0.1, 0.0037),
    sub_iterations=1,
    blocks={"vit_nano": (16, 2)},
    grid=8,
    window=4,
    repeats=1,
    product=64,
    forecasts=(("refsam", "full"),),
    samples=2,
    points_per_side=2,
    patience=300.0,
)


@dataclass(frozen=True)
class Row:
    """One measurement that may fail by itself.

    Attributes:
        name: its words; the first is the kind, which a section of the page and a function are named after.
        arguments: of that function, after the scale.
        patience: how many times as long as others it may take.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    patience: float = 1.0

    @property
    def kind(self) -> str:
        return self.name.split()[0]


def rows(scale: Scale) -> list[Row]:
    """All rows, in the order in which they are measured."""
    steps = list(_steps(scale, "float32", scale.limits))
    return [
        Row("environment"),
        Row("arithmetic"),
        *(Row(f"kernels {precision}", (precision,)) for precision in PRECISIONS),
        *(Row(f"gradients {precision}", (precision,)) for precision in PRECISIONS),
        *steps[: len(ENGINES)],
        Row("epoch", patience=2.5),
        Row("waits"),
        Row("ladder"),
        *(row for row in steps[len(ENGINES) :] if f" {scale.counts[0]} objects" in row.name),
        Row("evaluation", patience=1.5),
        *(Row(f"forecast {engine} {peft}", (engine, peft), patience=2.0) for engine, peft in scale.forecasts),
        *(row for row in steps[len(ENGINES) :] if f" {scale.counts[0]} objects" not in row.name),
        *_steps(scale, "bfloat16", scale.limits[:1]),
        Row("allocator"),
        Row("messages"),
    ]


def _steps(scale: Scale, precision: str, limits: tuple[float, ...]) -> Iterator[Row]:
    for count in scale.counts:
        for model in scale.models:
            for peft in STRATEGIES:
                for engine in ENGINES:
                    name = f"steps {model} {peft} {count} objects {engine} {precision}"
                    yield Row(name, (model, peft, count, engine, precision, limits), patience=1.5)
