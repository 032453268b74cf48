"""What `python -m benchmarks.gpu` makes of rows that hang, die or fail, and of a time that is over."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.page import FAILED, MEASURED, NO_TIME, NOT_YET, Page, Result
from benchmarks.gpu.rows import FULL, Row, Scale, rows
from benchmarks.gpu.worker import Worker

ANSWERS = """
import json, os, signal, sys, time
print(json.dumps({}), flush=True)
for line in sys.stdin:
    what = line.split()[-1]
    if what == "hangs":
        time.sleep(600)
    if what == "dies":
        print("its last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fails":
        print(json.dumps({"error": "ValueError: no"}), flush=True)
        sys.exit()
    print(json.dumps({"lines": [{"process": os.getpid(), "share": 0.25}]}), flush=True)
"""
ROWS = [Row(f"steps {what}") for what in ("works", "dies", "fails", "hangs", "again", "still")]


def process(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_what_hangs_dies_or_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    with Worker(process(ANSWERS), 3.0, tmp_path / "log") as worker:
        found = [worker.measure(row, 60.0) for row in ROWS]
    assert [(each.outcome, each.sentence) for each in found] == [
        (MEASURED, ""),
        (FAILED, "the process ended with status -9: its last words"),
        (FAILED, "ValueError: no"),
        (FAILED, "no answer within 3 s"),
        (MEASURED, ""),
        (MEASURED, ""),
    ]
    first, again, still = (each.lines[0]["process"] for each in found if each.lines)
    assert first != again == still


def test_the_page_is_complete_after_every_row(tmp_path: Path) -> None:
    page = Page(tmp_path, "gpu", ROWS[:2])
    assert [each["outcome"] for each in json.loads(page.json.read_text())] == [NOT_YET] * 2
    page.add(Result("steps works", MEASURED, "", 1.5, [{"engine": "a|b", "fits": True, "seconds": 0.12345}]))
    assert [each["outcome"] for each in json.loads(page.json.read_text())] == [MEASURED, NOT_YET]
    words = page.markdown.read_text()
    assert "| engine | fits | seconds |\n| --- | --- | --- |\n| a\\|b | yes | 0.123 |\n" in words
    assert "- steps dies: not run" in words
    page.add(Result("steps dies", FAILED, "ValueError: no", 2.0))
    assert "in 4 s: 1 measured, 1 failed." in page.markdown.read_text()
    assert "- steps dies: ValueError: no" in page.markdown.read_text()


def command_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, *arguments: str
) -> list[dict[str, str]]:
    monkeypatch.setattr(command, "worker_command", lambda small: process(script))
    monkeypatch.setattr(sys, "argv", ["gpu", "--folder", str(folder), *arguments])
    command.main()
    return json.loads((folder / "gpu.json").read_text())


def test_rows_for_which_no_time_is_left_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ANSWERS.replace("for line", "time.sleep(2)\nfor line")
    found = command_with(
        monkeypatch, tmp_path, script, "--rows", "kernels", "epoch", "--minutes", str(2.5 / 60)
    )
    assert [each["row"] for each in found] == [
        "kernels float32",
        "kernels bfloat16",
        "kernels float16",
        "epoch",
    ]
    assert found[-1]["outcome"] == NO_TIME
    assert "epoch: no time left" in capsys.readouterr().out


def test_without_a_gpu_there_is_one_sentence_and_no_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import sys; print('resource.device=cuda: none', file=sys.stderr); sys.exit(2)"
    with pytest.raises(SystemExit) as ended:
        command_with(monkeypatch, tmp_path, script)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "benchmarks.gpu: resource.device=cuda: none\n"
    assert not (tmp_path / "gpu.md").exists()


def test_all_combinations_are_measured_and_those_that_say_most_first() -> None:
    names = [row.name for row in rows(FULL)]
    assert len(set(names)) == len(names)
    steps = [row for row in rows(FULL) if row.kind == "steps"]
    for precision, limits in (("float32", (32, 16, 8)), ("bfloat16", (32,))):
        of_precision = [row.arguments for row in steps if row.arguments[4] == precision]
        assert len({each[:4] for each in of_precision}) == len(of_precision) == 2 * 3 * 3 * 2
        assert all(each[5] == limits for each in of_precision)
    assert names.index("epoch") < names.index("steps vit_t full 10 objects refsam float32")
    assert rows(Scale(models=("vit_t",), counts=(1,)))[0].kind == "environment"
