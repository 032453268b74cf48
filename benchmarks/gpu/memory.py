"""What happens on a GPU whose memory ends."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.blocks import DEVICE
from benchmarks.gpu.configurations import alone
from benchmarks.gpu.page import Line
from benchmarks.gpu.rows import Scale
from benchmarks.gpu.steps import OUT_OF_MEMORY, under
from benchmarks.train_step import REFSAM
from refsam.configuration.frozen import freeze, with_settings
from refsam.configuration.schema import Precision, RefsamConfig
from refsam.orchestration.lifecycle.retries import decide
from refsam.records.attempts import (
    CHECKPOINTING,
    CHECKPOINTING_DECODER,
    CHUNK,
    HARDWARE_PRECISION,
    PRECISION,
    Attempt,
)
from refsam.records.status import Reason
from refsam.science.hardware import GIB, choose_precision, is_out_of_memory, release_memory

# Of what a step takes that saves nothing.
SHARES = (0.8, 0.5)
NOTHING_SAVED = ("train.checkpoint_encoder=off", "train.checkpoint_decoder=off")
MIB = 2**20
SEGMENTS = "expandable_segments"
SUB_ITERATIONS = 2  # of a step that is forecast
TAKEN = ("outcome", "allocated GiB", "reserved GiB")
SMALLEST = 512  # bytes, of a block of PyTorch's allocator


def ladder(scale: Scale) -> list[Line]:
    """A step that saves nothing, under less and less memory, and what the table of retries changes."""
    count = max(scale.counts[0], 2)
    start = alone(scale, f"n_objects={count}", f"train.object_chunk={count}", *NOTHING_SAVED)
    total = torch.cuda.get_device_properties(DEVICE).total_memory / GIB
    whole = under(start, total)
    lines: list[Line] = [{"attempt": 0, "changed": "nothing is saved", "limit GiB": total, **whole}]
    attempts: list[Attempt] = []
    for share in SHARES:
        limit = share * whole.get("allocated GiB", total)
        while True:
            settings = attempts[-1].settings if attempts else {}
            config = with_settings(start, settings)
            found = under(config, limit)
            words = ", ".join(f"{name}={value}" for name, value in settings.items())
            lines.append({"attempt": len(lines), "changed": words, "limit GiB": limit, **found})
            if found["outcome"] != OUT_OF_MEMORY:
                break
            ended = Attempt(settings=settings, used=_used(config), reason=Reason.out_of_memory)
            decision = decide([*attempts, ended])
            if decision.settings is None:
                return [*lines, {"changed": decision.words}]
            attempts.append(replace(ended, settings=decision.settings))
    return lines


def allocator(scale: Scale) -> list[Line]:
    """A step with PyTorch's blocks of fixed size, and with segments that grow."""
    config = alone(scale, f"n_objects={scale.counts[0]}")
    total = torch.cuda.get_device_properties(DEVICE).total_memory / GIB
    lines: list[Line] = []
    for segments in ("False", "True"):
        setting = f"{SEGMENTS}:{segments}"
        _set_allocator(setting)
        try:
            lines.append({"model": config.model.name, "allocator": setting, **under(config, total)})
        finally:
            _set_allocator(f"{SEGMENTS}:False")
    return lines


def _set_allocator(setting: str) -> None:
    with warnings.catch_warnings():  # newer PyTorch has a newer name for it
        warnings.simplefilter("ignore", FutureWarning)
        torch.cuda.memory._set_allocator_settings(setting)


def forecast(scale: Scale, engine: str, peft: str) -> list[Line]:
    """A step counted in a process that sees no GPU, and taken on this one."""
    count = scale.counts[0] if engine == REFSAM else 1  # what is counted of micro-sam's takes long
    given = (f"n_objects={count}", f"train.engine={engine}", f"train.n_sub_iterations={SUB_ITERATIONS}")
    config = alone(scale, *given, f"train.object_chunk={count}", *NOTHING_SAVED, peft=peft)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        freeze(path, config)
        counting = subprocess.run(
            [sys.executable, "-m", "refsam.science.forecast"],
            input=f"{path} cuda\n",
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    answer = json.loads(counting.stdout)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    found = under(config, torch.cuda.get_device_properties(DEVICE).total_memory / GIB)
    line: Line = {"model": config.model.name, "peft": peft, "objects": count, "engine": engine}
    line |= {"forecast GiB": answer["peak_gib"]} | {name: found.get(name) for name in TAKEN}
    if found["outcome"] == "fits":
        line["forecast / allocated"] = answer["peak_gib"] / found["allocated GiB"]
    return [line]


def _used(config: RefsamConfig) -> dict[str, Any]:
    """What an attempt with this configuration says that it has used."""
    return {
        CHUNK: config.train.object_chunk,
        CHECKPOINTING: 1 if config.train.checkpoint_encoder == "on" else None,
        CHECKPOINTING_DECODER: config.train.checkpoint_decoder == "on",
        PRECISION: config.train.precision,
        HARDWARE_PRECISION: choose_precision(Precision.auto, DEVICE).value,
    }


def messages(scale: Scale) -> list[Line]:
    """A full GPU, and operations that ask for more of it."""
    size = scale.product
    matrix = torch.randn(size, size, device=DEVICE)
    image = torch.randn(4, 64, size // 8, size // 8, device=DEVICE)
    weights = torch.randn(64, 64, 3, 3, device=DEVICE)
    room = [torch.empty_like(matrix)]  # for a result, but not for what is needed beside it
    asked: dict[str, Callable[[], object]] = {
        "allocation": lambda: torch.empty(64 * MIB, dtype=torch.uint8, device=DEVICE),
        "product": lambda: matrix @ matrix,
        "convolution": lambda: torch.nn.functional.conv2d(image, weights),
        "sort": lambda: matrix.sort(),
        "inverse": lambda: torch.linalg.inv(matrix),
        "Fourier transform": lambda: torch.fft.rfft2(image),
        "quantization in 4 bits": lambda: _quantized(matrix),
    }
    filling = _filled()
    lines = []
    for name, operation in asked.items():
        line: Line = {"asked for": name, "said": "nothing: there was room", "recognised": None}
        room.clear()
        try:
            operation()
        except Exception as error:  # whatever a library raises is what is looked at
            line |= {"said": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"}
            line["recognised"] = is_out_of_memory(error)
        lines.append(line)
        room.append(torch.empty_like(matrix))
    del filling
    release_memory(DEVICE)
    return lines


def _filled() -> list[torch.Tensor]:
    """Tensors that take all of the GPU's memory."""
    taken, size = [], 1024 * MIB
    while size >= SMALLEST:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        except torch.OutOfMemoryError:
            size //= 2
    return taken


def _quantized(matrix: torch.Tensor) -> object:
    from bitsandbytes import functional

    return functional.quantize_4bit(matrix)
