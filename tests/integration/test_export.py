"""What refsam export writes, opened by the programs that it is for; and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import TINY, small_config
from transformers import SamConfig, SamVisionConfig

from refsam.cli import main
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.hugging_face import published_shape
from refsam.science.models import SAM_CONFIG, build_unetr, load_model, segmentation_decoder, trainable_sam
from refsam.science.strategies.adapter_files import write_adapter
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.opening import finished_model
from refsam.science.strategies.state import CheckpointPolicy
from refsam.science.training.checkpoints import write_best


def as_trained(config: RefsamConfig, root: Path) -> RunPaths:
    """What a training leaves, without one: everything that is trained has moved a little."""
    paths = RunPaths(root)
    paths.checkpoints.mkdir(parents=True)
    freeze(paths.config, config)
    model = trainable_sam(apply_strategy(load_model(config.model, config.seed, "cpu").sam, config.peft))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    keeping = CheckpointPolicy(config.peft, adapter_only=config.train.save == "adapter")
    shape = getattr(model.sam, "config", None)
    init = {} if shape is None else {SAM_CONFIG: shape.to_dict()}
    write_best(paths, {**keeping.best(model), "init": init})
    if keeping.has_adapter:
        write_adapter(model.sam, config.peft, paths.adapter)
    return paths


def add_decoder(config: RefsamConfig, paths: RunPaths, one_object: bool = False) -> None:
    """A decoder of automatic segmentation beside the weights in best.pt."""
    values = torch.load(paths.best, weights_only=True)
    unetr = build_unetr(load_model(config.model, config.seed, "cpu").sam, config.model, None, 1, "cpu")
    state = {key: value for key, value in unetr.state_dict().items() if not key.startswith("encoder.")}
    if one_object:  # foreground everywhere, and no distance from its center and boundary
        state["out_conv.weight"] = torch.zeros_like(state["out_conv.weight"])
        state["out_conv.bias"] = torch.tensor([10.0, -10.0, -10.0])
    write_best(paths, {**values, "decoder_state": state})


def exported(paths: RunPaths, target: str, capsys: pytest.CaptureFixture[str]) -> Path:
    return loaded(paths, target, capsys)[0]


def loaded(paths: RunPaths, target: str, capsys: pytest.CaptureFixture[str]) -> tuple[Path, dict[str, Any]]:
    """What was written, and the names that the two printed lines of Python give."""
    capsys.readouterr()
    assert main(["export", paths.run_id, "--to", target, "--runs", str(paths.root.parent)]) == 0
    said = capsys.readouterr()
    path, heading, *lines = said.out.splitlines()
    assert (heading, len(lines), said.err) == ("In Python:", 2, "")
    names: dict[str, Any] = {}
    exec("\n".join(line.removeprefix("    ") for line in lines), names)
    return Path(path), names


@pytest.mark.parametrize("saved", ["all", "adapter"])
def test_micro_sam_opens_vit_t_with_an_adapter_that_it_does_not_know(
    saved: str, synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By get_sam_model, as the annotator does it."""
    model = ("model=vit_t", "model.weights=random")
    config = small_config(synthetic, "peft=dora", "peft.rank=2", f"train.save={saved}", model=model)
    paths = as_trained(config, tmp_path / "a-run")
    predictor = loaded(paths, "micro_sam", capsys)[1]["predictor"]
    predictor.model.cpu().eval()
    expected = finished_model(config, paths, "cpu").sam
    image = torch.rand((1, 3, 1024, 1024), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = predictor.model.image_encoder(image)
        torch.testing.assert_close(given, expected.eval().image_encoder(image), rtol=0, atol=1e-4)
        initial = load_model(config.model, config.seed, "cpu").sam.image_encoder(image)
    assert not torch.allclose(given, initial, atol=1e-2)
    merged = loaded(paths, "merged", capsys)[1]["sam"]
    with torch.no_grad():
        torch.testing.assert_close(merged.eval().image_encoder(image), given, rtol=0, atol=1e-4)


@torch.no_grad()  # the graph of a decoder takes 12 GB
def test_the_lines_for_micro_sam_load_the_decoder_where_there_is_one(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(synthetic, "peft=full", model=("model=vit_t", "model.weights=random"))
    paths = as_trained(config, tmp_path / "a-run")
    add_decoder(config, paths)
    names = loaded(paths, "micro_sam", capsys)[1]
    features = torch.rand((1, 256, 64, 64), generator=torch.Generator().manual_seed(1))
    given = names["decoder"].cpu()(features, (1024, 1024), (64, 64))
    state = torch.load(paths.best, weights_only=True)["decoder_state"]
    expected = segmentation_decoder(names["predictor"].model.cpu(), config.model, state, "cpu")
    assert expected is not None
    torch.testing.assert_close(given, expected(features, (1024, 1024), (64, 64)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", ["vit_b", "sam_vit_base"])
def test_micro_sam_opens_what_cannot_be_merged_with_its_own_arguments(
    model: str, synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(synthetic, "peft=adaptformer", model=(f"model={model}", "model.weights=random"))
    paths = as_trained(config, tmp_path / "a-run")
    predictor = loaded(paths, "micro_sam", capsys)[1]["predictor"]
    state = predictor.model.state_dict()
    kept = torch.load(paths.best, weights_only=True)["model_state"]
    trained = {name.removeprefix("sam."): value for name, value in kept.items()}
    adapted = {name: value for name, value in trained.items() if "down_proj" in name}
    assert len(adapted) == 2 * 12
    for name, value in adapted.items():
        assert torch.equal(state[name.replace("image_encoder.layers", "image_encoder.blocks")].cpu(), value)


def test_the_folder_for_transformers_has_what_prepares_images(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(synthetic, "peft=dora", "peft.rank=2", model=("model=hf_tiny", *TINY[1:]))
    _, names = loaded(as_trained(config, tmp_path / "a-run"), "hf", capsys)
    processor, model = names["processor"], names["model"]
    image = np.zeros((40, 60, 3), np.uint8)
    prepared = processor(image, input_boxes=[[[5.0, 5.0, 20.0, 20.0]]], return_tensors="pt")
    assert prepared["pixel_values"].shape == (1, 3, 64, 64)
    assert model(**prepared).pred_masks.shape[-2:] == (32, 32)


def test_any_model_of_the_hub_goes_to_segment_anything_if_its_shape_does() -> None:
    def shape(**values: object) -> str | None:
        return published_shape(SamConfig(vision_config=SamVisionConfig(**values)))

    assert shape() == "vit_b"
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_dim": 4096}
    assert shape(**large, global_attn_indexes=[5, 11, 17, 23]) == "vit_l"
    assert shape(**large) is None  # windows in other blocks
    assert shape(num_attention_heads=8) is None
    assert shape(hidden_size=168, mlp_dim=696) is None  # slimsam_77


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        (("peft=dora", "peft.rank=2"), "hf, adapter, in Python refsam.load"),
        (("peft=full",), "hf, in Python refsam.load"),
        (("peft=adaptformer", "peft.projection=2"), "in Python refsam.load"),
    ],
)
@pytest.mark.parametrize("model", ["hf_tiny", "vit_nano"])
def test_a_shape_of_its_own_is_refused_by_the_name_of_the_format_with_what_is_possible(
    overrides: tuple[str, ...],
    allowed: str,
    model: str,
    synthetic: DatasetConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = small_config(synthetic, *overrides, model=(f"model={model}", *TINY[1:]))
    paths = as_trained(config, tmp_path / "a-run")
    for target in ("micro_sam", "merged"):
        if target == "merged" and "adaptformer" in overrides[0]:
            continue  # refused for what it adds, before its shape matters
        assert main(["export", "a-run", "--to", target, "--runs", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert f"--to {target}: model={model} has a shape that segment_anything and micro-sam do not" in said
        assert said.endswith(f"allowed: {allowed}\n")
        assert said.count("\n") == 1
        assert not list(paths.exports.glob("*"))


def test_an_export_that_cannot_be_written_is_one_sentence_and_leaves_nothing(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_trained(small_config(synthetic, "peft=dora", "peft.rank=2"), tmp_path / "a-run")
    (tmp_path / "file").touch()
    for target in ("hf", "adapter"):
        command = ["export", "a-run", "--to", target, "--runs", str(tmp_path), "--output"]
        assert main([*command, str(tmp_path / "file" / "model")]) == 2
        said = capsys.readouterr().err
        assert f"--output: {tmp_path / 'file' / 'model'} cannot be written" in said
        assert said.count("\n") == 1


def test_what_a_killed_export_has_left_is_in_nobodys_way(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = as_trained(small_config(synthetic, "peft=dora", "peft.rank=2"), tmp_path / "a-run")
    for target in ("hf", "adapter"):
        unfinished = paths.exports / f"a-run-{target}.unfinished"
        unfinished.mkdir(parents=True)
        (unfinished / "half").touch()
        folder = exported(paths, target, capsys)
        assert not unfinished.exists()
        assert not (folder / "half").exists()


def test_a_damaged_best_is_one_sentence(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(synthetic, "peft=full")
    paths = as_trained(config, tmp_path / "a-run")
    os.truncate(paths.best, paths.best.stat().st_size // 2)
    assert main(["export", "a-run", "--to", "hf", "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "best.pt of run a-run is damaged" in said
    assert said.count("\n") == 1


def test_the_command_says_nothing_but_the_path_and_the_lines(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    """In a process of its own, in which PyTorch and the others are imported for the first time."""
    paths = as_trained(small_config(synthetic, "peft=full"), tmp_path / "a-run")
    command = [sys.executable, "-m", "refsam.cli", "export", "a-run", "--to", "hf", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[:2] == [str(paths.exports / "a-run-hf"), "In Python:"]


DETAILS = ("--author", "Ada Lovelace", "--author", "Grace Hopper", "--license", "MIT")


@pytest.mark.parametrize("decoder", [False, True])
def test_a_package_of_the_model_zoo_passes_its_own_test(
    decoder: bool, synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import zipfile

    from bioimageio.core import load_model_description
    from bioimageio.core import test_model as check

    model = ("model=vit_t", "model.weights=random")
    config = small_config(synthetic, "peft=full", model=model)
    paths = as_trained(config, tmp_path / "a-run")
    if decoder:
        add_decoder(config, paths, one_object=True)  # else many, for minutes
    package = tmp_path / "zoo.zip"
    words = ["export", paths.run_id, "--to", "bioimageio", "--output", str(package), *DETAILS]
    assert main([*words, "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[0] == str(package)
    summary = check(package, devices=["cpu"])
    assert summary.status == "passed", summary.format()
    found = load_model_description(package)
    assert [author.name for author in found.authors] == ["Ada Lovelace", "Grace Hopper"]
    assert found.license == "MIT"
    assert any("Segment Anything for Microscopy" in entry.text for entry in found.cite)
    assert "config.yaml" in zipfile.ZipFile(package).namelist()


def test_a_package_of_the_model_zoo_needs_authors_and_a_license(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = as_trained(small_config(synthetic, "peft=full"), tmp_path / "a-run")
    words = ["export", paths.run_id, "--to", "bioimageio", "--runs", str(tmp_path)]
    for given, said in (
        ([], "--to bioimageio needs --author, and without a terminal it cannot be asked for"),
        (["--author", "A B"], "--to bioimageio needs --license"),
        (
            DETAILS,
            "--to bioimageio: model=vit_nano has a shape that segment_anything and micro-sam do not build",
        ),
    ):
        assert main([*words, *given]) == 2
        assert capsys.readouterr().err.startswith(f"refsam: {said}")
