"""A real Chromium that looks at reports; without one, these tests are skipped with the reason."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recorded_sweeps import large_table, study, write_manifest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from refsam import cli
from refsam.records.paths import RunsFolder
from refsam.results.collect import directories_of
from refsam.results.report.cost import read_power
from refsam.results.report.write import Asked, write_report

sys.path.insert(0, str(Path(__file__).parent))  # test files import the modules that lie beside them

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ROWS = 5_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser nothing can be looked at."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    for item in items:
        if missing and Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason=f"{' and '.join(missing)} not installed (apt-get install)")
            )


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for all tests, with a profile of its own."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    options = ChromeOptions()
    options.binary_location = str(browser)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(str(driver))) as started:
        yield started


@pytest.fixture(scope="session")
def study_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep with failures and hostile names."""
    folder = study(tmp_path_factory.mktemp("study") / "runs")
    assert cli.main(["report", "study", "--runs", str(folder.root)]) == 0
    return folder.sweep("study").report


@pytest.fixture(scope="session")
def large_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with ROWS rows."""
    folder = RunsFolder(tmp_path_factory.mktemp("large") / "runs")
    frame = large_table(ROWS)
    sweep = write_manifest(folder, "large", frame["run_id"].tolist())
    return write_report(
        Asked(frame, directories_of(frame, folder), [(sweep, folder)], sweep, [], read_power())
    )


@pytest.fixture
def look(chromium: Chrome) -> Iterator[Callable[..., Chrome]]:
    """A function that opens a report: look(path, width=1280, dark=False, media="screen", scripts=True).

    At the end nothing may stand in the browser's console, and nothing may have been asked of a network.
    """

    def opened(
        path: Path, width: int = 1280, dark: bool = False, media: str = "screen", scripts: bool = True
    ) -> Chrome:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme, still]})
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        chromium.get(path.as_uri())
        return chromium

    chromium.get("about:blank")
    chromium.get_log("performance")
    chromium.get_log("browser")
    yield opened
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert chromium.get_log("browser") == []
    assert [address for address in _requested(chromium) if not address.startswith(("file:", "data:"))] == []


def _requested(browser: Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
