"""What a finished run has trained, opened from its best.pt, whichever weights that holds."""

from dataclasses import dataclass
from pathlib import Path

import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import nn

from refsam.configuration.frozen import load
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.models.families import HUGGING_FACE
from refsam.models.strategies import STRATEGIES
from refsam.records.paths import RunPaths
from refsam.science.micro_sam import DecoderAdapter, util
from refsam.science.models import (
    SAM_PREFIX,
    StateDict,
    initial_predictor,
    load_model,
    load_whole,
    predictor_of,
    segmentation_decoder,
)
from refsam.science.safe_load import read_weights
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.merging import plain_state
from refsam.science.strategies.quantization import quantize
from refsam.science.strategies.state import HOLDS, TRAINED, load_trained


@dataclass(frozen=True)
class Finished:
    """A finetuned model: the weights of a plain one, or the module where no plain one is the same."""

    sam: Sam
    decoder_state: StateDict | None


def finished_model(config: RefsamConfig, paths: RunPaths, device: torch.device | str) -> Finished:
    """The model of a finished run without its strategy, except for what cannot be merged.

    Raises:
        ConfigError: when best.pt holds only what was trained, and what the run started from is not there.
    """
    values = read_weights(paths.best)
    if values.get(HOLDS) != TRAINED:
        return Finished(*load_whole(paths.best, config.model, device))
    sam = apply_strategy(load_model(config.model, config.seed, "cpu").sam, config.peft)
    trained = {name.removeprefix(SAM_PREFIX): value for name, value in values["model_state"].items()}
    load_trained(sam, trained)
    if STRATEGIES[config.peft.name].mergeable:
        state = plain_state(sam)
        sam = load_model(config.model, config.seed, "cpu").sam
        sam.load_state_dict(state)
    return Finished(sam.to(device).eval(), values.get("decoder_state"))


def initial_model(run: Path | str) -> nn.Module:
    """The model that a run has started from, on which peft opens the run's adapter.

    It is in 4 bits if the run's was; of a model of family hf it is transformers' own.

    Raises:
        ConfigError: when the weights are not there.
    """
    config = load(RunPaths(Path(run)).config)
    sam = load_model(config.model, config.seed, "cpu").sam
    if STRATEGIES[config.peft.name].quantized:
        quantize(sam, config.peft)
        sam.is_loaded_in_4bit = True  # what peft asks
    if config.model.family == HUGGING_FACE:
        from refsam.science.hugging_face import to_transformers_model

        return to_transformers_model(sam)
    return sam


def predictor_and_decoder(
    config: RefsamConfig, paths: RunPaths, device: torch.device | str
) -> tuple[SamPredictor, DecoderAdapter | None]:
    """What a run is evaluated with: of a baseline the initial model, of another run its best.pt.

    The decoder is that of automatic segmentation; None where the model has none.

    Raises:
        ConfigError: when weights that are needed are not there, or cannot be used.
    """
    if config.kind is Kind.baseline:
        predictor, decoder_state, _ = initial_predictor(config.model, config.seed, device)
    else:
        finished = finished_model(config, paths, device)
        predictor = predictor_of(finished.sam, config.model, util._compute_hash(paths.best))
        decoder_state = finished.decoder_state
    return predictor, segmentation_decoder(predictor.model, config.model, decoder_state, device)
