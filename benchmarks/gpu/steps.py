"""Training steps on a GPU: their gradients, seconds, memory and waits."""

import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.blocks import DEVICE
from benchmarks.gpu.configurations import alone
from benchmarks.gpu.page import Line
from benchmarks.gpu.rows import ENGINES, Scale
from benchmarks.train_step import MICRO_SAM, REFSAM, gradients_and_costs, gradients_of, relative_differences
from refsam.configuration.schema import RefsamConfig
from refsam.science import fit
from refsam.science.data import patch_loaders
from refsam.science.hardware import GIB, is_out_of_memory, release_memory
from refsam.science.randomness import be_deterministic, let_kernels_be_fast

FLOAT32 = "float32"
N_OBJECTS = 5  # of a step whose gradients are compared
MARKETED = 1.1  # a GPU that is sold with so many GB shows a little less
OUT_OF_MEMORY = "out of memory"
WAIT = "synchronizing CUDA operation"


def gradients(scale: Scale, precision: str) -> list[Line]:
    """micro-sam's step and ours in a precision, each beside the other and beside micro-sam's in float32.

    In float32 also our step a second time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = _taken(scale, MICRO_SAM, FLOAT32, folder / "exact", None)
        replay = folder / "exact" / "step.pt"
        ours = _taken(scale, REFSAM, precision, folder / "ours", replay)
        compared = {"refsam, micro-sam in float32": (ours, exact)}
        if precision == FLOAT32:
            again = _taken(scale, REFSAM, precision, folder / "again", replay)
            compared["refsam, the same once more"] = (again, ours)
        else:
            theirs = _taken(scale, MICRO_SAM, precision, folder / "theirs", replay)
            compared |= {
                f"refsam, micro-sam in {precision}": (ours, theirs),
                "micro-sam, micro-sam in float32": (theirs, exact),
            }
        about = {"model": scale.models[0], "precision": precision}
        names = relative_differences(exact, exact).keys()  # of those that are more than rounding
        return [
            {**about, "compared": words, **_differences(*pair, names)} for words, pair in compared.items()
        ]


def _taken(scale: Scale, engine: str, precision: str, folder: Path, replay: Path | None) -> dict[str, Any]:
    """The gradients of a step, by half and parameter, in main memory."""
    given = (f"n_objects={N_OBJECTS}", f"train.n_sub_iterations={scale.sub_iterations}")
    config = alone(scale, *given, f"train.engine={engine}", f"train.precision={precision}")
    be_deterministic()
    if engine == MICRO_SAM:
        let_kernels_be_fast(DEVICE)
    image = fit.discs(N_OBJECTS, tuple(config.train.patch_shape))
    loaders = patch_loaders(config, [image], [image])
    folder.mkdir()
    gradients_and_costs(config, loaders, next(iter(loaders[0])), folder, replay=replay, replay_gates=True)
    found = gradients_of(folder)
    release_memory(DEVICE)
    return found


def _differences(ours: dict[str, Any], expected: dict[str, Any], names: Collection[str]) -> Line:
    """Of those parameters, where their gradients are finite in both."""
    finite = [name for name in names if ours[name].isfinite().all() and expected[name].isfinite().all()]
    pair = ({name: each[name] for name in finite} for each in (ours, expected))
    differences = relative_differences(*pair, noise=0.0)
    worst = max(differences, key=differences.__getitem__)
    return {
        "parameters": len(differences),
        "not finite": len(names) - len(finite),
        "median": statistics.median(differences.values()),
        "largest": differences[worst],
        "where": worst,
    }


def steps(
    scale: Scale, model: str, peft: str, count: int, engine: str, precision: str, limits: tuple[float, ...]
) -> list[Line]:
    """One step under each limit of memory, the largest first.

    What fits into a limit without micro-sam's step having reserved as much is the same step under a smaller
    one; what it has allocated beyond a limit does not fit.
    """
    total = torch.cuda.get_device_properties(DEVICE).total_memory / GIB
    given = (f"n_objects={count}", f"train.engine={engine}", f"train.precision={precision}")
    config = alone(scale, *given, model=model, peft=peft)
    about = {"model": model, "peft": peft, "objects": count, "engine": engine, "precision": precision}
    lines: list[Line] = []
    for limit in limits:
        if limit > total * MARKETED:
            lines.append({"limit GiB": limit, "outcome": f"the GPU has {total:.1f} GiB"})
        else:
            known = _known(lines, engine, limit)
            lines.append({"limit GiB": limit, **(under(config, limit) if known is None else known)})
    return [{**about, **line} for line in lines]


def _known(lines: list[Line], engine: str, limit: float) -> Line | None:
    """What the measurement under a larger limit says of a smaller one."""
    measured = [line for line in lines if line["outcome"] in ("fits", OUT_OF_MEMORY)]
    if not measured:
        return None
    last = measured[-1]
    if last["outcome"] == OUT_OF_MEMORY:
        return {"outcome": OUT_OF_MEMORY, "said": "as under the larger limit"}
    if engine != MICRO_SAM:
        return None  # it takes other savings
    if last["reserved GiB"] <= limit:
        return {**last, "limit GiB": limit}
    if last["allocated GiB"] > limit:
        return {"outcome": OUT_OF_MEMORY, "said": f"it takes {last['allocated GiB']:.3g} GiB"}
    return None


def under(config: RefsamConfig, limit: float) -> Line:
    """A step that may take so much of the GPU's memory."""
    fit.limit_gpu(limit, DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    try:
        found = fit.measure(config)
        savings = found["savings"]
        line = {
            "outcome": "fits",
            "seconds": found["seconds"],
            "reserved GiB": found["peak_gib"],
            "allocated GiB": torch.cuda.max_memory_allocated(DEVICE) / GIB,
            "before GiB": found["base_gib"],
            "chunk": savings["object_chunk"],
            "encoder again": savings["checkpoint_every"],
            "decoder again": savings["checkpoint_decoder"],
        }
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        line = {"outcome": OUT_OF_MEMORY, "said": str(error).strip().splitlines()[0][:100]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    release_memory(DEVICE)
    return line


def waits(scale: Scale) -> list[Line]:
    """The second of two equal steps, for one object and for many, with both engines."""
    lines = []
    for engine in ENGINES:
        for count in (1, max(scale.counts)):
            config = alone(scale, f"n_objects={count}", f"train.engine={engine}", model=scale.epoch_model)
            with tempfile.TemporaryDirectory() as folder:
                training, _, (x, y) = fit.prepared(config, Path(folder))
                fit.take(training, x, y)
                found = _waits(lambda training=training, x=x, y=y: fit.take(training, x, y))
            where = Counter(f"{_short(each.filename)}:{each.lineno}" for each in found).most_common(3)
            line = {"model": scale.epoch_model, "objects": count, "engine": engine, "waits": len(found)}
            lines.append(
                line | {"most often at": ", ".join(f"{place} ({number})" for place, number in where)}
            )
            del training
            release_memory(DEVICE)
    return lines


def _waits(compute: Any) -> list[warnings.WarningMessage]:
    """A warning for each wait."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [each for each in found if WAIT in str(each.message)]


def _short(path: str) -> str:
    """A file by its last folder and its name."""
    return "/".join(Path(path).parts[-2:])
