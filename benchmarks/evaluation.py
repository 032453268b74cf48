"""One evaluation in all modes against micro-sam's four scripts one after the other, on the same images.

    python -m benchmarks.evaluation --model vit_t --images 3

The scripts are those that the resource study submits for each model: iterative prompting that starts with
points, the same with boxes (each without and with masks), AMG and AIS, each with its own embeddings, the
latter two with their search for parameters on one validation image. Each side runs in a process of its own.
Weights are random or a checkpoint with a decoder; of random ones AMG keeps no mask, so a checkpoint
tells more. Prints one line per side: seconds of the clock, seconds of all cores and their parts, the peak of
the resident memory, and writes benchmarks/results/evaluation.csv. Where other work shares the machine, only
the seconds of the cores compare.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tifffile
import torch
from micro_sam import util
from micro_sam.evaluation import inference, instance_segmentation
from micro_sam.instance_segmentation import (
    AutomaticMaskGenerator,
    InstanceSegmentationWithDecoder,
)

from benchmarks.rows import write_csv
from refsam.configuration.compose import compose
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.pair import Pair
from refsam.records.paths import RunPaths
from refsam.science.data import test_images, validation_images
from refsam.science.evaluation import evaluate
from refsam.science.evaluation.grid_search import grid_values
from refsam.science.evaluation.images import load_image
from refsam.science.models import build_unetr, initial_predictor, segmentation_decoder

GIB = 2**30


@dataclass
class Clock:
    """Seconds of the clock, and seconds of all cores by part."""

    seconds: float = 0.0
    of_cores: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start, cores = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
            self.of_cores[name] = self.of_cores.get(name, 0.0) + time.process_time() - cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vit_t", help="a model of conf/model (vit_t)")
    parser.add_argument("--weights", default="random", help="random, or a checkpoint (random)")
    parser.add_argument("--images", type=int, default=3, help="test images of the nuclei (3)")
    parser.add_argument("--crop", type=int, default=None, help="the middle of the images, in pixels (all)")
    parser.add_argument("--rounds", type=int, default=7, help="correcting rounds (7)")
    parser.add_argument("--grid", default="study", choices=["study", "small", "defaults"])
    parser.add_argument("--points-per-side", type=int, default=32, help="of AMG's grid (32)")
    parser.add_argument("--threads", type=int, default=None, help="of torch (as many as it takes)")
    options = parser.parse_args()
    rows = []
    for side in (micro_sam_scripts, one_pass):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(_measured, (side, options)))
    scripts = rows[0]
    write_csv("evaluation", ("side", "seconds", "core_seconds", "peak_gib", "threads", "parts"), rows)
    for row in rows:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["parts"].items())
        of_clock, of_cores = (row[name] / scripts[name] for name in ("seconds", "core_seconds"))
        print(
            f"{row['side']}: {row['seconds']:.1f} s ({of_clock:.2f} of the scripts), "
            f"{row['core_seconds']:.1f} s of all cores ({of_cores:.2f}), "
            f"peak {row['peak_gib']:.2f} GiB, {row['threads']} threads; seconds of all cores: {parts}"
        )
    embedding = scripts["parts"]["embeddings"] / scripts["core_seconds"]
    print(f"Embeddings are {embedding:.0%} of the scripts' seconds of all cores.")


def micro_sam_scripts(config: RefsamConfig, folder: Path, clock: Clock) -> None:
    """What the study's four scripts call, each with a model and embeddings of its own."""
    tests, validation = (_written(config, pairs, folder) for pairs in _images(config))
    images, labels = ([getattr(pair, name) for pair in tests] for name in ("image", "label"))
    for start in ("point", "box"):
        predictor, _ = _model(config)
        embeddings = folder / f"embeddings-{start}"
        with clock.part("embeddings"):
            inference.precompute_all_embeddings(predictor, images, embeddings)
        for use_masks in (False, True):
            with clock.part(start):
                inference.run_inference_with_iterative_prompting(
                    predictor,
                    images,
                    labels,
                    embeddings,
                    folder / f"{start}-{use_masks}",
                    start_with_box_prompt=start == "box",
                    dilation=config.evaluate.dilation,
                    batch_size=config.evaluate.batch_size,
                    n_iterations=config.evaluate.rounds + 1,
                    use_masks=use_masks,
                )
    for mode in ("amg", "ais"):
        predictor, decoder = _model(config)
        generator = (
            AutomaticMaskGenerator(predictor, points_per_side=config.evaluate.points_per_side)
            if mode == "amg"
            else InstanceSegmentationWithDecoder(predictor, decoder)
        )
        embeddings, predictions = folder / f"embeddings-{mode}", folder / mode
        predictions.mkdir()
        with clock.part("embeddings"):
            every = [*images, *(pair.image for pair in validation)]
            inference.precompute_all_embeddings(predictor, every, embeddings)
        with clock.part(mode):
            instance_segmentation.run_instance_segmentation_grid_search_and_inference(
                generator,
                grid_values(config.evaluate, mode),
                [pair.image for pair in validation],
                [pair.label for pair in validation],
                images,
                embedding_dir=embeddings,
                prediction_dir=predictions,
                experiment_folder=folder / f"{mode}-results",
                result_dir=folder / f"{mode}-search",
                verbose_gs=False,
            )


