"""`python -m benchmarks.gpu --small` on a GPU that is not there: every row says what it should."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.page import KINDS, MEASURED
from benchmarks.gpu.rows import ENGINES, MODES, PRECISIONS, SMALL, STRATEGIES, rows

CUBLAS_BYTES = 64 * 2**20  # as refsam.science.forecast has it
FOLDER = Path(__file__).parent
Lines = dict[str, list[dict[str, Any]]]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--folder", str(folder), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, cwd=FOLDER.parents[1], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gpu.json and gpu.md."""
    folder = tmp_path_factory.mktemp("page")
    given = {"PYTHONPATH": str(FOLDER / "in_program"), "PRETENDED_GPU": "8.0 8", "OMP_NUM_THREADS": "1"}
    ended = run(folder, "--minutes", "20", **given)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def lines(page: Path) -> Lines:
    """What was measured, by row."""
    found = json.loads((page / "gpu.json").read_text())
    assert [each["row"] for each in found] == [row.name for row in rows(SMALL)]
    assert {each["row"]: each["sentence"] for each in found if each["outcome"] != MEASURED} == {}
    return {each["row"]: each["lines"] for each in found}


def test_the_page_has_a_table_for_every_kind(page: Path) -> None:
    words = (page / "gpu.md").read_text()
    assert [line[3:] for line in words.splitlines() if line.startswith("## ")] == list(KINDS)
    assert f"{len(rows(SMALL))} measured." in words
    assert words.count("\n| --- |") == len(KINDS)


def test_environment_arithmetic_and_kernels(lines: Lines) -> None:
    known = {line["what"]: line["value"] for line in lines["environment"]}
    assert known["compute capability"] == "8.0"
    assert known["gpu_memory_gib"] == 8.0
    assert known["train.precision=auto"] == "bfloat16"
    assert (known["deterministic kernels"], known["TF32 in convolutions"]) == (True, False)
    errors = {line["what"]: line for line in lines["arithmetic"] if "error" in line}
    assert set(errors) == {"product in float32", "convolution in float32"}
    assert all(0 < line["error"] < 1e-5 and line["is float32"] for line in errors.values())
    for precision in PRECISIONS:
        found = {(line["block"], line["attention"]): line for line in lines[f"kernels {precision}"]}
        assert len(found) == 4
        for (_, attention), line in found.items():
            # It is computed on the CPU, where one product with these columns has no other kernel.
            assert line["operator"] == ("attention_math" if attention == "fused" else "none")
            assert line["seconds"] > 0
            assert line["peak GiB"] > 0


def test_gradients_agree_as_far_as_their_precision_goes(lines: Lines) -> None:
    bounds = {"float32": 1e-4, "bfloat16": 1.0, "float16": 0.1}
    for precision, bound in bounds.items():
        found = {line["compared"]: line for line in lines[f"gradients {precision}"]}
        for line in found.values():
            assert line["parameters"] > 100
            assert line["not finite"] == 0
            assert line["median"] <= line["largest"] < bound
        if precision == "float32":
            assert found["refsam, the same once more"]["largest"] == 0
        else:
            ours, theirs = (found[f"{engine}, micro-sam in float32"] for engine in ("refsam", "micro-sam"))
            assert 1e-5 < ours["median"] <= theirs["median"]


def test_steps_fit_or_run_out_of_memory_under_each_limit(lines: Lines) -> None:
    most, least = SMALL.limits
    (count,) = SMALL.counts
    allocated = {}
    for precision, limits in (("float32", SMALL.limits), ("bfloat16", (most,))):
        for peft in STRATEGIES:
            for engine in ENGINES:
                found = lines[f"steps vit_nano {peft} {count} objects {engine} {precision}"]
                assert [line["limit GiB"] for line in found] == list(limits)
                first = found[0]
                assert first["outcome"] == "fits"
                assert first["seconds"] > 0
                assert 0 < first["before GiB"] < first["allocated GiB"] <= first["reserved GiB"] < most
                assert first["chunk"] == (count if engine == "refsam" else None)
                allocated[precision, peft, engine] = first["allocated GiB"]
                if len(found) == 2:
                    fits = first["allocated GiB"] <= least
                    assert found[1]["outcome"] == ("fits" if fits else "out of memory")
    for peft in STRATEGIES:
        assert allocated["float32", peft, "refsam"] < allocated["float32", peft, "micro_sam"]
        assert allocated["bfloat16", peft, "refsam"] < allocated["float32", peft, "refsam"]
    assert allocated["float32", "full", "micro_sam"] > least > allocated["float32", "full", "refsam"]


def test_a_run_with_workers_ends(lines: Lines) -> None:
    (line,) = lines["epoch"]
    assert (line["state"], line["exit status"], line["workers"]) == ("completed", 0, 2)
    assert 0 < line["seconds until exit"] < line["seconds"]
    assert line["precision"] == "bfloat16"
    assert line["peak memory gib"] > 0


def test_waits_are_counted_with_their_places(lines: Lines) -> None:
    taken = [(line["engine"], line["objects"]) for line in lines["waits"]]
    assert taken == [(engine, count) for engine in ENGINES for count in (1, *SMALL.counts)]
    for line in lines["waits"]:
        assert line["waits"] > 0
        assert ".py:" in line["most often at"]


def test_the_ladder_is_climbed_until_the_step_fits(lines: Lines) -> None:
    found = lines["ladder"]
    assert [line["attempt"] for line in found] == list(range(len(found)))
    assert found[0]["outcome"] == found[-1]["outcome"] == "fits"
    changed = [line["changed"] for line in found if line["outcome"] == "out of memory"]
    assert changed[:3] == ["", "train.object_chunk=2", "train.object_chunk=1"]
    assert found[-1]["allocated GiB"] <= found[-1]["limit GiB"] < 0.6 * found[0]["allocated GiB"]
    assert (found[-1]["chunk"], found[-1]["encoder again"], found[-1]["decoder again"]) == (1, 1, True)


def test_every_mode_of_evaluation_is_timed(lines: Lines) -> None:
    assert [line["mode"] for line in lines["evaluation"]] == list(MODES)
    for line in lines["evaluation"]:
        assert line["images"] == 1
        assert line["seconds per image"] > 0
        assert line["before GiB"] < line["peak GiB"]
        assert line["mSA"] is not None


def test_a_step_is_measured_with_both_allocators(lines: Lines) -> None:
    found = lines["allocator"]
    assert [line["allocator"][-5:].strip(":") for line in found] == ["False", "True"]
    assert all(line["outcome"] == "fits" and line["allocated GiB"] > 0 for line in found)


def test_a_forecast_stands_beside_what_was_taken(lines: Lines) -> None:
    (line,) = lines["forecast refsam full"]
    assert (line["engine"], line["objects"], line["outcome"]) == ("refsam", *SMALL.counts, "fits")
    # It is CUDA's workspaces that a GPU that is not there knows nothing of.
    counted = line["forecast GiB"] - CUBLAS_BYTES / 2**30
    assert 0.7 < counted / line["allocated GiB"] < 1.3
    assert line["forecast / allocated"] == pytest.approx(line["forecast GiB"] / line["allocated GiB"])


def test_a_full_gpu_is_recognised(lines: Lines) -> None:
    found = {line["asked for"]: line for line in lines["messages"]}
    assert found["allocation"]["recognised"] is True
    assert found["allocation"]["said"].startswith("OutOfMemoryError: CUDA out of memory")
    assert all(line["recognised"] in (True, None) for line in found.values())


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    ended = run(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "finds no GPU" in ended.stderr
    assert ended.stdout == ""
