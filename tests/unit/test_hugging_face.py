"""Models of family hf: from random weights, folders, the hub's cache and runs; refused where needed."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tifffile
import torch
from micro_sam.inference import batched_inference
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import SamModel, SamVisionConfig, SamVisionModel

from refsam.configuration.pinned import revision
from refsam.configuration.schema import ModelConfig, PeftConfig
from refsam.errors import ConfigError
from refsam.models import hub_cache
from refsam.models.families import attention_problem, model_problem
from refsam.models.hub_download import download, wanted
from refsam.models.linear_layers import linear_layers
from refsam.models.strategies import strategy_problem
from refsam.orchestration.planning import checkpoint_room
from refsam.science.hugging_face import HuggingFaceSam, state_for_transformers
from refsam.science.models import initial_predictor, load_model, load_whole, weights_info
from refsam.science.state_names import POSITIONS, POSITIONS_AGAIN, to_segment_anything, to_transformers

CONF = Path(__file__).parents[2] / "conf"
MODELS = ("sam_vit_base", "sam_vit_large", "sam_vit_huge", "slimsam_50", "slimsam_77", "medsam")


def model_config(name: str, **values: object) -> ModelConfig:
    given = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), given, values))
    assert isinstance(config, ModelConfig)
    return config


@pytest.fixture(scope="module")
def tiny() -> ModelConfig:
    return model_config("hf_tiny")


@pytest.fixture(scope="module")
def folder(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf_tiny with the random weights of seed 3, as save_pretrained writes a model."""
    sam = load_model(tiny, 3, "cpu").sam
    assert isinstance(sam, HuggingFaceSam)
    model = SamModel(sam.config)
    model.load_state_dict(state_for_transformers(sam.state_dict()))
    path = tmp_path_factory.mktemp("models") / "saved"
    model.save_pretrained(path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(hub: Path, hub_id: str, folder: Path, commit: str | None = None) -> None:
    """As the hub's library lays a downloaded model down; without a commit the one that is pinned, or any."""
    commit = commit or revision(hub_id) or "c0ffee"
    root = hub / f"models--{hub_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots").mkdir()
    (root / "snapshots" / commit).symlink_to(folder, target_is_directory=True)


def states_equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_tiny_model_has_the_weights_of_vit_nano_with_the_same_seed(tiny: ModelConfig) -> None:
    ours = load_model(tiny, 5, "cpu").sam
    nano = load_model(model_config("vit_nano"), 5, "cpu").sam.state_dict()
    renamed = to_segment_anything(ours.state_dict())
    assert renamed.keys() == nano.keys()
    assert all(torch.equal(renamed[name], nano[name]) for name in nano)


def test_names_go_to_transformers_and_back(tiny: ModelConfig) -> None:
    nano = load_model(model_config("vit_nano"), 0, "cpu").sam.state_dict()
    assert list(to_segment_anything(to_transformers(nano))) == list(nano)
    ours = load_model(tiny, 0, "cpu").sam
    assert isinstance(ours, HuggingFaceSam)
    assert to_transformers(nano).keys() == SamModel(ours.config).state_dict().keys()


def test_names_of_adapters_are_renamed_with_what_they_are_added_to() -> None:
    name = "vision_encoder.layers.11.attn.qkv.lora_A.default.weight"
    value = torch.zeros(1)
    assert list(to_segment_anything({name: value})) == [
        "image_encoder.blocks.11.attn.qkv.lora_A.default.weight"
    ]
    assert list(to_transformers(to_segment_anything({name: value}))) == [name]


def test_a_folder_of_save_pretrained_is_opened(tiny: ModelConfig, folder: Path) -> None:
    model = replace(tiny, weights=str(folder), custom=None)
    loaded = load_model(model, 0, "cpu")
    assert states_equal(loaded.sam, load_model(tiny, 3, "cpu").sam)
    assert loaded.weights.source == "saved"
    assert loaded.weights.hash == hub_cache.folder_hash(folder)


