"""The worked examples of CONTRIBUTING.md work as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from skimage.io import imsave
from steps import Case, assert_same_gradients, model_config, reference, take_step

from refsam import cli
from refsam.configuration.schema import PeftConfig
from refsam.models import strategies
from refsam.science.models import load_model
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.merging import plain_state
from refsam.sweep import main as sweep

# Parts of micro-sam compute in float32, also where the model is in float64 (docs/engine.md).
TOLERANCE = 1e-6
PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
# The first line of an example names its file.
EXAMPLES = dict(re.findall(r"^```(?:yaml|python)\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configurations with those of the page, in an empty working directory."""
    for name, text in EXAMPLES.items():
        if name.startswith("conf/"):
            path = tmp_path / "site" / Path(name).relative_to("conf")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSAM_DATA", str(tmp_path / "data"))
    return tmp_path / "site"


def test_the_resource_is_planned(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["-m", "--config-dir", str(site), "resource=rtx3090", "model=vit_nano", "n_images=1,2"]
    sweep([*asked, "dry_run=true"])
    assert "1 × RTX3090" in capsys.readouterr().out


def test_the_data_set_is_read(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(14):
        labels = torch.zeros(64, 64, dtype=torch.uint8)
        labels[10:30, 10:30], labels[35:60, 5:50] = 1, 2
        image = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8)
        for folder, name, values in (("raw", "", image), ("masks", "_mask", labels)):
            path = site.parent / "data" / "my_cells" / folder / f"{number}{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            imsave(path, values.numpy(), check_contrast=False)
    assert cli.main(["check-data", "--config-dir", str(site), "dataset=my_cells"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "14" in printed
    assert "my_cells" in printed


def test_the_strategy_trains_and_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = eval(f"{{{EXAMPLES['refsam/models/strategies.py']}}}", dict(vars(strategies)))
    for name, strategy in entry.items():
        monkeypatch.setitem(strategies.STRATEGIES, name, strategy)
    given = OmegaConf.create(EXAMPLES["conf/peft/fourierft.yaml"])
    peft = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PeftConfig), given))
    assert isinstance(peft, PeftConfig)
    assert strategies.strategy_problem(model_config("vit_nano"), peft) is None
    plain = load_model(model_config("vit_nano"), 0, "cpu").sam.eval()
    adapted = apply_strategy(load_model(model_config("vit_nano"), 0, "cpu").sam, peft).eval()
    trained = [value for value in adapted.image_encoder.parameters() if value.requires_grad]
    images = torch.rand(1, 3, plain.image_encoder.img_size, plain.image_encoder.img_size)
    with torch.no_grad():
        for value in trained:
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        before, after = plain.image_encoder(images), adapted.image_encoder(images)
        plain.load_state_dict(plain_state(adapted))
        merged = plain.image_encoder(images)
    assert all(value.numel() == 1000 for value in trained)
    assert (after - before).norm() > 0.01 * before.norm()
    torch.testing.assert_close(merged, after, rtol=1e-4, atol=1e-4)


def test_the_memory_optimization_keeps_less_and_changes_no_gradient() -> None:
    namespace: dict[str, Any] = {}
    exec(EXAMPLES["refsam/science/engine/activations.py"], namespace)
    recompute = namespace["recompute_activations"]
    case = Case()
    saving = Case(savings=(lambda sam: recompute(sam.image_encoder),))
    assert_same_gradients(take_step(saving, object_chunk=2), reference(case), TOLERANCE)
    kept = [_kept_bytes(recompute if saves else None) for saves in (False, True)]
    assert kept[1] < kept[0]


def _kept_bytes(change: Any) -> int:
    """Bytes of the tensors that autograd keeps of a forward of vit_nano's encoder, parameters included."""
    encoder = load_model(model_config("vit_nano"), 0, "cpu").sam.image_encoder
    if change is not None:
        change(encoder)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = encoder(torch.rand(1, 3, encoder.img_size, encoder.img_size))
    assert result.requires_grad
    return sum(kept.values())
