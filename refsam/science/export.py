"""A finished run's model in the formats of others: `refsam export RUN --to FORMAT`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import SamConfig, SamModel

from refsam.configuration.frozen import load
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.configuration.strategies import STRATEGIES
from refsam.errors import BadInput, os_reason
from refsam.records.files import write_atomically
from refsam.records.paths import RunPaths
from refsam.science.hugging_face import (
    HuggingFaceSam,
    from_segment_anything,
    image_processor,
    published_shape,
)
from refsam.science.models import SAM_PREFIX
from refsam.science.state_names import to_segment_anything
from refsam.science.strategies.opening import Finished, finished_model
from refsam.science.training.checkpoints import damage

Writer = Callable[[RefsamConfig, RunPaths, Path], None]


def export_run(paths: RunPaths, target: str, output: Path | None) -> Path:
    """Write the model of a run in another format.

    Args:
        paths: of a run with a best.pt.
        target: of WRITERS.
        output: file or folder that is made; None for one in the run directory.

    Returns:
        What was written.

    Raises:
        BadInput: when the run has no such model, the format cannot hold it, or `output` is there already or
            cannot be written.
    """
    try:
        config = load(paths.config)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if config.kind == Kind.baseline:
        raise BadInput(f"run {paths.run_id} is a baseline: it trains nothing, so there is nothing to export")
    if not paths.best.exists():
        raise BadInput(f"run {paths.run_id} has no best.pt yet: it has not come to the end of an epoch")
    write, suffix = WRITERS[target]
    written = output or paths.exports / f"{paths.run_id}-{target}{suffix}"
    if written.exists():
        raise BadInput(f"--output: {written} is there already, allowed: a path where nothing is")
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
        write(config, paths, written)
    except OSError as error:
        raise BadInput(f"--output: {written} cannot be written ({os_reason(error)})") from error
    return written


def _finished(config: RefsamConfig, paths: RunPaths) -> Finished:
    if (found := damage(paths.best)) is not None:
        raise BadInput(f"best.pt of run {paths.run_id} is damaged ({found}): there is nothing to export")
    return finished_model(config, paths, "cpu")


def _write_micro_sam(config: RefsamConfig, paths: RunPaths, output: Path) -> None:
    """A checkpoint that get_sam_model and the annotator open, with the decoder if it has one."""
    finished = _finished(config, paths)
    plain = _segment_anything_state(config, finished, "micro_sam")
    state = {f"{SAM_PREFIX}{name}": value for name, value in plain.items()}
    values: dict[str, dict[str, torch.Tensor]] = {"model_state": state}
    if finished.decoder_state is not None:
        values["decoder_state"] = dict(finished.decoder_state)
    write_atomically(output, lambda file: torch.save(values, file))


def _write_merged(config: RefsamConfig, paths: RunPaths, output: Path) -> None:
    """segment_anything's own: a plain state dict, as sam_model_registry takes it."""
    _refuse_unmergeable(config, "merged")
    state = _segment_anything_state(config, _finished(config, paths), "merged")
    write_atomically(output, lambda file: torch.save(state, file))


def _write_hugging_face(config: RefsamConfig, paths: RunPaths, output: Path) -> None:
    """A folder for transformers.SamModel.from_pretrained."""
    _refuse_unmergeable(config, "hf")
    if config.model.architecture == "vit_t":
        raise BadInput(
            "--to hf: model.architecture=vit_t has a TinyViT, which transformers' SamModel has not, allowed: "
            "micro_sam, merged, adapter"
        )
    sam = _finished(config, paths).sam
    model = _of_transformers(sam) if isinstance(sam, HuggingFaceSam) else from_segment_anything(sam)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        image_processor(sam.image_encoder.img_size).save_pretrained(folder)

    _write_folder(output, save)


def _write_adapter(config: RefsamConfig, paths: RunPaths, output: Path) -> None:
    """A folder for peft.PeftModel.from_pretrained."""
    if not STRATEGIES[config.peft.name].adapter:
        allowed = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.adapter)
        raise BadInput(
            f"--to adapter: what peft.name={config.peft.name} trains is no adapter that peft has; it has "
            f"those of {allowed}"
        )
    _write_folder(output, lambda folder: shutil.copytree(paths.adapter, folder))


def _write_folder(output: Path, write: Callable[[Path], object]) -> None:
    """All of it or nothing, as with files."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
    write(unfinished)
    unfinished.rename(output)


WRITERS: dict[str, tuple[Writer, str]] = {
    "micro_sam": (_write_micro_sam, ".pt"),
    "hf": (_write_hugging_face, ""),
    "adapter": (_write_adapter, ""),
    "merged": (_write_merged, ".pt"),
}


def _segment_anything_state(config: RefsamConfig, finished: Finished, target: str) -> dict[str, torch.Tensor]:
    """The state dict under the names of segment_anything, for the format `target`."""
    state: dict[str, torch.Tensor] = finished.sam.state_dict()
    if not isinstance(finished.sam, HuggingFaceSam):
        return state
    if published_shape(finished.sam.config) is None:
        strategy = STRATEGIES[config.peft.name]
        allowed = [
            name
            for name, is_possible in (("hf", strategy.mergeable), ("adapter", strategy.adapter))
            if is_possible
        ]
        raise BadInput(
            f"--to {target}: model={config.model.name} has a shape that segment_anything has not, allowed: "
            f"{', '.join(allowed) or f'none for peft.name={config.peft.name}'}"
        )
    return to_segment_anything(state)


def _of_transformers(sam: HuggingFaceSam) -> SamModel:
    config = SamConfig.from_dict(sam.config.to_dict())
    model = SamModel._from_config(config)
    model.load_state_dict(sam.transformers_state())
    return model


def _refuse_unmergeable(config: RefsamConfig, target: str) -> None:
    if not STRATEGIES[config.peft.name].mergeable:
        raise BadInput(
            f"--to {target}: peft.name={config.peft.name} adds layers that a plain model has not, allowed: "
            "micro_sam, which opens them with get_sam_model(…, peft_kwargs=…) if the model's shape is one of "
            "its own"
        )
