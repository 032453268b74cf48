"""A GPU's memory that ends: at every place that asks for it, the run says so and goes on afterwards."""

import gc
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from gpu_runs import execute, quick_config
from pretended_gpu import gpu, place_in_refsam
from segment_anything import SamPredictor
from training_runs import rows

from refsam.configuration.schema import DatasetConfig, RefsamConfig, TrainConfig
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, read_status
from refsam.science import execution, fit
from refsam.science.evaluation.images import embed
from refsam.science.evaluation.prompts import ImagePrompts, decode_prompts
from refsam.science.models import load_model
from refsam.science.training import checkpoints
from refsam.science.training.optimizers import build_optimizer, load_optimizer_state

A100 = (8, 0)


@pytest.fixture
def config(synthetic: DatasetConfig) -> RefsamConfig:
    return quick_config(
        synthetic,
        *("train.min_samples=1", "train.n_sub_iterations=2", "evaluate.modes=[box,ais]"),
        "evaluate.grid=defaults",
    )


def test_memory_that_ends_anywhere_is_recorded_as_such(config: RefsamConfig, tmp_path: Path) -> None:
    places: dict[str | None, None] = {}
    with gpu(A100) as device:
        whole = execute(config, tmp_path / "whole")  # what a process makes once is made here
        shutil.rmtree(tmp_path / "whole")
        device.on_allocation = lambda size: places.setdefault(place_in_refsam())
        execute(config, whole.root)
    assert len(places) > 40
    trained = False  # where the evaluation asks, the run goes on after its training
    for number, place in enumerate(places):
        paths = RunPaths(tmp_path / f"run{number}")
        trained = trained or str(place).startswith("science/evaluation/")
        if trained:
            shutil.copytree(whole.root, paths.root)
            shutil.rmtree(paths.metrics.parent)
        with gpu(A100) as device:
            device.on_allocation = lambda size, place=place: out_of_memory_at(place)
            with pytest.raises(torch.OutOfMemoryError):
                execute(config, paths.root)
        status = read_status(paths)
        assert (status.state, status.reason) == (State.failed, Reason.out_of_memory), place


def out_of_memory_at(place: str | None) -> None:
    if place_in_refsam() == place:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "place", ["science/training/arithmetic.py:backward", "science/evaluation/prompts.py:decode_prompts"]
)
def test_a_run_whose_memory_has_ended_goes_on_from_there(
    config: RefsamConfig, tmp_path: Path, place: str
) -> None:
    with gpu(A100):
        whole = execute(config, tmp_path / "whole")
    with gpu(A100) as device:
        device.on_allocation = lambda size: out_of_memory_at(place)
        with pytest.raises(torch.OutOfMemoryError):
            execute(config, tmp_path / "run")
        device.on_allocation = None
        gc.collect()
        paths = execute(config, tmp_path / "run")
    assert read_status(paths).state is State.completed
    assert rows(paths) == rows(whole)
    assert [row["mSA"] for row in read_metrics(paths.metrics)] == [
        row["mSA"] for row in read_metrics(whole.metrics)
    ]


def test_a_fit_measures_a_step_under_a_share_of_the_gpu(synthetic: DatasetConfig) -> None:
    config = quick_config(synthetic, "n_objects=2", "train.n_sub_iterations=1")
    with gpu(A100, gib=1):
        fit.limit_gpu(0.5, torch.device("cuda", 0))
        found = fit.measure(config)
        assert found["precision"] == "bfloat16"
        assert 0 <= found["base_gib"] < found["peak_gib"] < 0.5
        fit.limit_gpu(found["base_gib"] / 2, torch.device("cuda", 0))
        with pytest.raises(torch.OutOfMemoryError):
            fit.measure(config)


def test_the_evaluation_has_the_memory_of_the_training(config: RefsamConfig, tmp_path: Path) -> None:
    left = []
    opened = execution.predictor_and_decoder

    def looked(*given: object) -> object:
        left.append(torch.cuda.memory_allocated(0))
        return opened(*given)

    with gpu(A100), pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "predictor_and_decoder", looked)
        execute(config, tmp_path / "run")
    # A matrix of resizing and the positions of the mask decoder's grid may stay.
    assert left[0] < 64 * 1024


def test_the_best_weights_are_written_without_memory_of_the_gpu(
    config: RefsamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str | None, int] = {}
    with gpu(A100) as device:
        device.on_allocation = lambda size: asked.update({place_in_refsam(): size})
        execute(config, tmp_path / "run")
    assert not [place for place in asked if "merging" in str(place) or "state.py" in str(place)]
    assert checkpoints.damage(tmp_path / "run" / "checkpoints" / "best.pt") is None


@pytest.mark.parametrize("name", ["adam8bit", "paged_adam8bit"])
def test_an_optimizer_in_8_bits_goes_on_with_its_moments_where_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "get_paged", pages)
    monkeypatch.setattr(functional, "fill", lambda tensor, value: tensor.fill_(value))
    monkeypatch.setattr(functional, "prefetch_tensor", lambda tensor: None)
    settings = TrainConfig(optimizer=name, lr=1e-2)
    with gpu(A100):
        device = torch.device("cuda", 0)
        # Enough weights for 8 bits and pages, and few of them, which bitsandbytes keeps in 32 bits.
        layers = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Linear(300, 2)).to(device)
        optimizer = build_optimizer(settings, layers.parameters(), device)
        step(layers, optimizer)
        saved = io.BytesIO()
        torch.save((layers.state_dict(), optimizer.state_dict()), saved)
        saved.seek(0)
        weights, state = torch.load(saved, map_location="cpu", weights_only=True)
        other = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Linear(300, 2)).to(device)
        other.load_state_dict(weights)
        continued = build_optimizer(settings, other.parameters(), device)
        load_optimizer_state(continued, state)
        for mine, restored in zip(optimizer.state.values(), continued.state.values(), strict=True):
            for key, value in mine.items():
                assert type(value) is type(restored[key])
                if isinstance(value, torch.Tensor):
                    assert restored[key].device == value.device == device, key
                    assert getattr(restored[key], "is_paged", False) == getattr(value, "is_paged", False), key
        step(layers, optimizer)
        step(other, continued)
        for mine, restored in zip(layers.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine.cpu(), restored.cpu())


def pages(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Stands for memory that CUDA moves between the GPU and the host."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    tensor.is_paged = True
    return tensor


def step(layers: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layers(torch.linspace(0, 1, 800, device="cuda").view(2, 400)).square().sum().backward()
    optimizer.step()


def test_masks_leave_the_gpu_as_they_are_decoded(config: RefsamConfig) -> None:
    peaks = []
    with gpu(A100) as device:
        predictor = SamPredictor(load_model(config.model, 0, "cuda").sam)
        (tile,) = embed(predictor, np.zeros((512, 512, 3), dtype=np.uint8)).tiles
        for count in (2, 4, 24):
            boxes = np.tile([[10, 10, 200, 200]], (count, 1))
            gc.collect()
            device.peak = before = device.allocated
            masks = decode_prompts(predictor, tile, ImagePrompts(None, None, boxes), 2, propose=False)
            peaks.append(device.peak - before)
            assert len(masks.masks) == count
            assert masks.logits.shape[0] == count
    # Of 20 objects more what the next round needs, twice where it is put together, and no mask of the image.
    assert peaks[2] - peaks[1] < 20 * 2 * masks.logits[0].nbytes + 512 * 512
