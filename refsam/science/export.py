"""A finished run's model in the formats of others: `refsam export RUN --to FORMAT`."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from refsam.configuration.frozen import load
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.errors import ConfigError, os_reason
from refsam.models.families import HUGGING_FACE
from refsam.models.strategies import STRATEGIES
from refsam.records.paths import RunPaths
from refsam.science.bioimageio import Details, ExportedModel, write_package
from refsam.science.hugging_face import (
    HuggingFaceSam,
    from_segment_anything,
    image_processor,
    published_shape,
    to_transformers_model,
)
from refsam.science.models import SAM_PREFIX
from refsam.science.state_names import to_segment_anything
from refsam.science.strategies.injection import surgery_arguments
from refsam.science.strategies.opening import Finished, finished_model
from refsam.science.training.checkpoints import damage
from refsam.system.files import write_atomically

Lines = tuple[str, str]  # of Python, which load what was written
Writer = Callable[[RefsamConfig, RunPaths, Path], Lines]


@dataclass(frozen=True)
class Exported:
    """What was written, and the two lines of Python that load it."""

    path: Path
    lines: Lines


def export_run(
    paths: RunPaths, target: str, output: Path | None, details: Mapping[str, Any] | None = None
) -> Exported:
    """Write the model of a run in another format.

    Args:
        paths: of a run with a best.pt.
        target: of WRITERS.
        output: file or folder that is made; None for one in the run directory.
        details: what a package of bioimageio says beside the model: what its Details take.

    Raises:
        ConfigError: when the run has no such model, the format cannot hold it, or `output` is there already
            or cannot be written.
    """
    try:
        config = load(paths.config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.kind == Kind.baseline:
        raise ConfigError(
            f"run {paths.run_id} is a baseline: it trains nothing, so there is nothing to export"
        )
    if not paths.best.exists():
        raise ConfigError(f"run {paths.run_id} has no best.pt yet: it has not finished an epoch")
    write, suffix = WRITERS.get(target, (partial(_write_bioimageio, details=details), ".zip"))
    written = output or paths.exports / f"{paths.run_id}-{target}{suffix}"
    if written.exists():
        raise ConfigError(f"--output: {written} exists already; give a path that does not exist")
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            lines = write(config, paths, written.absolute())
    except OSError as error:
        raise ConfigError(f"--output: {written} cannot be written ({os_reason(error)})") from error
    return Exported(written, lines)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and bars of progress of other packages, about which nobody can do anything here."""
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if has_bars:
            transformers_logging.enable_progress_bar()


def _finished(config: RefsamConfig, paths: RunPaths) -> Finished:
    if (found := damage(paths.best)) is not None:
        raise ConfigError(f"best.pt of run {paths.run_id} is damaged ({found}): there is nothing to export")
    return finished_model(config, paths, "cpu")


def _write_micro_sam(config: RefsamConfig, paths: RunPaths, output: Path) -> Lines:
    """A checkpoint that get_sam_model and the annotator open, with the decoder if it has one."""
    architecture, finished = _save_for_micro_sam(config, paths, output, "micro_sam")
    return _lines_of_micro_sam(config, finished, architecture, output)


def _save_for_micro_sam(
    config: RefsamConfig, paths: RunPaths, output: Path, target: str
) -> tuple[str, Finished]:
    """Write micro-sam's checkpoint for the format `target`; the architecture, and what is in it."""
    _refuse_own_shape(config, target)
    finished = _finished(config, paths)
    architecture, plain = _segment_anything_state(config, finished, target)
    state = {f"{SAM_PREFIX}{name}": value for name, value in plain.items()}
    values: dict[str, dict[str, torch.Tensor]] = {"model_state": state}
    if finished.decoder_state is not None:
        values["decoder_state"] = dict(finished.decoder_state)
    write_atomically(output, lambda file: torch.save(values, file))
    return architecture, finished


def _write_bioimageio(
    config: RefsamConfig, paths: RunPaths, output: Path, details: Mapping[str, Any] | None
) -> Lines:
    """A package of the BioImage Model Zoo, with the decoder if there is one."""
    assert details is not None
    _refuse_unmergeable(config, BIOIMAGEIO)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        architecture, finished = _save_for_micro_sam(config, paths, checkpoint, BIOIMAGEIO)
        model = ExportedModel(checkpoint, architecture, finished.decoder_state is not None)
        write_package(config, paths, model, Details(**details), output)
    return (
        "from bioimageio.core import load_model_description, predict",
        f"model = load_model_description({str(output)!r})",
    )


