"""What the finetuning strategies cost: parameters, memory and seconds of a step, beside what was published.

`python -m benchmarks.strategies` takes one step of each strategy in a process of its own, as
`benchmarks.train_step` does (random weights, real nuclei, no segmentation decoder), for vit_t and vit_b.
Published are numbers of the PEFT study for vit_b: GiB on an A100 with 25 objects, and millions of trained
parameters, both with the segmentation decoder, so that differences between strategies compare and not the
numbers themselves.

`python -m benchmarks.strategies --parameters` counts the parameters only, and prints the table of
docs/strategies.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.rows import write_csv
from benchmarks.train_step import REFSAM, run_step
from refsam.configuration.schema import ModelConfig, PeftConfig
from refsam.models.strategies import STRATEGIES, strategy_problem

CONF = Path(__file__).parents[1] / "conf"
COUNTED = ("vit_b", "vit_t")
# The PEFT study (docs/strategies.md): GiB and millions of trained parameters.
PUBLISHED = {
    "full": (51.0, 104.8),
    "freeze_encoder": (37.7, 15.1),
    "lora rank=32": (49.7, 16.3),
    "qlora": (49.9, 16.3),
    "late_lora": (44.4, 15.7),
    "late_ft": (44.2, 57.7),
    "late_ft share=8": (40.8, 22.2),
}
STEPPED = (*PUBLISHED, "hf_lora", "dora", "hf_qlora", "qdora")
COLUMNS = (
    "model", "peft", "trainable_parameters", "total_parameters", "weights_mib", "above_base_mib", "seconds",
    "cpu_seconds", "published_millions", "published_gib",
)  # fmt: skip


def strategy(name: str) -> PeftConfig:
    """The strategy of conf/peft/NAME.yaml."""
    given = OmegaConf.load(CONF / "peft" / f"{name}.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PeftConfig), given))
    assert isinstance(config, PeftConfig)
    return config


def model(architecture: str) -> ModelConfig:
    """A model of micro-sam with random weights."""
    return ModelConfig(name=architecture, architecture=architecture, weights="random", memory_gb=1)


def trained_in_encoder(name: str, architecture: str) -> int | None:
    """Parameters that a strategy trains in the image encoder; None where it does not go with it."""
    if strategy_problem(model(architecture), strategy(name)) is not None:
        return None
    from refsam.science.models import load_model
    from refsam.science.strategies.injection import apply_strategy
    from refsam.science.strategies.parts import count_parameters

    sam = apply_strategy(load_model(model(architecture), 0, "cpu").sam, strategy(name))
    return count_parameters(sam.image_encoder.parameters())[0]


def source(name: str) -> str:
    """Where the settings of a strategy come from: the comment of its file."""
    comment = (CONF / "peft" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return comment.removeprefix("# ")


def does_not_go_with(name: str) -> str:
    """Families and architectures that a strategy does not go with, in words."""
    excluded = {"hf": "Hugging Face's models"}
    return ", ".join(excluded.get(known, known) for known in STRATEGIES[name].excluded) or "–"


def table_row(name: str, counts: list[int | None]) -> str:
    """One row of the table in docs/strategies.md."""
    shown = ["–" if count is None else f"{count:,}" for count in counts]
    cells = [f"`{name}`", STRATEGIES[name].trains, *shown, does_not_go_with(name), source(name)]
    return f"| {' | '.join(cells)} |"


def print_parameters() -> None:
    for name in STRATEGIES:
        print(
            table_row(name, [trained_in_encoder(name, architecture) for architecture in COUNTED]), flush=True
        )


def benchmark(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for architecture in arguments.models:
        for given in arguments.strategies:
            if strategy_problem(model(architecture), strategy(given.split()[0])) is not None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                values = {"model": architecture, "peft": given, "engine": REFSAM}
                row = run_step(arguments, Path(folder) / "step", None, **values)
            if architecture == "vit_b" and given in PUBLISHED:
                gibibytes, millions = PUBLISHED[given]
                row |= {"published_gib": gibibytes, "published_millions": millions}
            rows.append({column: row.get(column) for column in COLUMNS})
            print(
                ", ".join(f"{key} {value}" for key, value in rows[-1].items() if value is not None),
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__)
    parser.add_argument("--parameters", action="store_true", help="count only, and print the table")
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b"])
    parser.add_argument("--strategies", nargs="+", default=list(STEPPED), help="as 'lora rank=32'")
    parser.add_argument("--n-objects", type=int, default=10)
    parser.add_argument("--n-sub-iterations", type=int, default=8)
    parser.add_argument("--object-chunk", default="auto")
    parser.add_argument("--checkpoint-encoder", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    parser.add_argument("--name", default="strategies", help="of the CSV")
    parser.set_defaults(decoder=False, limit_gib=None)
    arguments = parser.parse_args()
    if arguments.parameters:
        print_parameters()
    else:
        write_csv(arguments.name, COLUMNS, benchmark(arguments))


if __name__ == "__main__":
    main()
