"""The QLoRA-SAM study as a whole, in small: a trained model is finetuned on images of another look.

    python -m benchmarks.qlora_sam FOLDER

draws two data sets in the layout of TrashCan 1.0 (benchmarks/drawn_trashcan.py), trains a tiny SamModel on
the plain one, and gives it to the study's sweep on the other one: the initial model, LoRA, DoRA, QLoRA and
QDoRA. Each command is printed before it runs, and the table of the study comes last. A second start in the
same folder goes on where the first one stopped.
"""

import argparse
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.drawn_trashcan import plain, underwater, write_data

N_IMAGES = {"plain": {"train": 200, "val": 20}, "underwater": {"train": 44, "val": 20}}
PAINTERS = {"plain": plain, "underwater": underwater}
N_VALIDATION = {"plain": 16, "underwater": 4}
ON_THIS_MACHINE = ("resource=local", "cluster=local")
MODEL = (
    *("model=hf_tiny", "model.custom.image_size=128", "model.custom.patch_size=8", "model.custom.depth=3"),
    *("model.custom.embed_dim=64", "model.custom.num_heads=4", "model.custom.global_attn_indexes=[0,1,2]"),
    "model.custom.window_size=0",
)
# Boxes, one forward a step and the loss of the study.
FIRST_TRAINING = (
    *("name=base", "peft=full", "train=trashcan", "train.optimizer=adamw", "train.betas=null"),
    *("train.weight_decay=null", "train.lr=1e-3", "train.precision=float32"),
    *("train.batch_size=4", "train.accumulate=1", "train.epochs=null", "train.max_steps=400"),
    *("train.early_stopping=null", "n_objects=3", "train.patch_shape=[96,128]", "train.validation_samples=8"),
    *("evaluate.modes=[box]", "evaluate.metrics=qlora_sam", "baseline=false"),
)
STUDY = (
    *("model=hf", "model.weights=base_model", "model.name=hf_tiny_trained", "model.memory_gb=2.5"),
    *("n_objects=3", "train.patch_shape=[96,128]", "train.validation_samples=4", "train.precision=float32"),
    *("train.lr=2e-4", "train.min_samples=160", "evaluate.crop=null", "dataset.test=val/*"),
)


def data(name: str) -> tuple[str, ...]:
    """The overrides that choose a drawn data set."""
    n_images = N_IMAGES[name]
    train_pool = n_images["train"] - N_VALIDATION[name]
    return (
        *("dataset=trashcan", f"dataset.root=data/{name}", f"dataset.version=drawn-{name}"),
        *(f"dataset.n_files={sum(n_images.values())}", f"dataset.train_pool={train_pool}"),
        *(f"dataset.n_validation={N_VALIDATION[name]}", f"n_images={train_pool}"),
    )


def draw(folder: Path) -> None:
    """Both data sets, as a person would have downloaded them."""
    for seed, (name, paint) in enumerate(PAINTERS.items()):
        if not (folder / "drawn" / name).exists():
            write_data(folder / "drawn" / name, paint, N_IMAGES[name], seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="to draw and to train in")
    parser.add_argument("--seeds", default="0,1,2", help="of the study's runs (0,1,2)")
    options = parser.parse_args()
    if importlib.util.find_spec("bitsandbytes") is None:  # before the first training, not after it
        parser.error("needs bitsandbytes, which is not installed here: pip install '.[quantized]'")
    options.folder.mkdir(parents=True, exist_ok=True)
    draw(options.folder)
    for command, made in commands(options.seeds):
        if made is None or not (options.folder / made).exists():
            print(f"\n$ python -m {shlex.join(command)}", flush=True)
            subprocess.run([sys.executable, "-m", *command], cwd=options.folder, check=True)


def commands(seeds: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """The commands, in order, and for those that are not repeated what they make."""
    for name in PAINTERS:
        prepare = ("refsam.cli", "prepare", *data(name)[:4], f"dataset.archive=drawn/{name}")
        yield prepare, f"data/{name}"
    yield ("refsam.sweep", *ON_THIS_MACHINE, *MODEL, *data("plain"), *FIRST_TRAINING), "base_model"
    yield ("refsam.cli", "export", "hf_tiny-full", "--to", "hf", "--output", "base_model"), "base_model"
    sweep = "peft_trashcan_small"
    yield ("refsam.sweep", "--config-name", sweep, *data("underwater"), *STUDY, f"seed={seeds}"), None
    yield ("refsam.cli", "strategies", sweep), None


if __name__ == "__main__":
    main()
