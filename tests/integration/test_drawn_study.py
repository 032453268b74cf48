"""The small QLoRA-SAM study of benchmarks/qlora_sam.py: what it draws, and which runs it asks for."""

from dataclasses import replace
from pathlib import Path

from scipy.ndimage import label

from benchmarks.drawn_trashcan import SHAPE, plain, underwater, write_data
from benchmarks.qlora_sam import FIRST_TRAINING, MODEL, ON_THIS_MACHINE, STUDY, data
from refsam.configuration.compose import compose_sweep
from refsam.configuration.schema import Kind
from refsam.datasets.listing import list_pairs
from refsam.datasets.pairs import read_pair
from refsam.datasets.trashcan import trashcan_archive, write_trashcan
from refsam.orchestration.planning.checks import check_values, combination_problem


def test_drawn_images_are_read_as_those_of_trashcan_and_objects_are_whole(tmp_path: Path) -> None:
    for name, paint in (("plain", plain), ("underwater", underwater)):
        write_data(tmp_path / name, paint, {"train": 2, "val": 1}, seed=0)
        made = tmp_path / f"made_{name}"
        made.mkdir()
        with trashcan_archive(str(tmp_path / name)) as source:
            write_trashcan(source, made, lambda line: None)
        (config,) = compose_sweep([*ON_THIS_MACHINE, *MODEL, *data(name), *FIRST_TRAINING])
        dataset = replace(config.dataset, root=str(made))
        pairs = list_pairs(dataset)
        assert [pair.name for pair in pairs] == ["train/train_000", "train/train_001", "val/val_000"]
        for pair in pairs:
            image, labels = read_pair(pair, dataset)
            assert (image.shape, labels.shape) == ((*SHAPE, 3), SHAPE)
            assert labels.max() >= 2
            assert all(label(labels == number)[1] == 1 for number in range(1, labels.max() + 1))


def test_the_runs_are_those_of_the_study(tmp_path: Path) -> None:
    runs = list(compose_sweep([*data("underwater"), *STUDY, "seed=0,1"], "peft_trashcan_small"))
    finetuned = [config for config in runs if config.kind is Kind.finetuning]
    assert [(config.peft.name, config.seed) for config in finetuned] == [
        (strategy, seed) for strategy in ("hf_lora", "dora", "hf_qlora", "qdora") for seed in (0, 1)
    ]
    for config in finetuned:
        assert (config.train.optimizer, config.train.loss, config.peft.decoder) == (
            *("lion8bit", "dice_focal", "adapt"),
        )
        assert (config.evaluate.metrics, config.dataset.test) == ("qlora_sam", "val/*")
        check_values(config)
        assert combination_problem(config, 64) is None