def test_the_hash_of_a_folder_is_of_its_weights_and_not_of_its_place(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert hub_cache.folder_hash(moved) == hub_cache.folder_hash(folder)
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert hub_cache.folder_hash(moved) != hub_cache.folder_hash(folder)


def test_pretrained_is_what_the_cache_has(hub: Path, folder: Path) -> None:
    model = model_config("hf", hub_id="somebody/some-sam")
    put_into_cache(hub, "somebody/some-sam", folder)
    loaded = load_model(model, 0, "cpu")
    assert states_equal(loaded.sam, load_model(model_config("hf_tiny"), 3, "cpu").sam)
    assert loaded.weights.source == "pretrained somebody/some-sam"
    assert loaded.weights.hash == "c0ffee"


def test_transformers_gives_the_masks_that_ours_gives(folder: Path, tiny: ModelConfig) -> None:
    """Called by either's own means, on an image of the encoder's size, from a box."""
    ours = load_model(tiny, 3, "cpu").sam
    theirs = SamModel.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand((3, 256, 256), generator=generator)
    box = torch.tensor([[40.0, 60.0, 200.0, 180.0]])
    pixels = ours.preprocess(image)[None]
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_boxes=box[None], multimask_output=False).pred_masks
        # Of four pixels of the prompts' frame, transformers moves the corners by half a pixel of its own.
        frame = box * 4 + 1.5
        found = ours([{"image": image, "original_size": (256, 256), "boxes": frame}], False)[0]
    torch.testing.assert_close(found["low_res_logits"], expected[0], rtol=1e-4, atol=1e-5)


def test_micro_sam_segments_with_it(tiny: ModelConfig) -> None:
    predictor, decoder, weights = initial_predictor(tiny, 0, "cpu")
    assert decoder is None
    assert weights == weights_info(tiny, 0)
    image = np.random.default_rng(0).integers(0, 255, (96, 128), dtype=np.uint8)
    boxes = np.array([[10, 10, 60, 60], [50, 20, 90, 90]])
    masks = batched_inference(
        predictor,
        image,
        batch_size=1,
        boxes=boxes,
        return_instance_segmentation=False,
        verbose_embeddings=False,
    )
    assert [mask["segmentation"].shape for mask in masks] == [(96, 128)] * 2


def test_a_checkpoint_of_a_run_knows_its_own_shape(tiny: ModelConfig, tmp_path: Path, hub: Path) -> None:
    """It opens without the hub's cache, whatever the configuration says about where it came from."""
    sam = load_model(tiny, 4, "cpu").sam
    assert isinstance(sam, HuggingFaceSam)
    state = {f"sam.{name}": value for name, value in sam.state_dict().items()}
    path = tmp_path / "best.pt"
    torch.save({"model_state": state, "init": {"sam_config": sam.config.to_dict()}}, path)
    model = model_config("slimsam_77")
    opened, decoder = load_whole(path, model, "cpu")
    assert states_equal(opened, sam)
    assert decoder is None
    assert states_equal(load_model(replace(model, weights=str(path)), 0, "cpu").sam, sam)


def test_frequencies_are_not_trained(tiny: ModelConfig) -> None:
    sam = load_model(tiny, 0, "cpu").sam
    assert not any("positional" in name for name, _ in sam.named_parameters())
    assert state_for_transformers(sam.state_dict()).keys() == SamModel(sam.config).state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_cached_is_one_sentence(name: str, hub: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"is not in the Hugging Face hub's cache.*refsam prepare model={name}"
    ):
        load_model(model_config(name), 0, "cpu")


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_without_weights_does_not_count(name: str, hub: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text("{}")
    hub_id = str(model_config(name).hub_id)
    put_into_cache(hub, hub_id, half)
    assert hub_cache.snapshot(hub_id) is None
    (half / "model.safetensors").touch()
    assert hub_cache.snapshot(hub_id) is not None


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "has no config.json that can be read"),
        ({"config.json": "{"}, "has no config.json that can be read"),
        ({"config.json": '{"model_type": "bert"}'}, "holds a model of type bert; expected sam"),
        ({"config.json": '{"model_type": "sam"}'}, "holds no weights"),
    ],
)
def test_other_folders_are_refused(files: dict[str, str], sentence: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        weights_info(model_config("hf", weights=str(tmp_path)), 0)


def test_damaged_weights_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be opened as a SamModel"):
        load_model(model_config("hf", weights=str(tmp_path)), 0, "cpu")


def test_weights_are_computed_with_in_float32(folder: Path, tmp_path: Path, tiny: ModelConfig) -> None:
    SamModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    sam = load_model(replace(tiny, weights=str(tmp_path / "half"), custom=None), 0, "cpu").sam
    assert {value.dtype for value in sam.state_dict().values()} == {torch.float32}


def test_weights_that_lack_a_part_are_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["mask_decoder.iou_token.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(
        ConfigError, match=r"lacks 1 of the weights .* such as mask_decoder\.iou_token\.weight"
    ):
        load_model(model_config("hf", weights=str(tmp_path)), 0, "cpu")


@pytest.mark.parametrize("kept", ["prompt_encoder.shared_embedding", "shared_image_embedding"])
def test_the_frequencies_are_kept_once_or_twice(
    kept: str, folder: Path, tmp_path: Path, tiny: ModelConfig
) -> None:
    state = load_file(folder / "model.safetensors")
    values = [state.pop(name) for name in (POSITIONS, POSITIONS_AGAIN) if name in state]
    save_file(
        {**state, f"{kept}.positional_embedding": values[0]},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    sam = load_model(model_config("hf", weights=str(tmp_path)), 0, "cpu").sam
    assert states_equal(sam, load_model(tiny, 3, "cpu").sam)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for state, sentence in (
        ({}, "holds no image encoder of Segment Anything"),
        ({"image_encoder.pos_embed": torch.zeros(1)}, "is not a checkpoint of refsam with family hf"),
    ):
        torch.save({"model_state": state}, path)
        with pytest.raises(ConfigError, match=sentence):
            load_model(model_config("hf", weights=str(path)), 0, "cpu")


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("hf", {}, "model.hub_id: nothing was given for model=hf"),
        ("slimsam_77", {"weights": "random"}, "the shape of slimsam_77 is known only with its weights"),
        ("hf_tiny", {"weights": "pretrained"}, "no weights of hf_tiny are published"),
        ("vit_b", {"hub_id": "facebook/sam-vit-base"}, "model=vit_b is not of the Hugging Face hub"),
    ],
)
def test_values_that_do_not_go_together(name: str, values: dict[str, str], sentence: str) -> None:
    assert sentence in str(model_problem(model_config(name, **values)))


