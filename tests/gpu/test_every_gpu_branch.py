"""Every line that only a run on a GPU takes is taken on the GPU that is not there."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from gpu_runs import execute, new_run, quick_config
from pretended_gpu import ROOT, gpu
from training_runs import run_training

from refsam.configuration.schema import DatasetConfig
from refsam.science import fit, prediction
from refsam.science.training.recorder import Progress
from refsam.system.files import read_json

SCIENCE = ROOT / "refsam" / "science"
# In conditions and statements of these, a GPU is meant.
ON_GPU, OF_GPU = ("== 'cuda'", ".is_cuda"), ("torch.cuda.", "torch.accelerator.")
Lines = tuple[str, str, int, int]  # file, function, first and last line


def gpu_lines(path: Path) -> set[Lines]:
    """The statements of a file that a GPU alone takes; an error that is raised there is another test's."""
    found: set[Lines] = set()
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.If) and any(mark in ast.unparse(node.test) for mark in ON_GPU):
                found.add((str(path), function.name, *span(node.body[0])))
            elif isinstance(node, ast.Return | ast.Assign | ast.Expr):
                words = ast.unparse(node)
                if any(mark in words for mark in (*ON_GPU, *OF_GPU)):
                    found.add((str(path), function.name, *span(node)))
    return found


def span(node: ast.stmt) -> tuple[int, int]:
    return node.lineno, node.end_lineno or node.lineno


class Taken:
    """Which lines of some functions are executed while it is entered.

    Args:
        functions: files and names.
    """

    def __init__(self, functions: set[tuple[str, str]]) -> None:
        self._functions = functions
        self._wanted: dict[CodeType, bool] = {}
        self.lines: set[tuple[str, int]] = set()

    def __enter__(self) -> "Taken":
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        wanted = self._wanted.get(code)
        if wanted is None:
            wanted = self._wanted[code] = (code.co_filename, code.co_name) in self._functions
        return self._line if wanted else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def test_every_line_for_gpus_is_taken_on_the_gpu(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = set().union(*(gpu_lines(path) for path in SCIENCE.rglob("*.py")))
    assert len(wanted) > 15
    config = quick_config(
        synthetic,
        *("peft=freeze_encoder", "train.patch_pool=1", "train.embedding_cache=disk"),
        "train.n_sub_iterations=1",
    )
    run = new_run(config, tmp_path / "run")
    command = ["fit", str(run.config), str(tmp_path / "fit.json"), "--gpu-gib", "4"]

    def short_of_memory(progress: Progress) -> None:
        if progress.iteration == 1:
            raise MemoryError

    with gpu((8, 0)), Taken({(file, name) for file, name, _, _ in wanted}) as taken:
        with pytest.raises(MemoryError):
            run_training(config, run.root, short_of_memory)
        execute(config, run.root)  # from the middle of the epoch
        prediction._device("cuda:0")
        monkeypatch.setattr(sys, "argv", command)
        fit.main()
    assert read_json(tmp_path / "fit.json")["outcome"] == "fits"
    missed = {
        (Path(file).name, name, first)
        for file, name, first, last in wanted
        if not any((file, line) in taken.lines for line in range(first, last + 1))
    }
    assert not missed


def test_what_only_a_gpu_takes_is_found_and_seen_when_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "def new(device, torch):\n"
        "    if device.type == 'cuda':\n"
        "        done = 1\n"
        "    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0\n"
    )
    assert gpu_lines(path) == {(str(path), "new", 3, 3), (str(path), "new", 4, 4)}
    scope: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with Taken({(str(path), "new")}) as taken:
        scope["new"](torch.device("cpu"), torch)
    assert (str(path), 4) in taken.lines
    assert (str(path), 3) not in taken.lines
