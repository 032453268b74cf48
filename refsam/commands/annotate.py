"""`refsam annotate`: label images made by hand with the help of a run's model."""

import argparse
import importlib.util
import shlex
from pathlib import Path

from refsam.commands.options import COMPLETED, Commands, add_command
from refsam.errors import ConfigError


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "annotate",
        _annotate,
        "label images by hand, with the help of a run's model (napari)",
        "Open images one after the other in micro-sam's annotator with the best model of a run, or of the\n"
        "best run of a sweep. When the window is closed, the committed objects are saved below --output,\n"
        "where dataset=folder finds them: images/NAME and labels/NAME.tif. What was saved before is shown\n"
        "again and can be corrected.",
        "refsam annotate study 'new/*.tif' --output my_images",
    )
    parser.add_argument("target", metavar="RUN|SWEEP", help="name or folder of a run or of a sweep")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders, patterns ('new/*.tif')")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", required=True, help="where images and labels go"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (the GPU where there is one)")


def _annotate(options: argparse.Namespace) -> int:
    from refsam.datasets.annotations import LABELS, annotation_of
    from refsam.datasets.new_images import list_images
    from refsam.orchestration.operating.chosen_run import choose_run

    if importlib.util.find_spec("napari") is None:
        raise ConfigError(
            "refsam annotate needs napari, which is not installed here: pip install 'napari[all]'"
        )
    folder = options.output.expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file, and a folder is needed")
    chosen = choose_run(options.target, None, None, options.runs)
    images = list_images(options.images, without=folder / LABELS)
    annotations = [annotation_of(each.path, each.name, folder) for each in images]
    print(chosen.words)
    from refsam.science.annotate import annotate_all  # which imports torch

    for each, labels in annotate_all(chosen.paths, annotations, options.device):
        if labels.max() == 0:
            print(f"{each.image}: no object was committed, nothing is saved")
        else:
            print(f"{each.image}: {each.save(labels)} objects in {each.labels}")
    print("To train with them:")
    print(
        f"    python -m refsam.sweep -m dataset=folder {shlex.quote(f'dataset.root={folder}')} n_images=1,2,5"
    )
    return COMPLETED