@pytest.mark.parametrize("name", [*MODELS, "hf_tiny", "vit_b", "vit_nano"])
def test_shipped_models_are_in_order(name: str) -> None:
    assert model_problem(model_config(name)) is None


def test_each_family_has_its_own_ways_of_attention(tiny: ModelConfig) -> None:
    assert attention_problem(tiny, "sdpa") is None
    assert "allowed: auto, fused, eager" in str(attention_problem(model_config("vit_b"), "sdpa"))


@pytest.mark.parametrize(
    ("present", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["pytorch_model.bin", "README.md"], ["pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            ["model.safetensors.index.json", "model-*.safetensors"],
        ),
    ],
)
def test_one_form_of_the_weights_is_fetched(present: list[str], weights: list[str]) -> None:
    assert wanted(present) == ["config.json", "preprocessor_config.json", *weights]


def test_what_is_fetched_is_what_a_run_finds(
    hub: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(hub_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        put_into_cache(hub, hub_id, folder)
        return str(folder)

    monkeypatch.setattr(
        huggingface_hub, "list_repo_files", lambda hub_id, revision: ["config.json", "model.safetensors"]
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    model = model_config("slimsam_77")
    assert download(model) == folder
    assert asked == [(model.hub_id, ["config.json", "preprocessor_config.json", "model.safetensors"])]
    assert load_model(model, 0, "cpu").weights.source == "pretrained Zigeng/SlimSAM-uniform-77"


def test_a_pinned_model_is_fetched_and_found_in_its_commit_alone(
    hub: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = model_config("sam_vit_base"), []
    put_into_cache(hub, str(model.hub_id), folder, commit="c0ffee")
    assert hub_cache.snapshot(str(model.hub_id)) is None
    pinned = revision(str(model.hub_id))
    assert pinned is not None

    def fetched(hub_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        snapshots = hub / "models--facebook--sam-vit-base" / "snapshots"
        (snapshots / "c0ffee").rename(snapshots / str(revision))
        return str(snapshots / str(revision))

    def listed(hub_id: str, revision: str | None) -> list[str]:
        asked.append(revision)
        return []

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", listed)
    assert download(model).name == pinned
    assert asked == [pinned, pinned]
    assert load_model(model, 0, "cpu").weights.hash == pinned


def test_a_file_of_another_hash_than_the_hub_has_named_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "commit").mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (tmp_path / "commit" / path.name).symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "commit"))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: [])
    assert download(model_config("slimsam_77")) == tmp_path / "commit"
    weights = tmp_path / "commit" / "model.safetensors"
    weights.resolve().write_bytes(b"damaged")
    refused = r"model\.safetensors must have the hash [0-9a-f]{64}, got [0-9a-f]{64}"
    with pytest.raises(ConfigError, match=refused):
        download(model_config("slimsam_77"))


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(hub_id: str, revision: str | None) -> list[str]:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    with pytest.raises(
        ConfigError, match=r"could not be fetched .*ConnectionError: no route\); on a machine"
    ) as error:
        download(model_config("slimsam_77"))
    assert "\n" not in str(error.value)


def test_the_plan_looks_for_a_model_without_torch(tmp_path: Path) -> None:
    """In a process of its own: a sweep over models that are not here says how to get each of them."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for index in range(3):
            pixels = np.zeros((64, 64), np.uint8)
            pixels[8:40, 8:40] = index + 1
            tifffile.imwrite(tmp_path / kind / f"{index}.tif", pixels)
    overrides = [
        *("dataset=folder", f"dataset.root={tmp_path}", "dataset.train_pool=1", "n_images=1", "peft=full"),
        *("n_objects=2", f"runs={tmp_path}/runs", "dry_run=true", "model=sam_vit_base,slimsam_77"),
    ]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "refsam.sweep", "-m", *overrides],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "refsam prepare model=sam_vit_base" in done.stdout
    assert "Zigeng/SlimSAM-uniform-77 is not in the Hugging Face hub's cache" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "huggingface_hub" in imported
    assert not imported & {"torch", "transformers", "pycocotools"}


def test_the_plan_knows_the_linear_layers(tiny: ModelConfig) -> None:
    sam = load_model(tiny, 0, "cpu").sam
    there = {
        name: (layer.in_features, layer.out_features)
        for name, layer in sam.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and (name.startswith("image_encoder") or re.fullmatch(r"mask_decoder\.transformer\..*_proj", name))
    }
    assert linear_layers(tiny) == there


@pytest.mark.parametrize(("name", "shape"), [("slimsam_50", (384, 1536)), ("slimsam_77", (168, 696))])
def test_the_plan_knows_the_linear_layers_of_slimsam(name: str, shape: tuple[int, int]) -> None:
    """With the two sizes of the configurations on the hub; everything else is transformers' default."""
    channels, hidden = shape
    with torch.device("meta"):
        encoder = SamVisionModel(SamVisionConfig(hidden_size=channels, mlp_dim=hidden)).vision_encoder
    there = {
        f"image_encoder.{name}": (layer.in_features, layer.out_features)
        for name, layer in encoder.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    known = linear_layers(model_config(name))
    assert known is not None
    assert {key: size for key, size in known.items() if key.startswith("image_encoder")} == there
    assert checkpoint_room.ENCODERS[name] == sum(value.numel() for value in encoder.parameters())


def test_the_plan_reads_the_linear_layers_of_any_model_on_this_disk(
    tiny: ModelConfig, folder: Path, hub: Path, tmp_path: Path
) -> None:
    in_cache, in_folder = (
        model_config("hf", hub_id="somebody/some-sam"),
        model_config("hf", weights=str(folder)),
    )
    assert linear_layers(in_cache) is None
    put_into_cache(hub, "somebody/some-sam", folder)
    assert linear_layers(in_cache) == linear_layers(in_folder) == linear_layers(tiny)
    peft = PeftConfig(name="hf_lora", rank=97, targets=[r".*\.attn\.qkv"])
    assert "peft.rank=97 is larger than the layer" in str(strategy_problem(in_folder, peft))
    peft = PeftConfig(name="hf_lora", rank=2, targets=["nothing"])
    assert "nothing matches no linear layer; there are:" in str(strategy_problem(in_cache, peft))
    (tmp_path / "config.json").write_text('{"model_type": "sam", "vision_config": {"mlp_dim": null}}')
    assert linear_layers(model_config("hf", weights=str(tmp_path))) == linear_layers(
        model_config("sam_vit_base")
    )
    for text in ("{", "{}", "[]", '{"vision_config": 7}', '{"vision_config": {"hidden_size": "wide"}}'):
        (tmp_path / "config.json").write_text(text)
        assert linear_layers(model_config("hf", weights=str(tmp_path))) is None


def test_a_rank_larger_than_a_layer_is_refused_before_anything_is_submitted() -> None:
    peft = PeftConfig(name="hf_lora", rank=200, targets=[r".*\.attn\.qkv"])
    problem = str(strategy_problem(model_config("slimsam_77"), peft))
    assert "peft.rank=200 is larger than the layer image_encoder.layers.0.attn.qkv" in problem
    assert strategy_problem(model_config("sam_vit_base"), peft) is None
