"""Small runs, training and evaluation, on a GPU that is not there."""

from pathlib import Path

from pretended_gpu import Gpu, gpu
from training_runs import TINY, small_config

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import State, Status, read_status, write_status
from refsam.science import run
from refsam.system.files import read_json

HUGGING_FACE = ("model=hf_tiny", *TINY[1:])
# One epoch of two steps, and one test image with boxes.
QUICK = (
    *("resource.device=cuda", "train.precision=auto", "train.workers=0", "train.epochs=1"),
    *("train.min_samples=2", "train.validation_samples=1", "evaluate.max_images=1", "evaluate.modes=[box]"),
)


def quick_config(
    dataset: DatasetConfig, *overrides: str, model: tuple[str, ...] = TINY, on: str = "cuda"
) -> RefsamConfig:
    return small_config(dataset, *QUICK, f"resource.device={on}", *overrides, model=model)


def execute(config: RefsamConfig, root: Path) -> RunPaths:
    """A run from its frozen configuration to its end."""
    paths = RunPaths(root) if root.exists() else new_run(config, root)
    run.execute(paths.root)
    return paths


def new_run(config: RefsamConfig, root: Path) -> RunPaths:
    """A run that nothing has been done of."""
    paths = RunPaths(root)
    root.mkdir()
    freeze(paths.config, config)
    write_status(paths, Status(State.pending))
    return paths


def execute_on_gpu(config: RefsamConfig, root: Path, capability: tuple[int, int]) -> tuple[RunPaths, Gpu]:
    """A run that is completed on a GPU, and that GPU."""
    with gpu(capability) as device:
        paths = execute(config, root)
    assert read_status(paths).state is State.completed
    assert read_json(paths.environment)["device"] == "cuda"
    assert read_metrics(paths.metrics)
    return paths, device
