"""The documents as a site: every page, link and anchor, and the reference that is made from the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from refsam import cli
from refsam.commands.field_help import all_fields

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_every_document_is_a_page(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {name for name in pages if not (site / name / "index.html").is_file()} == set()


def test_the_reference_has_every_command_with_its_options(site: Path) -> None:
    page = text_of(site / "reference" / "commands" / "index.html")
    parser, names = cli.parser_and_commands()
    (commands,) = (each for each in parser._actions if isinstance(each.choices, dict))
    for name in names:
        assert f"refsam {name}" in page
    options = {
        option
        for command in commands.choices.values()
        for action in command._actions
        for option in action.option_strings
    }
    assert "--baseline" in options
    assert {option for option in options if option not in page} == set()


def test_the_reference_has_every_field(site: Path) -> None:
    page = text_of(site / "reference" / "configuration" / "index.html")
    assert [field.name for field in all_fields() if field.name not in page] == []


def test_the_reference_has_the_functions_for_python(site: Path) -> None:
    page = text_of(site / "reference" / "python" / "index.html")
    for words in ("TrainedModel", "segment", "The best model of a run, or of the best run of a sweep"):
        assert words in page


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    loaded = r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"'
    pages = site.rglob("*.html")
    found = {match for page in pages for match in re.findall(loaded, page.read_text(encoding="utf-8"))}
    assert {link for link in found if 'rel="canonical"' not in link} == set()
