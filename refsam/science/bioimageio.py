"""A run's model as a package of the BioImage Model Zoo, as micro-sam's own export makes it.

Added to that are the run's record, its licence, and what is to be cited. The package holds a test image of
the run and what the model makes of it: of a model with a segmentation decoder the objects that it finds by
itself, else those for two boxes and points.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import relabel_sequential

from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError
from refsam.models.strategies import strategy_label
from refsam.records.paths import RunPaths
from refsam.science.data import test_images
from refsam.science.evaluation.images import load_image

LARGEST = 512  # pixels of a side of the test image
PROMPTED = 2  # objects that micro-sam's export asks for with prompts


@dataclass(frozen=True)
class Details:
    """What a package says that no run knows.

    Attributes:
        license: an identifier of SPDX, such as CC-BY-4.0.
        cite: text, and DOI or address, of what is to be cited.
    """

    authors: Sequence[str]
    license: str
    cite: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ExportedModel:
    """A checkpoint in micro-sam's format, its architecture, and whether it has a segmentation decoder."""

    checkpoint: Path
    architecture: str
    has_decoder: bool


def write_package(
    config: RefsamConfig, paths: RunPaths, model: ExportedModel, details: Details, output: Path
) -> None:
    """Write the package.

    Args:
        output: a zip file that is made.

    Raises:
        ConfigError: when the extra is not installed, a detail is not what the zoo allows, or no test image
            shows what the model does.
    """
    try:
        from bioimageio import spec
        from micro_sam.bioimageio.model_export import export_sam_model
    except ImportError as error:
        raise ConfigError(
            f"--to bioimageio needs the packages of the BioImage Model Zoo ({error}): "
            "pip install 'refsam[bioimageio]'"
        ) from error
    described = _described(config, paths, model, details)
    with tempfile.TemporaryDirectory() as folder, _silent():
        made = Path(folder) / "made.zip"
        for image, labels in _shown(config, model.has_decoder):
            try:
                export_sam_model(
                    image, labels, checkpoint_path=model.checkpoint, output_path=made, **described
                )
                break
            except RuntimeError as error:
                if "did not find any objects" not in str(error):
                    raise
        else:
            raise ConfigError(
                f"--to bioimageio: the model of run {paths.run_id} segments no test image that a package "
                "could show (with a segmentation decoder one object, else two to ask for); allowed: micro_sam"
            )
        package = spec.load_model_description(made, perform_io_checks=False)
        from bioimageio.spec.model import v0_5

        record = [path for path in (paths.config, paths.environment, paths.metrics) if path.exists()]
        attached = [*(package.attachments or []), *(v0_5.FileDescr(source=path) for path in record)]
        final = package.model_copy(
            update={"license": v0_5.LicenseId(details.license), "attachments": attached, "git_repo": None}
        )
        spec.save_bioimageio_package(final, output_path=output)


def _described(
    config: RefsamConfig, paths: RunPaths, model: ExportedModel, details: Details
) -> dict[str, Any]:
    """Arguments of micro-sam's export that say what the model is. Raises ConfigError for what is not
    allowed.
    """
    from bioimageio.spec.model import v0_5
    from pydantic import ValidationError

    try:
        authors = [v0_5.Author(name=name) for name in details.authors]
        v0_5.LicenseId(details.license)
    except (ValidationError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ConfigError(
            f"--author, --license: the BioImage Model Zoo does not allow this ({reason})"
        ) from error
    strategy = strategy_label(vars(config.peft))
    images = f"{config.n_images} image{'' if config.n_images == 1 else 's'}"
    words = f"{config.model.name} finetuned by {strategy} with {images} of {config.dataset.name}"
    return {
        "model_type": model.architecture,
        "name": re.sub(r"[^\w +,()-]", " ", f"Segment Anything {words}")[:128],
        "description": f"Segment Anything for Microscopy: {words}.",
        "documentation": _documentation(config, paths, words),
        "authors": authors,
        "cite": [_entry(text, address) for text, address in details.cite],
        "tags": ["segment-anything", "instance-segmentation", "refsam"],
    }


def _entry(text: str, address: str) -> Any:
    from bioimageio.spec.model import v0_5

    if address.startswith("http"):
        return v0_5.CiteEntry(text=text, url=v0_5.HttpUrl(address))
    return v0_5.CiteEntry(text=text, doi=v0_5.Doi(address))


def _documentation(config: RefsamConfig, paths: RunPaths, words: str) -> str:
    return (
        f"# Segment Anything for Microscopy\n\n{words}, with refsam.\n\n"
        f"- run: {paths.run_id}\n- weights at the start: {config.model.weights}\n"
        f"- data set: {config.dataset.name}, {config.n_images} training images\n"
        f"- seed: {config.seed}\n\nconfig.yaml, environment.json and metrics.json of the run are attached. "
        "Validate the model on your own data before you rely on it: compare its masks with annotations by "
        "eye and by the segmentation accuracy.\n"
    )


def _shown(config: RefsamConfig, has_decoder: bool) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Test images (H, W) or (H, W, 3) with labels (H, W) from 1 on, of those that have enough objects."""
    for pair in test_images(config):
        image, labels = load_image(config, pair)
        rows, columns = (slice(0, min(side, LARGEST)) for side in labels.shape)
        numbered = relabel_sequential(labels[rows, columns].astype(np.int64))[0]
        if numbered.max() >= (1 if has_decoder else PROMPTED):
            yield image[rows, columns], numbered


@contextmanager
def _silent() -> Iterator[None]:
    """Without what other packages print, and without a window for micro-sam's figure of the cover."""
    mpl.use("Agg")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
