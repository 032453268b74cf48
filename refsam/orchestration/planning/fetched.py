"""Whether the data and the weights of runs are on the disk: compute nodes have no internet."""

from collections.abc import Iterable
from pathlib import Path

from refsam.configuration.schema import DatasetConfig, ModelConfig, RefsamConfig
from refsam.datasets.listing import list_pairs
from refsam.errors import ConfigError
from refsam.models import hub_cache
from refsam.models.families import HUGGING_FACE
from refsam.models.weights_cache import missing_weights, weights_present
from refsam.models.weights_file import architecture_problem, weights_problem


def not_fetched(configs: Iterable[RefsamConfig]) -> list[str]:
    """What runs of frozen configurations would not find, one sentence each."""
    found: dict[str, str | None] = {}
    for config in configs:
        if (data := repr(config.dataset)) not in found:
            found[data] = _no_data(config.dataset)
        if (model := repr(config.model)) not in found:
            found[model] = weights_not_fetched(config.model)
    return [sentence for sentence in found.values() if sentence is not None]


def weights_not_fetched(model: ModelConfig) -> str | None:
    """Why a job would not find the weights of a model, or None where it will."""
    if model.weights == "random":
        return None
    if model.weights != "pretrained":
        path = Path(model.weights)
        if path.is_file():
            return weights_problem(path) or architecture_problem(path, model)
        return None if path.is_dir() and model.family == HUGGING_FACE else no_weights(model)
    if model.family == HUGGING_FACE:
        there = hub_cache.snapshot(str(model.hub_id)) is not None
        return None if there else hub_cache.missing(model.name, model.hub_id)
    return None if weights_present(model.name) else missing_weights(model.name)


def no_weights(model: ModelConfig) -> str:
    """The sentence about weights that are neither a file nor a word."""
    if model.family == HUGGING_FACE:
        return (
            f"model.weights: {model.weights} is neither a folder nor a file; expected pretrained (with "
            "model.hub_id=OWNER/NAME), random, and the path of a folder of save_pretrained or of a checkpoint"
        )
    allowed = "expected pretrained, random or the path of a checkpoint"
    if Path(model.weights).is_dir():
        return f"model.weights: {model.weights} is a folder; {allowed}, and folders with model=hf"
    return f"model.weights: {model.weights} is not a file; {allowed}"


def _no_data(dataset: DatasetConfig) -> str | None:
    try:
        list_pairs(dataset)
    except ConfigError as error:
        return str(error)
    return None
