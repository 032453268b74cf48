"""What the plan sees of a file given as model.weights, without torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from weights_files import CHECKPOINT, ENCODER, UNUSABLE, safetensors, torch_zip, write

from refsam.configuration.compose import compose
from refsam.configuration.schema import ModelConfig
from refsam.models.weights_file import architecture_problem, weights_problem
from refsam.orchestration.planning.fetched import weights_not_fetched


def model(name: str, path: Path) -> ModelConfig:
    return compose([f"model={name}", f"model.weights={path}"]).model


def blocks(depth: int, form: str = "image_encoder.blocks.{}.attn.qkv.weight") -> dict[str, int]:
    return {form.format(number): 0 for number in range(depth)}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_is_no_checkpoint_is_named(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path)
    sentence = weights_problem(path)
    assert sentence is not None
    assert sentence.startswith(f"model.weights: {path} {UNUSABLE[kind][1]}")
    assert sentence.endswith(
        "; expected a checkpoint of Segment Anything, as torch.save or safetensors writes it"
    )
    assert weights_not_fetched(model("vit_b", path)) == sentence


def test_what_may_be_a_checkpoint_passes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content in (CHECKPOINT, ENCODER, torch_zip({"module.sam.image_encoder.pos_embed": 0})):
        path.write_bytes(content)
        assert weights_problem(path) is None
        assert architecture_problem(path, model("vit_b", path)) is None


def test_a_folder_or_nothing_is_no_file(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder; expected" in str(weights_not_fetched(model("vit_b", tmp_path)))
    assert "is not a file" in str(weights_not_fetched(model("vit_b", tmp_path / "none.pt")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("held", "names"),
    [
        ("vit_b", blocks(12)),
        ("vit_l", blocks(24)),
        ("vit_h", blocks(32)),
        ("a ViT with 4 blocks", blocks(4)),
        ("vit_t", blocks(4, "image_encoder.layers.{}.blocks.0.attn.qkv.weight")),
        ("a SamModel of transformers with 12 layers", blocks(12, "vision_encoder.layers.{}.attn.qkv.weight")),
    ],
)
def test_a_file_of_another_architecture_is_named(held: str, names: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content in (torch_zip({"model_state": names}), safetensors(tuple(names))):
        path.write_bytes(content)
        assert weights_problem(path) is None
        for name in ("vit_t", "vit_b", "vit_l", "vit_h"):
            sentence = f"model.weights: {path} looks like {held}, and model={name} needs {name}"
            assert architecture_problem(path, model(name, path)) == (None if name == held else sentence)
        of_hub = str(architecture_problem(path, model("hf", path)))
        assert ("does not say the shape" if "transformers" in held else "needs a SamModel") in of_hub


def test_an_own_architecture_is_known_by_its_depth(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    nano = model("vit_nano", path)
    assert nano.custom is not None
    path.write_bytes(torch_zip(blocks(nano.custom.depth)))
    assert architecture_problem(path, nano) is None
    deeper = replace(nano, custom=replace(nano.custom, depth=nano.custom.depth + 1))
    assert "looks like a ViT with" in str(architecture_problem(path, deeper))


@pytest.mark.slow
def test_a_plan_ends_in_one_sentence_before_anything_is_written(tmp_path: Path, synthetic) -> None:
    arguments = [
        "cluster=local",
        "dataset=synthetic",
        f"dataset.root={synthetic.root}",
        f"runs={tmp_path / 'runs'}",
    ]
    code = (
        "import sys; from refsam.sweep import main\n"
        "for kind in sys.argv[2:]:\n"
        "    try: main(['-m', 'model=vit_nano', f'model.weights={kind}', *sys.argv[1].split()])\n"
        "    except SystemExit as stop: print(stop.code)\n"
        "assert 'torch' not in sys.modules"
    )
    (tmp_path / "files").mkdir()
    files = []
    for number, (content, _) in enumerate(UNUSABLE.values()):
        files.append(tmp_path / "files" / f"{number}.pt")
        files[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(arguments), *map(str, files)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"] * len(UNUSABLE)
    lines = done.stderr.splitlines()
    assert len(lines) == len(UNUSABLE)
    for line, path, (_, said) in zip(lines, files, UNUSABLE.values(), strict=True):
        assert line.startswith(f"refsam: model.weights: {path} {said}")
    assert not (tmp_path / "runs").exists()
