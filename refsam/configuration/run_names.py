"""The readable part of a run's id, which its configuration must go on to say."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASELINE = "baseline"  # schema.Kind, whose import takes its time
_RUN_ID = re.compile(r"(.+)-[0-9a-f]{10}")


def readable_id(values: Mapping[str, Any]) -> str:
    """`vit_b-lora-n5-v100-nuclei-s0`, with `-f2` for the second fold, by the sections of a configuration;
    safe as a folder's name.
    """
    parts = [values["model"]["name"]]
    if values["kind"] == BASELINE:
        parts += ["initial", values["dataset"]["name"]]
    else:
        strategy, resource = values["peft"]["name"], values["resource"]["name"]
        parts += [strategy, f"n{values['n_images']}", resource, values["dataset"]["name"]]
    parts.append(f"s{values['seed']}")
    evaluate = values.get("evaluate")
    if isinstance(evaluate, Mapping) and evaluate.get("fold") is not None:
        parts.append(f"f{evaluate['fold']}")
    return "-".join(re.sub(r"[^A-Za-z0-9_.]", "_", part) for part in parts)


def check_name(path: Path, values: Mapping[str, Any]) -> None:
    """Raise ValueError where the configuration at `path`, in a run's directory, is another run's.

    Raises AttributeError, KeyError, TypeError for one that is damaged.
    """
    made = _RUN_ID.fullmatch(path.parent.name)
    if made is None:
        return
    says = readable_id(values)
    if made[1] != says:
        raise ValueError(f"{path} was changed after the run was frozen: it says {says} now")
