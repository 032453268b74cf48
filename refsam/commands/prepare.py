"""`refsam prepare`: what runs need from the network, fetched where there is one."""

import argparse

from refsam.commands.options import COMPLETED, Commands, add_command, add_overrides, configurations
from refsam.errors import ConfigError


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "prepare",
        _prepare,
        "fetch the data sets and the weights that runs need",
        "Fetch what the overrides of a sweep ask for, as its command has them: every data set and the\n"
        "weights of every model. Overrides that name nothing but the data set (dataset=nuclei) fetch\n"
        "only that, and those that name nothing but the model (model=vit_b_lm) only its weights.\n"
        "Needs the network.",
        "refsam prepare -m resource=gtx1080,v100 model=vit_b,vit_b_lm n_images=1,2,5,10",
    )
    add_overrides(parser)


def _prepare(options: argparse.Namespace) -> int:
    from refsam.configuration.text_values import split_override
    from refsam.models.families import HUGGING_FACE, model_problem

    configs = configurations(options)
    named = {split_override(override)[0].partition(".")[0] for override in options.overrides}
    named = set() if options.config_name else named - {"data"}  # only where the data sets are
    models = {repr(config.model): config.model for config in configs if config.model.weights == "pretrained"}
    models = {} if named == {"dataset"} else models
    problems = [problem for model in models.values() if (problem := model_problem(model))]
    if problems:
        raise ConfigError(problems[0])
    if named != {"model"}:
        from refsam.datasets.prepare import prepare

        for dataset in {repr(config.dataset): config.dataset for config in configs}.values():
            prepare(dataset)
    for model in models.values():
        if model.family == HUGGING_FACE:
            from refsam.models.hub_download import download

            path = download(model)
        else:
            from refsam.science.fetch import fetch_weights

            path = fetch_weights(model.name)
        print(f"weights {model.name} are ready: {path}")
    return COMPLETED
