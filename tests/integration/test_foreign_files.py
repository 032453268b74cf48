"""No file that a run, an evaluation or an export reads executes anything, whoever has written it."""

from dataclasses import replace
from pathlib import Path

import micro_sam.util
import numpy as np
import pooch
import pytest
import torch
from evil_files import FORMATS, Evil, save_zip
from training_runs import TINY, small_config

from refsam.cli import main
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.datasets.listing import list_pairs
from refsam.errors import ConfigError
from refsam.models.weights_cache import weights_path
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, read_status
from refsam.science import run
from refsam.science.data import load_pairs, training_loaders
from refsam.science.engine.cache import DiskStore
from refsam.science.hugging_face import from_segment_anything
from refsam.science.models import load_model

OPTIONS = ("evaluate.max_images=1", "evaluate.modes=[box]", "train.epochs=1", "train.max_steps=1")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What an evil file makes."""
    return tmp_path / "executed"


@pytest.fixture
def paths(synthetic: DatasetConfig, tmp_path: Path) -> RunPaths:
    """The directory of a run that was not begun yet."""
    paths = RunPaths(tmp_path / "runs" / "run")
    paths.root.mkdir(parents=True)
    freeze(paths.config, small_config(synthetic, *OPTIONS))
    return paths


def spoil(path: Path, marker: Path) -> None:
    """Add to a checkpoint what executes something."""
    values = torch.load(path, weights_only=True)
    save_zip({"evil": Evil(marker), **values}, path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_starts_from_the_checkpoint_of_a_trainer(
    name: str, paths: RunPaths, synthetic: DatasetConfig, tmp_path: Path, marker: Path
) -> None:
    config = small_config(synthetic, *OPTIONS)
    state = load_model(config.model, 1, "cpu").sam.state_dict()
    content = {
        "model_state": {f"sam.{key}": value for key, value in state.items()},
        # What micro-sam's trainers keep beside the weights.
        "init": {"train_loader": training_loaders(config)[0], "evil": Evil(marker)},
        "optimizer_state": torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).state_dict(),
    }
    FORMATS[name](content, tmp_path / "weights.pt")
    config = replace(config, model=replace(config.model, weights=str(tmp_path / "weights.pt")))
    freeze(paths.config, config)
    run.execute(paths.root)
    assert read_status(paths).state is State.completed
    assert not marker.exists()


def test_a_run_does_not_continue_from_a_checkpoint_that_holds_more_than_values(
    paths: RunPaths, marker: Path
) -> None:
    run.execute(paths.root)
    paths.training.unlink()
    spoil(paths.latest, marker)
    with pytest.raises(ConfigError, match="holds other objects than tensors"):
        run.execute(paths.root)
    assert read_status(paths).reason is Reason.error
    assert not marker.exists()


def test_neither_evaluation_nor_export_executes_a_checkpoint(
    paths: RunPaths, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.execute(paths.root)
    spoil(paths.best, marker)
    paths.metrics.unlink()
    run.execute(paths.root)
    assert read_status(paths).state is State.completed
    command = ["export", paths.run_id, "--runs", str(paths.root.parent), "--to", "hf"]
    assert main(command) == 0, capsys.readouterr().err
    assert not marker.exists()


def test_published_weights_and_their_decoder_execute_nothing(
    synthetic: DatasetConfig, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_config(synthetic, model=("model=vit_t_lm",)).model
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    weights_path(model.name).parent.mkdir()
    state = load_model(replace(model, weights="random"), 1, "cpu").sam.state_dict()
    save_zip(
        {"model_state": {f"sam.{key}": value for key, value in state.items()}, "evil": Evil(marker)},
        weights_path(model.name),
    )
    decoder = {"out_conv.bias": torch.ones(3)}
    save_zip({**decoder, "evil": Evil(marker)}, weights_path(f"{model.name}_decoder"))
    registry = micro_sam.util.models()
    for path in weights_path(model.name).parent.iterdir():
        registry.registry[path.name] = pooch.file_hash(str(path))
    monkeypatch.setattr(micro_sam.util, "models", lambda: registry)
    loaded = load_model(model, 0, "cpu")
    assert all(torch.equal(value, state[key]) for key, value in loaded.sam.state_dict().items())
    assert loaded.decoder_state is not None
    assert torch.equal(loaded.decoder_state["out_conv.bias"], decoder["out_conv.bias"])
    assert not marker.exists()


def test_a_folder_of_transformers_executes_nothing(
    synthetic: DatasetConfig, tmp_path: Path, marker: Path
) -> None:
    """Neither its weights nor code that its configuration names."""
    config: RefsamConfig = small_config(synthetic, *OPTIONS)
    folder = tmp_path / "folder"
    plain = from_segment_anything(load_model(config.model, 1, "cpu").sam)
    plain.config.auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    plain.save_pretrained(folder)
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    (folder / "model.safetensors").unlink()
    save_zip({**plain.state_dict(), "evil": Evil(marker)}, folder / "pytorch_model.bin")
    model = small_config(synthetic, model=("model=hf_tiny", *TINY[1:])).model
    with pytest.raises(ConfigError, match="holds other objects than tensors"):
        load_model(replace(model, weights=str(folder)), 0, "cpu")
    save_zip(plain.state_dict(), folder / "pytorch_model.bin")
    load_model(replace(model, weights=str(folder)), 0, "cpu")
    assert not marker.exists()


def test_an_embedding_that_was_put_into_the_cache_executes_nothing(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DiskStore(tmp_path / "embeddings")
    store.write("key", {"embedding": torch.ones(1)})
    (path,) = (path for path in store.folder.rglob("*") if path.is_file())
    spoil(path, marker)
    assert store.read("key") is None
    assert "is damaged" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".png", ".pkl"])
def test_an_image_that_is_a_pickle_executes_nothing(
    suffix: str, synthetic: DatasetConfig, tmp_path: Path, marker: Path
) -> None:
    pair = list_pairs(synthetic)[0]
    path = tmp_path / f"image{suffix}"
    content = np.array([Evil(marker)], dtype=object)
    with path.open("wb") as file:
        if suffix == ".npz":
            np.savez(file, content)
        elif suffix == ".npy":
            np.save(file, content)
        else:
            content.dump(file)
    with pytest.raises(ConfigError, match="cannot be read as an image"):
        load_pairs(synthetic, [replace(pair, image=path)])
    assert not marker.exists()


def test_a_configuration_executes_nothing(paths: RunPaths, marker: Path) -> None:
    call = f"!!python/object/apply:os.system ['touch {marker}']\n"
    unsealed = paths.config.read_text().partition("\n")[2]  # as before there was a checksum
    paths.config.write_text(unsealed + f"evil: {call}")
    with pytest.raises(ValueError, match="is damaged"):
        run.execute(paths.root)
    assert not marker.exists()
