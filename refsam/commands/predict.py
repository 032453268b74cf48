"""`refsam predict`: new images segmented by a run's model."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refsam.commands.options import BAD_INPUT, COMPLETED, Commands, add_command, say
from refsam.errors import ConfigError
from refsam.records.metrics import METRICS
from refsam.system.terminal import standard_console

if TYPE_CHECKING:
    from refsam.datasets.new_images import NewImage
    from refsam.datasets.prompt_files import PromptFile
    from refsam.records.predictions import PredictionsFolder
    from refsam.science.predict import Predictor

MODES = ("ais", "amg", "apg", "no_prompt", "box", "point")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        _predict,
        "segment new images with a run's best model",
        "Segment images of any size with the best model of a run, or of the best run of a sweep, as the\n"
        "run's own evaluation does. Written below --output: labels/NAME.tif (object ids, with the size of a\n"
        "pixel where the image has it), overlays/NAME.png, objects/NAME.csv (area, centroid, mean\n"
        "intensity of each object), and objects.csv of all images. The same command goes on where it was\n"
        "stopped: an image that is complete is skipped.",
        "refsam predict study 'new/*.tif' --output segmented",
    )
    parser.add_argument("target", metavar="RUN|SWEEP", help="name or folder of a run or of a sweep")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders, patterns ('new/*.tif')")
    parser.add_argument("--output", type=Path, metavar="FOLDER", required=True, help="where results go")
    parser.add_argument(
        "--mode",
        choices=MODES,
        help="ais and apg need a decoder; box and point go with label images (ais with a decoder, else amg)",
    )
    parser.add_argument(
        "--prompts",
        metavar="CSV|LABELS",
        help="a prompt for each object: a CSV with the columns image, x_min,y_min,x_max,y_max or x,y "
        "(pixels); or label images (file, folder, pattern) of the same names",
    )
    parser.add_argument("--metric", choices=METRICS, help="by which the best run of a sweep is taken (SA50)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (the GPU where there is one)")
    parser.add_argument(
        "--on", metavar="RESOURCE", help="as an array of Slurm jobs on this resource, such as v100"
    )
    parser.add_argument(
        "--part", metavar="K/N", type=_part, help="only every Nth image from the Kth, as a job of an array"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be segmented, and with which model"
    )


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"--part must be K/N with K from 1 to N, such as 1/4, got {text!r}")
    return int(found[1]), int(found[2])


def _predict(options: argparse.Namespace) -> int:
    from refsam.datasets.new_images import list_images
    from refsam.orchestration.operating.chosen_run import choose_run
    from refsam.records.predictions import PredictionsFolder

    folder = PredictionsFolder(options.output.expanduser())
    if folder.root.exists() and not folder.root.is_dir():
        raise ConfigError(f"--output: {folder.root} is a file, and a folder is needed")
    chosen = choose_run(options.target, options.metric, options.mode, options.runs)
    images = list_images(options.images, without=folder.root)
    prompts = _prompts(options.prompts, images, folder)
    print(chosen.words)
    if options.part is not None:
        first, step = options.part
        images = images[first - 1 :: step]
    there = set(folder.names())
    known = sum(each.name in there for each in images)
    if options.dry_run:
        print(f"{len(images)} images would be segmented into {folder.root}, {known} of them are there")
        return COMPLETED
    if options.on is not None:
        if known == len(images):
            print(f"all {known} images are there: {folder.root}")
            return COMPLETED
        return _submit(options, chosen.paths.root, len(images) - known)
    from refsam.science.predict import open_predictor  # which imports torch

    return _segment(open_predictor(chosen.paths, folder, options.mode, prompts, options.device), images)


def _submit(options: argparse.Namespace, run: Path, n_images: int) -> int:
    """Give the images to Slurm, as an array of jobs that execute this command on their parts of them."""
    from refsam.orchestration.submission.prediction_jobs import submit_predictions

    def absolute(given: str | Path) -> str:
        return str(Path(given).expanduser().absolute())

    output = Path(absolute(options.output))
    arguments = [absolute(run), *map(absolute, options.images), "--output", str(output)]
    if options.mode is not None:
        arguments += ["--mode", options.mode]
    if options.prompts is not None:
        arguments += ["--prompts", absolute(options.prompts)]
    submit_predictions([*arguments, "--device", options.device], n_images, options.on, output, print)
    return COMPLETED


def _prompts(
    given: str | None, images: "Sequence[NewImage]", folder: "PredictionsFolder"
) -> "PromptFile | Mapping[str, Path] | None":
    if given is None:
        return None
    from refsam.datasets.prompt_files import match_labels, read_prompt_file

    if Path(given).suffix.lower() == ".csv":
        return read_prompt_file(Path(given).expanduser(), images)
    return match_labels(given, images, folder.root)


def _segment(predictor: "Predictor", images: "Sequence[NewImage]") -> int:
    """Segment what is missing, with a bar of progress on a terminal, and print what there is afterwards."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from refsam.science.predict import is_default, join_tables, predict_all

    missing = [image for image in images if not predictor.is_complete(image)]
    if is_default(predictor):
        say(
            f"mode {predictor.mode} was not evaluated in this run, so micro-sam's default parameters are used"
        )
    found, problems = 0, []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=standard_console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"segmenting ({predictor.mode})", total=len(missing))
        for predicted in predict_all(predictor, missing):
            progress.update(task, advance=1)
            if predicted.problem is not None:
                problems.append(predicted.problem)
                progress.console.print(f"refsam: {predicted.problem}")
            found += predicted.n_objects
    join_tables(predictor.folder)
    done, before = len(missing) - len(problems), len(images) - len(missing)
    skipped = f", {before} were complete" if before else ""
    print(f"{done} images segmented ({predictor.mode}), {found} objects{skipped}: {predictor.folder.root}")
    if problems:
        say(f"{len(problems)} of {len(images)} images could not be segmented")
    return BAD_INPUT if problems else COMPLETED
