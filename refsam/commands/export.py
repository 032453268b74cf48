"""`refsam export`: a run's model in the format of another program."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.commands.options import COMPLETED, Commands, add_command, open_folder
from refsam.errors import ConfigError

if TYPE_CHECKING:
    from refsam.records.paths import RunPaths

FORMATS = ("micro_sam", "hf", "adapter", "merged", "bioimageio")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "a run's model in the format of another program",
        "Write the best model of a run for another program:\n"
        "  micro_sam  a checkpoint for micro-sam's annotator and get_sam_model, with its decoder\n"
        "  hf         a folder for transformers.SamModel.from_pretrained\n"
        "  adapter    a folder for peft.PeftModel.from_pretrained, of what was trained only\n"
        "  merged     a state dict for segment_anything's sam_model_registry\n"
        "  bioimageio a package of the BioImage Model Zoo, for which authors and a license are asked\n"
        "and print the two lines of Python that load it.",
        "refsam export vit_b-dora-n5 --to hf --output my_model",
    )
    parser.add_argument("run_name", metavar="RUN", help="run id, or a part of it that no other run has")
    parser.add_argument("--to", required=True, choices=FORMATS, dest="target", help="the format")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="file or folder to make (in the run directory, exports)"
    )
    parser.add_argument(
        "--author", action="append", metavar="NAME", help="bioimageio: an author of the model; several times"
    )
    parser.add_argument("--license", metavar="ID", help="bioimageio: as SPDX names it, such as CC-BY-4.0")


def _export(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.targets import find_run

    paths = find_run(options.run_name, open_folder(options))
    details = _details(options, paths) if options.target == "bioimageio" else None
    from refsam.science.export import export_run  # which imports torch

    exported = export_run(paths, options.target, options.output, details)
    print(exported.path)
    print("In Python:")
    for line in exported.lines:
        print(f"    {line}")
    return COMPLETED


def _details(options: argparse.Namespace, paths: "RunPaths") -> dict[str, Any]:
    """What a package of the zoo says beside the model. Raises ConfigError where nobody is there to be
    asked.
    """
    from refsam.results.citations.cite import citations_of_run, in_words

    authors = options.author or _asked("--author", "Authors of the model, separated by semicolons").split(";")
    names = [name.strip() for name in authors if name.strip()]
    if not names:
        raise ConfigError("--author: the BioImage Model Zoo asks for at least one, got none")
    return {
        "authors": names,
        "license": options.license or _asked("--license", "License, as SPDX names it (CC-BY-4.0)").strip(),
        "cite": [found for entry in citations_of_run(paths).entries.values() if (found := in_words(entry))],
    }


def _asked(option: str, question: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(f"--to bioimageio needs {option}, and without a terminal it cannot be asked for")
    return input(f"{question}: ")
