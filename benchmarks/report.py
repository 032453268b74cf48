"""How long the report of a large sweep takes to make and to use: python -m benchmarks.report

Writes the synthetic run directories of benchmarks.collect (two rows each), makes their report with
`refsam report`, opens it in Chromium and measures from a click or a change until the browser has painted the
result: sorting by a column of numbers and one of words, choosing from a list; medians. Prints a table and
writes it as CSV.
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from benchmarks.collect import write_runs
from benchmarks.rows import write_csv
from refsam.records.paths import RunsFolder

COLUMNS = ("what", "rows", "seconds")
REPEATS = 5
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)
# From the action until the frame after it was painted.
PAINTED = """
    const done = arguments[arguments.length - 1];
    const began = performance.now();
    %s
    requestAnimationFrame(() => setTimeout(() => done((performance.now() - began) / 1000), 0));
"""
SORT = "document.querySelector('#rows th[data-name=%s] button').click();"
CHOOSE = """
    const select = document.querySelectorAll("#filters select")[0];
    select.selectedIndex = 1 - select.selectedIndex % 2;
    select.dispatchEvent(new Event("change"));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2_500, help="how many; each has two rows (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refsam-report-") as name:
        folder = RunsFolder(Path(name) / "runs")
        write_runs(folder, options.runs)
        count = 2 * options.runs
        seconds, of_one_core = make(folder)
        measured = {"refsam report": seconds, "refsam report, of one core": of_one_core}
        path = folder.sweep("synthetic").report
        measured |= use(path, name)
        rows = [{"what": what, "rows": count, "seconds": taken} for what, taken in measured.items()]
        size = path.stat().st_size
    for row in rows:
        print(f"{row['what']:32} {row['rows']:>7} rows {row['seconds']:8.3f} s")
    print(f"The file has {size / 1e6:.2f} MB.")
    write_csv("report", COLUMNS, rows)


def make(folder: RunsFolder) -> tuple[float, float]:
    """Seconds of `refsam report`, the collecting and the start of Python included; and those of one core."""
    command = [sys.executable, "-m", "refsam.cli", "report", "synthetic", "--runs", str(folder.root)]
    began, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    of_one_core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(seconds, 2), round(of_one_core, 2)


def use(path: Path, profile: str) -> dict[str, float]:
    """Seconds until the browser has painted what a person asked for."""
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}/profile"):
        options.add_argument(flag)
    with Chrome(options=options, service=Service(str(shutil.which("chromedriver")))) as browser:
        browser.set_script_timeout(60)
        browser.get(path.as_uri())
        loaded = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
        seconds: dict[str, float] = {"load": round(browser.execute_script(loaded), 3)}

        def median(action: str) -> float:
            taken: list[Any] = [browser.execute_async_script(PAINTED % action) for _ in range(REPEATS)]
            return round(statistics.median(taken), 3)

        seconds["sort by numbers (SA50)"] = median(SORT % "SA50")
        seconds["sort by words (strategy)"] = median(SORT % "strategy")
        seconds["choose from a list"] = median(CHOOSE)
        return seconds


if __name__ == "__main__":
    main()
