"""What to cite for the runs at hand, as BibTeX: models, strategies, data sets and the libraries behind them.

The entries are in references.bib, which run needs which in rules.yaml.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from refsam.records.paths import Directories, RunPaths
from refsam.results.run_rows import BASELINE, INVALID
from refsam.system.files import read_yaml, read_yaml_sections

REFERENCES = Path(__file__).with_name("references.bib")
RULES = Path(__file__).with_name("rules.yaml")
_SECTIONS = ("kind", "model", "peft", "dataset", "train")
# What runs that use the same things have in common.
_SAME = ["model", "strategy", "dataset", "optimizer"]


@dataclass(frozen=True)
class Citations:
    """What to cite.

    Attributes:
        entries: BibTeX, by key, in the order of references.bib.
        unknown: sentences about what the runs use and refsam knows no source of.
    """

    entries: dict[str, str]
    unknown: list[str]

    @property
    def text(self) -> str:
        """A .bib file; what is not known is a comment in it."""
        comments = "".join(f"% {sentence}\n" for sentence in self.unknown)
        return "\n".join([*([comments] if comments else []), *self.entries.values()])


@dataclass(frozen=True)
class Used:
    """What one run uses; None where it is not known, or was not used."""

    model: str | None
    family: str | None
    hub_id: str | None
    strategy: str | None
    optimizer: str | None
    dataset: str | None


def citations(frame: pd.DataFrame, directories: Directories) -> Citations:
    """What to cite for the runs of a frame, as `refsam.results.collect.collect` returns it.

    Args:
        directories: of the runs, for their configurations. What a run without one uses is taken from the
            frame.
    """
    runs = frame[(frame["status"] != INVALID) & frame["run_id"].notna()].drop_duplicates(_SAME)
    return _cited([_used(row, directories) for row in runs.to_dict("records")])


def citations_of_run(paths: RunPaths) -> Citations:
    """What to cite for one run. Raises ValueError and OSError where its configuration cannot be read."""
    return _cited([_used_by(paths.config)])


def in_words(entry: str) -> tuple[str, str] | None:
    """Authors, title and year of an entry in one line, and its DOI or address; None where it has neither."""
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, re.MULTILINE))
    plain = {name: re.sub(r"\\\W|[{}]", "", value) for name, value in fields.items()}
    address = plain.get("doi") or plain.get("url")
    if address is None and "eprint" in plain:
        address = f"https://arxiv.org/abs/{plain['eprint']}"
    if address is None:
        return None
    first, *others = plain["author"].split(" and ")
    names = f"{first.partition(',')[0]}{' et al.' if others else ''}"
    year = f" ({plain['year']})" if "year" in plain else ""
    return f"{names}{year}: {plain['title']}", address


def _cited(used: list["Used"]) -> Citations:
    rules = read_yaml(RULES)
    keys: set[str] = set(rules["always"]) if used else set()
    unknown: dict[str, None] = {}
    for each in dict.fromkeys(used):
        keys |= _keys(each, rules, unknown)
    return Citations({key: text for key, text in references().items() if key in keys}, list(unknown))


@cache
def references() -> dict[str, str]:
    """The entries of references.bib by their keys."""
    text = REFERENCES.read_text(encoding="utf-8")
    found = re.finditer(r"^@\w+\{([^,]+),\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    return {entry[1]: entry[0] for entry in found}


def _keys(used: Used, rules: Mapping[str, Any], unknown: dict[str, None]) -> set[str]:
    keys: set[str] = set(rules["families"].get(used.family, []))
    keys.update(rules["strategies"].get(used.strategy, []))
    keys.update(rules["optimizers"].get(used.optimizer, []))
    if used.hub_id in rules["hub_ids"]:
        keys.update(rules["hub_ids"][used.hub_id])
    elif used.model in rules["models"]:
        keys.update(rules["models"][used.model])
    elif used.model is not None:
        unknown[f"Model {used.hub_id or used.model}: its source is not known here, cite it as well."] = None
    if used.dataset in rules["datasets"]:
        keys.update(rules["datasets"][used.dataset])
    elif used.dataset is not None:
        unknown[f"Data set {used.dataset}: its source is not known here, cite it as well."] = None
    return keys


def _used(row: Mapping[Any, Any], directories: Directories) -> Used:
    """What a run uses, by its frozen configuration, else by its row in the table."""
    try:
        return _used_by(directories[row["run_id"]].config)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not written yet, or damaged, which the table says; the row says the most of it
    values = {name: None if pd.isna(row[name]) else str(row[name]) for name in _SAME}
    # The table adds settings to the name: `late_lora 50 %, rank 8`.
    strategy = re.split("[ ,]", values["strategy"])[0] if values["strategy"] else None
    return Used(values["model"], None, None, strategy, values["optimizer"], values["dataset"])


def _used_by(config: Path) -> Used:
    """What a run uses, by its frozen configuration."""
    kind, model, peft, dataset, train = read_yaml_sections(config, *_SECTIONS)
    is_trained = kind != BASELINE
    return Used(
        model=model["name"],
        family=model.get("family", "micro_sam"),
        hub_id=model.get("hub_id"),
        strategy=peft["name"] if is_trained else None,
        optimizer=train["optimizer"] if is_trained else None,
        dataset=dataset["name"],
    )
