"""Files of weights open whatever else they hold, and nothing in them is executed."""

import argparse
import copyreg
import enum
import functools
import importlib
import io
import pickle
import sys
import tarfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from evil_files import FORMATS, Evil, legacy_of, programs, save_zip, zip_of

from refsam.errors import ConfigError
from refsam.science.safe_load import STAND_IN, read_weights

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class Kind(enum.Enum):
    one = 1


class Settings(dict):  # type: ignore[type-arg]
    """A user's own class that is a dict."""


class Trainer:
    """A user's own class with a state."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.losses = [np.float64(0.5), np.ones(3)]


def same(found: object) -> bool:
    assert isinstance(found, dict)
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_file_says_beside_its_weights_is_not_executed(name: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "weights.pt"
    FORMATS[name]({"model_state": WEIGHTS, "evil": Evil(marker)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()  # that is what the file does
    marker.unlink()
    values = read_weights(path)
    assert same(values["model_state"])
    assert values["evil"] is STAND_IN
    assert not marker.exists()


@pytest.mark.parametrize("write", [zip_of, legacy_of])
@pytest.mark.parametrize("name", programs(Path()))
def test_no_instruction_of_a_pickle_executes_anything(
    name: str, write: Callable[[bytes, Path], None], tmp_path: Path, marker: Path
) -> None:
    path = tmp_path / "weights.pt"
    write(programs(marker)[name], path)
    with pytest.raises(ConfigError, match="weights"):
        read_weights(path)
    assert not marker.exists()


def test_a_registered_extension_is_not_called(tmp_path: Path, marker: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        command = f"touch {marker}".encode()
        program = b"\x80\x02\x82\xf0X" + len(command).to_bytes(4, "little") + command + b"\x85R."
        pickle.loads(program)
        assert marker.exists()
        marker.unlink()
        zip_of(program, tmp_path / "weights.pt")
        with pytest.raises(ConfigError):
            read_weights(tmp_path / "weights.pt")
        assert not marker.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_a_file_sets_no_attribute_of_what_it_may_call(tmp_path: Path) -> None:
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00agentK\x01s\x86b."
    zip_of(program.replace(b"agent", b"owned"), tmp_path / "weights.pt")
    with pytest.raises(ConfigError):
        read_weights(tmp_path / "weights.pt")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "owned")


def test_the_module_of_a_class_is_not_imported(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_a_stranger.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Thing: pass\n"
    )
    save_zip(
        {"model_state": WEIGHTS, "thing": importlib.import_module("of_a_stranger").Thing()}, tmp_path / "a.pt"
    )
    marker.unlink()
    del sys.modules["of_a_stranger"]
    assert same(read_weights(tmp_path / "a.pt")["model_state"])
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_checkpoint_of_a_trainer_opens_with_a_user_s_own_classes(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "checkpoint.pt"
    recursive: list[object] = []
    recursive.append((recursive,))
    content = {
        "model_state": OrderedDict(WEIGHTS),
        "parameters": torch.nn.ParameterDict(WEIGHTS).state_dict(),
        "epoch": 3,
        "values": [None, True, -1, 2**70, 0.5, "text", b"bytes", (1, 2), {3}, frozenset({4}), 1j],
        "of torch": [torch.Size([1, 2]), torch.float16, torch.device("cpu")],
        "others": [
            Trainer(),
            Settings(a=1),
            Kind.one,
            argparse.Namespace(lr=1),
            functools.partial(print, "x"),
            np.float64(1),
            np.arange(3),
            tmp_path,
            Counter("aab"),
            torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]),
            recursive,
        ],
        "defaults": defaultdict(list, a=1),
    }
    save_zip(content, path, protocol)
    values = read_weights(path)
    assert same(values["model_state"])
    assert same(values["parameters"])
    assert values["epoch"] == 3
    assert values["values"] == content["values"]
    assert values["of torch"] == content["of torch"]
    assert values["others"][:2] == [STAND_IN, STAND_IN]
    assert values["defaults"] == {"a": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_an_old_file_that_holds_a_whole_model_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    FORMATS[name](torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt holds a _StandIn instead of a dict"):
        read_weights(tmp_path / "model.pt")


def test_torchscript_and_archives_of_the_first_format_are_refused(tmp_path: Path, marker: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Evil(marker), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    for name in ("script.pt", "old.pt"):
        with pytest.raises(ConfigError, match="cannot be read as weights"):
            read_weights(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 and no more", pickle.dumps([1])])
def test_a_file_that_holds_no_weights_is_refused_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_weights(tmp_path / "a.pt")
    assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "b.pt")