def one_pass(config: RefsamConfig, folder: Path, clock: Clock) -> None:
    """refsam's evaluation in the same modes."""
    tests, validation = _images(config)
    predictor, decoder = _model(config)
    paths = RunPaths(folder / "run")
    paths.root.mkdir()

    def ignore(phase: str, done: int, total: int) -> None:
        """Nobody listens."""

    with clock.part("all modes"):
        evaluate(config, predictor, tests, paths, ignore, decoder=decoder, validation=validation)


def _measured(side: Callable[..., None], options: argparse.Namespace) -> dict[str, Any]:
    if options.threads:
        torch.set_num_threads(options.threads)
    overrides = [
        f"model={options.model}",
        f"model.weights={options.weights}",
        "dataset=nuclei",
        "evaluate=study",
    ]
    config = compose(overrides)
    config.kind = Kind.baseline
    config.evaluate.rounds, config.evaluate.grid = options.rounds, options.grid
    config.evaluate.max_images, config.evaluate.points_per_side = options.images, options.points_per_side
    config.evaluate.crop = None if options.crop is None else [options.crop] * 2
    config.evaluate.save_predictions, config.evaluate.pictures = True, 0
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config.data = folder  # no embedding is there already
        side(config, Path(folder), clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (GIB / 1024)
    return {
        "side": side.__name__,
        "seconds": clock.seconds,
        "core_seconds": sum(clock.of_cores.values()),
        "peak_gib": peak,
        "parts": clock.of_cores,
        "threads": torch.get_num_threads(),
    }


def _images(config: RefsamConfig) -> tuple[list[Pair], list[Pair]]:
    return test_images(config), validation_images(config)


def _model(config: RefsamConfig) -> tuple[Any, Any]:
    """The predictor, and a decoder of random weights where the checkpoint has none."""
    device = util.get_device()
    predictor, state, _ = initial_predictor(config.model, config.seed, device)
    if state is None:
        state = build_unetr(predictor.model, config.model, None, config.seed, device).state_dict()
    return predictor, segmentation_decoder(predictor.model, config.model, state, device)


def _written(config: RefsamConfig, pairs: list[Pair], folder: Path) -> list[Pair]:
    """The pairs as files that micro-sam reads, cropped as they are measured."""
    written = []
    for pair in pairs:
        image, labels = load_image(config, pair)
        stem = pair.name.replace("/", "__")
        one = Pair(pair.name, folder / f"{stem}.tif", folder / f"{stem}_labels.tif")
        tifffile.imwrite(one.image, image)
        tifffile.imwrite(one.label, labels)
        written.append(one)
    return written


if __name__ == "__main__":
    main()
