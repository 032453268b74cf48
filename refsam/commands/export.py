"""`refsam export`: a run's model in the format of another program."""

import argparse
from pathlib import Path

from refsam.commands.options import COMPLETED, Commands, add_command, open_folder

FORMATS = ("micro_sam", "hf", "adapter", "merged")


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
        "and print the two lines of Python that load it.",
        "refsam export vit_b-dora-n5 --to hf --output my_model",
    )
    parser.add_argument("run_name", metavar="RUN", help="run id, or a part of it that no other run has")
    parser.add_argument("--to", required=True, choices=FORMATS, dest="target", help="the format")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="file or folder to make (in the run directory, exports)"
    )


def _export(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.targets import find_run

    paths = find_run(options.run_name, open_folder(options))
    from refsam.science.export import export_run  # which imports torch

    exported = export_run(paths, options.target, options.output)
    print(exported.path)
    print("In Python:")
    for line in exported.lines:
        print(f"    {line}")
    return COMPLETED
