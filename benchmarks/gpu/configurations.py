"""The configurations that are measured: random weights, images of drawn discs."""

from typing import Any

from benchmarks.gpu.rows import Scale
from benchmarks.train_step import strategy_overrides
from refsam.configuration.compose import compose
from refsam.configuration.schema import RefsamConfig

ALONE = ("train.min_samples=1", "train.validation_samples=1", "train.workers=0")


def config_of(scale: Scale, *overrides: str, model: str | None = None, peft: str = "full") -> RefsamConfig:
    """A run on the GPU whose data set is the one of drawn discs.

    Args:
        overrides: after those of the scale.
        model: of the scale, its first where it is None.
        peft: a name of conf/peft, with settings as in `lora rank=32`.
    """
    given: list[Any] = [
        *("resource=local", "resource.device=cuda", "dataset=synthetic", "n_images=1"),
        *(f"model={model or scale.models[0]}", "model.weights=random", "train.precision=float32"),
        *(*strategy_overrides(peft), *scale.overrides, *overrides),
    ]
    return compose(given)


def alone(scale: Scale, *overrides: str, **options: str) -> RefsamConfig:
    """The same for a step that is measured by itself."""
    return config_of(scale, *ALONE, *overrides, **options)
