"""Models: built, loaded, frozen, adapted and opened for prediction."""

import collections
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import micro_sam.util
import numpy as np
import pytest
import torch
from fuzzed_files import Group, cases
from micro_sam.inference import batched_inference
from omegaconf import OmegaConf
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from weights_files import UNUSABLE, write

from refsam.configuration.schema import ArchitectureConfig, ModelConfig, PeftConfig, RefsamConfig
from refsam.errors import ConfigError
from refsam.models.weights_file import architecture_problem
from refsam.records.paths import RunPaths
from refsam.science.micro_sam import util
from refsam.science.models import (
    build_unetr,
    initial_predictor,
    load_model,
    load_whole,
    merge_lora,
    trainable_sam,
    weights_info,
)
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.opening import predictor_and_decoder
from refsam.science.strategies.parts import count_parameters

CONF = Path(__file__).parents[2] / "conf"
LORA = PeftConfig(name="lora", rank=2, update_matrices=["q", "k", "v", "mlp"])


@pytest.fixture(scope="module")
def nano() -> ModelConfig:
    """vit_nano as it is in conf/."""
    given = OmegaConf.load(CONF / "model" / "vit_nano.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), given))
    assert isinstance(config, ModelConfig)
    return config


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """(96, 128) uint8, a bright disc on noise."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :128]
    disc = (rows - 48) ** 2 + (columns - 80) ** 2 < 20**2
    return (generator.integers(0, 60, (96, 128)) + 150 * disc).astype(np.uint8)


def adapted(nano: ModelConfig) -> Sam:
    """vit_nano with LoRA updates that are not zero, as after training."""
    sam = apply_strategy(load_model(nano, 0, "cpu").sam, LORA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "w_b_linear" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sam.eval()


def logits(sam: Sam, image: np.ndarray) -> torch.Tensor:
    """Low-resolution masks for two boxes, (2, 1, h, w), in the frame of the image."""
    predictor = micro_sam.util.SamPredictor(sam)
    predictor.transform = trainable_sam(sam).transform
    predictor.set_image(np.stack([image] * 3, axis=-1))
    boxes = torch.tensor([[60.0, 28.0, 100.0, 68.0], [5.0, 5.0, 30.0, 40.0]])
    boxes = predictor.transform.apply_boxes_torch(boxes, image.shape)
    return predictor.predict_torch(None, None, boxes=boxes, multimask_output=False, return_logits=True)[2]


def test_random_weights_depend_on_the_seed_and_nothing_else(nano: ModelConfig) -> None:
    first = load_model(nano, 0, "cpu").sam.state_dict()
    torch.rand(7)
    again, other = (load_model(nano, seed, "cpu").sam.state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_a_model_leaves_the_generator_as_it_was(nano: ModelConfig) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(nano, 0, "cpu")
    assert torch.equal(torch.rand(1), expected)


def test_lora_merged_into_the_weights_gives_the_same_masks(nano: ModelConfig, image: np.ndarray) -> None:
    sam = adapted(nano)
    plain = load_model(nano, 0, "cpu").sam
    initial = logits(plain, image)
    plain.load_state_dict(merge_lora(sam.state_dict()))
    merged, unmerged = logits(plain, image), logits(sam, image)
    torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5 * unmerged.abs().max().item())
    assert (unmerged - initial).abs().max() > 1e-2 * unmerged.abs().max()


@pytest.mark.parametrize("matrix", ["q", "k", "v"])
def test_each_update_goes_into_its_own_rows(nano: ModelConfig, matrix: str, image: np.ndarray) -> None:
    peft = replace(LORA, update_matrices=[matrix])
    state = apply_strategy(load_model(nano, 0, "cpu").sam, peft).state_dict()
    for name in state:
        if "w_b_linear" in name:
            state[name] = torch.ones_like(state[name])
    merged, base = merge_lora(state), load_model(nano, 0, "cpu").sam.state_dict()
    name = "image_encoder.blocks.0.attn.qkv.weight"
    width = base[name].shape[1]
    changed = (merged[name] != base[name]).any(dim=1).reshape(3, width).any(dim=1)
    assert changed.tolist() == [matrix == other for other in "qkv"]


def test_merging_leaves_a_plain_state_dict_as_it_is(nano: ModelConfig) -> None:
    state = load_model(nano, 0, "cpu").sam.state_dict()
    merged = merge_lora(state)
    assert list(merged) == list(state)
    assert all(torch.equal(merged[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("peft", "trained"),
    [
        (PeftConfig(name="full"), {"image_encoder", "prompt_encoder", "mask_decoder"}),
        (PeftConfig(name="freeze_encoder", freeze=["image_encoder"]), {"prompt_encoder", "mask_decoder"}),
        (replace(LORA, freeze=["prompt_encoder"]), {"image_encoder", "mask_decoder"}),
    ],
    ids=["full", "freeze_encoder", "lora"],
)
def test_a_strategy_trains_its_parts(nano: ModelConfig, peft: PeftConfig, trained: set[str]) -> None:
    sam = apply_strategy(load_model(nano, 0, "cpu").sam, peft)
    assert {name.split(".")[0] for name, value in sam.named_parameters() if value.requires_grad} == trained
    trainable, total = count_parameters(sam.parameters())
    assert (trainable == total) == (peft.name == "full")
    if peft.rank is not None:
        encoder = dict(sam.image_encoder.named_parameters())
        assert all(value.requires_grad == ("w_" in name) for name, value in encoder.items())


def test_a_frozen_part_stays_in_evaluation_mode(nano: ModelConfig) -> None:
    peft = PeftConfig(name="freeze_encoder", freeze=["image_encoder"])
    trainable = trainable_sam(apply_strategy(load_model(nano, 0, "cpu").sam, peft))
    trainable.train()
    assert not any(module.training for module in trainable.sam.image_encoder.modules())
    assert trainable.sam.mask_decoder.training


def test_a_checkpoint_opens_with_the_same_masks(nano: ModelConfig, image: np.ndarray, tmp_path: Path) -> None:
    sam = adapted(nano)
    expected = logits(sam, image)
    state = {f"sam.{name}": value for name, value in merge_lora(sam.state_dict()).items()}
    decoder = {"out_conv.bias": torch.ones(3)}
    torch.save({"model_state": state, "decoder_state": decoder}, tmp_path / "best.pt")
    opened, decoder_state = load_whole(tmp_path / "best.pt", nano, "cpu")
    torch.testing.assert_close(logits(opened, image), expected, rtol=1e-4, atol=1e-4)
    assert list(decoder_state or {}) == ["out_conv.bias"]


def test_a_finished_run_is_opened_with_the_hash_of_its_best_which_is_taken_once(
    nano: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, paths = replace(RefsamConfig(), model=nano), RunPaths(tmp_path)
    paths.checkpoints.mkdir()
    torch.save({"model_state": load_model(nano, 0, "cpu").sam.state_dict()}, paths.best)
    expected = weights_info(replace(nano, weights=str(paths.best)), 0).hash
    taken = []
    monkeypatch.setattr(util, "_compute_hash", lambda path: taken.append(path) or expected)
    predictor, _ = predictor_and_decoder(config, paths, "cpu")
    assert (predictor._hash, taken) == (expected, [paths.best])


class OwnSettings:
    """A class of a user's own script, which micro-sam's trainer keeps in its checkpoints."""

    def __init__(self) -> None:
        self.rank = 4


def renamed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "plain": lambda state: state,
    "ordered": lambda state: collections.OrderedDict(state),
    "parameters": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
    "micro-sam": lambda state: {"model_state": renamed(state, "sam."), "optimizer_state": {"state": {}}},
    "paths": lambda state: {"model_state": renamed(state, "sam."), "init": {"path": Path("/some/where")}},
    "own classes": lambda state: {"model_state": renamed(state, "sam."), "init": {"peft": OwnSettings()}},
    "DistributedDataParallel": lambda state: renamed(state, "module."),
    "DDP in a trainer": lambda state: {"epoch": 3, "model": renamed(state, "module.sam.")},
    "torch.compile": lambda state: {"state_dict": renamed(state, "_orig_mod.")},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "Lightning": lambda state: {
        "state_dict": {**renamed(state, "model.sam."), "loss.weight": torch.ones(2)},
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"lr": 1e-4},
    },
    "a name of one's own": lambda state: {"step": 7, "my_sam": {"weights": state}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_are_read_from_every_layout(
    nano: ModelConfig, tmp_path: Path, layout: str, zipped: bool
) -> None:
    expected = load_model(nano, 5, "cpu").sam.state_dict()
    path = tmp_path / "weights.pt"
    torch.save(LAYOUTS[layout](expected), path, _use_new_zipfile_serialization=zipped)
    assert architecture_problem(path, nano) is None
    loaded = load_model(replace(nano, weights=str(path)), 0, "cpu")
    state = loaded.sam.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert loaded.weights.source == "weights.pt"
    assert (loaded.weights.hash or "").startswith("xxh128:")


def test_updates_of_lora_are_merged_in_every_layout(nano: ModelConfig, tmp_path: Path) -> None:
    sam = adapted(nano)
    merged = merge_lora(sam.state_dict())
    path = tmp_path / "weights.pt"
    for prefix in ("sam.", "module.sam."):
        torch.save({"model_state": renamed(sam.state_dict(), prefix)}, path)
        state = load_model(replace(nano, weights=str(path)), 0, "cpu").sam.state_dict()
        assert all(torch.equal(state[name], value) for name, value in merged.items())


@pytest.mark.parametrize("prefix", ["", "sam."])
def test_safetensors_are_read(nano: ModelConfig, tmp_path: Path, prefix: str) -> None:
    expected = load_model(nano, 5, "cpu").sam.state_dict()
    for name in ("weights.safetensors", "weights.pt"):
        save_file(renamed(expected, prefix), tmp_path / name)
        state = load_model(replace(nano, weights=str(tmp_path / name)), 0, "cpu").sam.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", UNUSABLE)
def test_files_that_are_no_checkpoint_are_one_sentence_in_a_run_too(
    kind: str, nano: ModelConfig, tmp_path: Path
) -> None:
    path = write(kind, tmp_path)
    with pytest.raises(ConfigError) as error:
        load_model(replace(nano, weights=str(path)), 0, "cpu")
    assert str(error.value).startswith(f"model.weights: {path} {UNUSABLE[kind][1]}")


def test_what_does_not_fit_is_named(nano: ModelConfig, tmp_path: Path) -> None:
    state = load_model(nano, 5, "cpu").sam.state_dict()
    path = tmp_path / "weights.pt"
    assert nano.custom is not None
    channels, depth = nano.custom.embed_dim, nano.custom.depth
    held = f"looks like a ViT with {depth} blocks \\({channels} channels\\) and does not fit vit_nano"
    position = state.pop("image_encoder.pos_embed")
    for change, sentence in (
        ({}, r"missing 1 \(image_encoder.pos_embed\)"),
        (
            {"image_encoder.pos_embed": position, "image_encoder.x": position},
            rf"{held}.*unexpected 1 \(image_encoder\.x\)",
        ),
        (
            {"image_encoder.pos_embed": position[:, :2]},
            r"of another shape 1 \(image_encoder\.pos_embed",
        ),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(ConfigError, match=sentence):
            load_model(replace(nano, weights=str(path)), 0, "cpu")
    for content, sentence in (
        ([{"image_encoder.pos_embed": position}], "holds a list instead of a dict of weights"),
        ({"image_encoder.pos_embed": 3}, r"holds a dictionary of image_encoder.pos_embed, and no state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(ConfigError, match=sentence):
            load_model(replace(nano, weights=str(path)), 0, "cpu")


def test_damaged_checkpoints_end_in_a_sentence_or_are_read(nano: ModelConfig, tmp_path: Path) -> None:
    state = load_model(nano, 5, "cpu").sam.state_dict()
    files = {}
    for name, zipped in (("zip.pt", True), ("legacy.pt", False)):
        torch.save({"model_state": state}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        files[name] = (tmp_path / name).read_bytes()
    save_file(state, tmp_path / "weights.safetensors")
    files["weights.safetensors"] = (tmp_path / "weights.safetensors").read_bytes()
    ends: collections.Counter[tuple[str, bool]] = collections.Counter()
    for case in cases(Group(files, Path.read_bytes), random.Random(0), 60):
        path = tmp_path / case.name
        path.write_bytes(case.content)
        try:
            load_model(replace(nano, weights=str(path)), 0, "cpu")
        except ConfigError:
            ends[case.kind, False] += 1
        else:
            ends[case.kind, True] += 1
    assert ends["whole", True] == len(files)
    assert ends["cut", False] > 0 == ends["cut", True]


def test_weights_that_are_not_there_or_another_architecture_are_refused(
    nano: ModelConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        load_model(replace(nano, weights=str(tmp_path / "missing.pt")), 0, "cpu")
    with pytest.raises(ConfigError, match="no published weights"):
        load_model(replace(nano, weights="pretrained"), 0, "cpu")
    torch.save(load_model(nano, 0, "cpu").sam.state_dict(), tmp_path / "nano.pt")
    assert nano.custom is not None
    larger = replace(nano.custom, embed_dim=2 * nano.custom.embed_dim)
    with pytest.raises(ConfigError, match=r"does not fit vit_nano: .* of another shape \d+ \(image_enc"):
        load_model(replace(nano, custom=larger, weights=str(tmp_path / "nano.pt")), 0, "cpu")


def test_prompts_reach_the_model_in_the_same_frame_in_training_and_prediction(nano: ModelConfig) -> None:
    """micro_sam.inference.batched_inference takes prompts to 1024 pixels, whatever the model's size is."""
    predictor, decoder_state, weights = initial_predictor(nano, 0, "cpu")
    assert decoder_state is None
    assert weights.source == "random, seed 0"
    seen = []
    encoder = predictor.model.prompt_encoder
    encoder.register_forward_pre_hook(lambda _, __, named: seen.append(named["boxes"]), with_kwargs=True)
    predictor.set_image(np.zeros((96, 128, 3), dtype=np.uint8))
    box = np.array([[10, 20, 50, 60]])
    batched_inference(predictor, None, 1, boxes=box, return_instance_segmentation=False)
    training = trainable_sam(predictor.model).transform.apply_boxes_torch(torch.from_numpy(box), (96, 128))
    torch.testing.assert_close(seen[0], training, check_dtype=False)
    assert encoder.input_image_size == (1024, 1024)


def test_the_decoder_continues_from_its_state(nano: ModelConfig) -> None:
    sam = load_model(nano, 0, "cpu").sam
    first, second = (build_unetr(sam, nano, None, seed, "cpu") for seed in (0, 1))
    state = {name: value for name, value in first.state_dict().items() if not name.startswith("encoder")}
    name = "out_conv.weight"
    assert not torch.equal(second.state_dict()[name], state[name])
    continued = build_unetr(sam, nano, state, 1, "cpu").state_dict()
    assert all(torch.equal(continued[name], state[name]) for name in state)
    assert first(torch.full((1, 3, 64, 96), 128.0)).shape == (1, 3, 64, 96)


def test_vit_nano_fits_its_schema(nano: ModelConfig) -> None:
    assert isinstance(nano.custom, ArchitectureConfig)
    assert nano.custom.image_size % (nano.custom.patch_size * nano.custom.window_size) == 0
