"""docs/studies.md says what the recipes set: each value of its tables is that of the composed recipe."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.frozen import leaves, to_values
from refsam.records.settings import schema_fields, value_text

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"
SETTING = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*)=([^`]+)`")
PLACE = re.compile(r"[\w./-]+\.(?:py|sh|md):\d+")


def sections() -> list[tuple[list[str], list[list[str]]]]:
    """Of each study its recipes, and the rows of its table."""
    found = []
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("| ")]
        if "the study | the recipe" in body:
            rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
            found.append((re.findall(r"`(\w+)`", heading), rows))
    return found


SETTINGS = [
    (recipe, field, text)
    for recipes, rows in sections()
    for recipe in recipes
    for row in rows
    for field, text in SETTING.findall(row[2])
    if field in schema_fields()
]


@cache
def recipe_values(recipe: str) -> dict[str, Any]:
    return leaves(to_values(compose([], recipe)))


@pytest.mark.parametrize(("recipe", "field", "text"), SETTINGS)
def test_a_recipe_sets_what_the_page_says(recipe: str, field: str, text: str) -> None:
    assert value_text(recipe_values(recipe)[field]) == text


def test_every_row_says_where_it_stands_in_the_study() -> None:
    studies = sections()
    assert len(studies) >= 2
    for recipes, rows in studies:
        assert recipes
        assert [row[0] for row in rows if len(row) != 4 or not PLACE.search(row[1])] == []