def _lines_of_micro_sam(config: RefsamConfig, finished: Finished, architecture: str, output: Path) -> Lines:
    module, function, found = "micro_sam.util", "get_sam_model", "predictor"
    if finished.decoder_state is not None:
        module, function = "micro_sam.instance_segmentation", "get_predictor_and_decoder"
        found = "predictor, decoder"
    given = f"{architecture!r}, checkpoint_path={str(output)!r}"
    strategy = STRATEGIES[config.peft.name]
    if strategy.mergeable:
        return f"from {module} import {function}", f"{found} = {function}({given})"
    arguments = surgery_arguments(config.peft, len(finished.sam.image_encoder.blocks))
    words = ", ".join(f"{name!r}: {value!r}" for name, value in arguments.items())
    return (
        f"import {module}, micro_sam.models.peft_sam as peft_sam",
        f"{found} = {module}.{function}({given}, "
        f"peft_kwargs={{'peft_module': peft_sam.{strategy.kind}, {words}}})",
    )


def _write_merged(config: RefsamConfig, paths: RunPaths, output: Path) -> Lines:
    """segment_anything's own: a plain state dict, as sam_model_registry takes it."""
    _refuse_unmergeable(config, "merged")
    _refuse_own_shape(config, "merged")
    architecture, state = _segment_anything_state(config, _finished(config, paths), "merged")
    write_atomically(output, lambda file: torch.save(state, file))
    package = "mobile_sam" if architecture == "vit_t" else "segment_anything"
    return (
        f"from {package} import sam_model_registry",
        f"sam = sam_model_registry[{architecture!r}](checkpoint={str(output)!r})",
    )


def _write_hugging_face(config: RefsamConfig, paths: RunPaths, output: Path) -> Lines:
    """A folder for transformers.SamModel.from_pretrained."""
    _refuse_unmergeable(config, "hf")
    if config.model.architecture == "vit_t":
        raise ConfigError(
            "--to hf: model.architecture=vit_t is TinyViT, which transformers' SamModel does not support; "
            "choose from micro_sam, merged, adapter"
        )
    sam = _finished(config, paths).sam
    model = to_transformers_model(sam) if isinstance(sam, HuggingFaceSam) else from_segment_anything(sam)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        image_processor(sam.image_encoder.img_size).save_pretrained(folder)

    _write_folder(output, save)
    folder = repr(str(output))
    return (
        "from transformers import SamModel, SamProcessor",
        f"model, processor = SamModel.from_pretrained({folder}), SamProcessor.from_pretrained({folder})",
    )


def _write_adapter(config: RefsamConfig, paths: RunPaths, output: Path) -> Lines:
    """A folder for peft.PeftModel.from_pretrained."""
    if not STRATEGIES[config.peft.name].adapter:
        allowed = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.adapter)
        raise ConfigError(
            f"--to adapter: peft.name={config.peft.name} trains no adapter of peft; choose from {allowed}"
        )
    _write_folder(output, lambda folder: shutil.copytree(paths.adapter, folder))
    return (
        "import peft, refsam.science.strategies.opening as opening",
        f"model = peft.PeftModel.from_pretrained(opening.initial_model({str(paths.root.absolute())!r}), "
        f"{str(output)!r})",
    )


def _write_folder(output: Path, write: Callable[[Path], object]) -> None:
    """All of it or nothing, as with files."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
    write(unfinished)
    unfinished.rename(output)


BIOIMAGEIO = "bioimageio"
WRITERS: dict[str, tuple[Writer, str]] = {
    "micro_sam": (_write_micro_sam, ".pt"),
    "hf": (_write_hugging_face, ""),
    "adapter": (_write_adapter, ""),
    "merged": (_write_merged, ".pt"),
}


def _segment_anything_state(
    config: RefsamConfig, finished: Finished, target: str
) -> tuple[str, dict[str, torch.Tensor]]:
    """The architecture and the state dict under the names of segment_anything, for the format `target`."""
    state: dict[str, torch.Tensor] = finished.sam.state_dict()
    if not isinstance(finished.sam, HuggingFaceSam):
        return config.model.architecture, state
    architecture = published_shape(finished.sam.config)
    if architecture is None:
        raise _own_shape(config, target)
    return architecture, to_segment_anything(state)


def _refuse_own_shape(config: RefsamConfig, target: str) -> None:
    """Refuse a shape that neither micro-sam's nor segment_anything's registry builds, before it is opened."""
    if config.model.custom is not None and config.model.family != HUGGING_FACE:
        raise _own_shape(config, target)


def _own_shape(config: RefsamConfig, target: str) -> ConfigError:
    strategy = STRATEGIES[config.peft.name]
    others = [name for name, can in (("hf", strategy.mergeable), ("adapter", strategy.adapter)) if can]
    return ConfigError(
        f"--to {target}: model={config.model.name} has a shape that segment_anything and micro-sam do not "
        f"build; allowed: {', '.join([*others, 'in Python refsam.load'])}"
    )


def _refuse_unmergeable(config: RefsamConfig, target: str) -> None:
    if not STRATEGIES[config.peft.name].mergeable:
        raise ConfigError(
            f"--to {target}: peft.name={config.peft.name} adds layers that a plain model does not have; use "
            "micro_sam, which opens them with get_sam_model(…, peft_kwargs=…) if the model's shape is one of "
            "its own"
        )
