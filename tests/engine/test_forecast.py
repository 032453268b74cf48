"""Steps that are counted on fake tensors, against steps that are taken, and against published figures."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.data import patch_loaders
from refsam.science.engine.allocator import SETTINGS
from refsam.science.fit import discs, make_optimizer_state, of_one_batch, take
from refsam.science.forecast import CUBLAS_BYTES, PROCESS_GIB, Storages, fake_tensors, forecast
from refsam.science.hardware import GIB
from refsam.science.heap import Heap
from refsam.science.training.build import build_training

MIB = 2**20
SMALL = (
    *("resource=local", "model=vit_nano", "peft=full", "n_objects=4", "train.patch_shape=[128,128]"),
    *("train.decoder=false", "train.object_chunk=2", "train.checkpoint_encoder=off", "train.workers=0"),
    *("train.min_samples=1", "train.validation_samples=1", "train.n_sub_iterations=2"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=float32", "train.engine=micro_sam"),
        ("train.precision=bfloat16", "train.checkpoint_encoder=on"),
        ("train.precision=float32", "peft=freeze_encoder"),
        ("train.precision=float32", "peft=qlora"),
        ("train.precision=float32", "peft=qdora"),
    ],
    ids=" ".join,
)
def test_a_forecast_counts_what_a_step_allocates(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = compose([*SMALL, *overrides])
    expected = forecast(config, on_gpu=False)["tensors_gib"]
    assert expected == pytest.approx(_counted(config, tmp_path), rel=0.03)


@pytest.mark.parametrize(
    ("on_gpu", "dtype", "laid_out"),
    [(False, torch.float32, 2), (False, torch.bfloat16, 3), (True, torch.float32, 3)],
    ids=["oneDNN", "oneDNN, bfloat16", "cuDNN"],
)
def test_a_convolution_is_counted_with_what_its_library_takes(
    on_gpu: bool, dtype: torch.dtype, laid_out: int
) -> None:
    x = torch.ones(1, 8, 64, 64, requires_grad=True, dtype=dtype)
    weight = torch.ones(8, 8, 3, 3, requires_grad=True, dtype=dtype)
    with Storages(heap=None if on_gpu else Heap()) as forward:
        y = torch.nn.functional.conv2d(x, weight, padding=1)
    assert forward.peak == 3 * x.nbytes + weight.nbytes
    gradient = torch.ones_like(y)
    with Storages(heap=None if on_gpu else Heap()) as backward:
        results = torch.autograd.grad(y, (x, weight), gradient)
    assert backward.bytes == sum(each.nbytes for each in results)
    assert backward.peak - backward.bytes == laid_out * x.nbytes + (laid_out - 1) * weight.nbytes


@pytest.mark.slow
def test_a_forecast_does_not_depend_on_the_one_before(tmp_path: Path) -> None:
    few, many = tmp_path / "few.yaml", tmp_path / "many.yaml"
    freeze(few, compose([*SMALL, "train.precision=float32"]))
    freeze(many, compose([*SMALL, "train.precision=float32", "n_objects=16", "train.engine=micro_sam"]))
    lines = "".join(f"{path} cpu\n" for path in (few, many, few))
    answers = subprocess.run(
        [sys.executable, "-m", "refsam.science.forecast"], input=lines, capture_output=True, text=True
    ).stdout.splitlines()
    first, between, again = (json.loads(answer)["peak_gib"] - PROCESS_GIB for answer in answers)
    assert between > 2 * first
    assert again == pytest.approx(first, rel=0.1)


# 256 MiB of tensors end, before a small one that is placed behind them; then there is one of 512 MiB.
PLACES = """
import re
from refsam.science.engine.allocator import keep_freed_memory
from refsam.science.heap import Heap

keep_freed_memory()
heap = Heap()
ended = [heap.take(16 * 2**20) for _ in range(16)]
heap.take(2**20)
for block in ended:
    heap.free(block)
kept = heap.bytes
heap.begin_peak()
heap.free(heap.take(512 * 2**20))
# Not getrusage, whose maximum is also that of the process that has started this one.
resident = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(kept, heap.peak, heap.bytes, resident)
"""


def test_what_the_c_library_keeps_is_counted_and_takes_no_memory() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    run = subprocess.run(
        [sys.executable, "-c", PLACES], env=environment, capture_output=True, text=True, check=True
    )
    kept, peak, after, resident = (int(word) / MIB for word in run.stdout.split())
    assert kept == pytest.approx(257, abs=4)
    assert peak == pytest.approx(769, abs=4)
    assert after == pytest.approx(257, abs=4)
    assert resident < 200


@pytest.mark.slow
def test_what_is_computed_again_on_a_gpu_has_the_types_of_the_first_time() -> None:
    peaks = [
        forecast(
            compose([*SMALL, "train.precision=bfloat16", f"train.checkpoint_encoder={again}"]), on_gpu=True
        )
        for again in ("off", "on")
    ]
    assert peaks[1]["peak_gib"] < peaks[0]["peak_gib"]


@pytest.mark.slow
def test_a_step_of_two_patches_is_measured_and_forecast_with_two() -> None:
    config = of_one_batch(compose([*SMALL, "train.batch_size=2"]))
    image = discs(config.n_objects, tuple(config.train.patch_shape))
    x, _ = next(iter(patch_loaders(config, [image], [image])[0]))
    assert len(x) == 2
    one, two = (forecast(compose([*SMALL, f"train.batch_size={n}"]), on_gpu=True) for n in (1, 2))
    assert two["peak_gib"] - two["base_gib"] > 1.5 * (one["peak_gib"] - one["base_gib"])


def _counted(config: RefsamConfig, folder: Path) -> float:
    """GiB of the storages of a step that is taken."""
    paths = RunPaths(folder)
    for path in (paths.checkpoints, paths.tensorboard, paths.results):
        path.mkdir(parents=True)
    image = discs(config.n_objects, tuple(config.train.patch_shape))
    with Storages() as storages:
        loaders = patch_loaders(config, [image], [image])
        training = build_training(config, paths, loaders, lambda progress: None)
        training.learner.switch(training=True)
        make_optimizer_state(training.learner.optimizer)
        x, y = next(iter(loaders[0]))
        storages.peak = 0
        take(training, x, y)
    return storages.peak / GIB


# segment-anything-fast, experiments/results.csv: vit_b's encoder for one image on an A100.
@pytest.mark.parametrize(("dtype", "published_mib"), [(torch.float32, 2789), (torch.bfloat16, 1416)])
def test_published_memory_of_an_encoder_is_forecast(dtype: torch.dtype, published_mib: int) -> None:
    with fake_tensors(on_gpu=True) as (_, storages):
        encoder = ImageEncoderViT(
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
        )
        for value in encoder.parameters():
            value.data = value.data.to(dtype)
        storages.peak = 0
        with torch.no_grad():
            encoder(torch.empty(1, 3, 1024, 1024, dtype=dtype))
    assert (storages.peak + CUBLAS_BYTES) / MIB == pytest.approx(published_mib, rel=0.03)
