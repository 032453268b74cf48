"""`refsam prepare`: what runs need from the network, fetched where there is one."""

import argparse
from importlib import import_module

from refsam.commands.options import COMPLETED, Commands, add_command
from refsam.errors import BadInput


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "prepare",
        _prepare,
        "fetch the data set and the weights that runs need",
        "Fetch the data set that the overrides name (dataset=nuclei), the weights of the model\n"
        "that they name (model=vit_b_lm), or both; without either, those of the defaults.\n"
        "Needs the network.",
        "refsam prepare dataset=nuclei model=vit_b_lm",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for a run, such as dataset=nuclei"
    )


def _prepare(options: argparse.Namespace) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from refsam.configuration.compose import compose
    from refsam.configuration.composition_errors import explain
    from refsam.configuration.families import HUGGING_FACE, model_problem

    try:
        config = compose(options.overrides)
    except (HydraException, OmegaConfBaseException) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise BadInput(sentence) from error
    named = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in options.overrides}
    both = not named & {"dataset", "model"}
    # By name: the command itself must not bring torch along.
    if both or "dataset" in named:
        import_module("refsam.datasets.prepare").prepare(config.dataset)
    if config.model.weights == "pretrained" and (both or "model" in named):
        if problem := model_problem(config.model):
            raise BadInput(problem)
        if config.model.family == HUGGING_FACE:
            path = import_module("refsam.datasets.hub_download").download(config.model)
        else:
            path = import_module("refsam.science.fetch").fetch_weights(config.model.name)
        print(f"weights {config.model.name} are ready: {path}")
    return COMPLETED
