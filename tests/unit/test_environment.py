"""environment.json names the versions of what a run uses."""

import importlib.metadata

import pytest

from refsam.science import environment


def test_versions_are_those_of_the_distributions_that_have_the_modules() -> None:
    found = importlib.metadata.packages_distributions()
    expected = {
        module: importlib.metadata.version(found[module][0])
        for module in environment.MODULES
        if module in found
    }
    assert len(expected) >= 10
    assert expected.items() <= environment._versions().items()


def test_a_module_of_a_distribution_of_another_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DISTRIBUTIONS", {"elf": "elf-by-another-name"})
    assert environment._versions()["elf"] == importlib.metadata.version("python-elf")


def test_a_module_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MODULES", ("torch", "not_installed_here"))
    assert set(environment._versions()) == {"python", "refsam", "torch"}
