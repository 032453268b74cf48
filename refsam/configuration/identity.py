"""run_id: readable parts and a hash of everything that the result depends on, and of nothing else."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from refsam.configuration.families import MICRO_SAM
from refsam.configuration.frozen import to_values
from refsam.configuration.patch_pool import encoder_is_frozen
from refsam.configuration.prompts import MIXED
from refsam.configuration.schema import Kind, RefsamConfig

# Changed when the science changes in a way that makes older results another experiment.
SCIENCE_VERSION = 1

_NOT_IDENTITY = ("cluster", "runs", "data", "name", "baseline", "dry_run", "wait", "on_invalid")
_NOT_RESULT_OF_TRAINING = (
    "workers",
    "engine",
    "object_chunk",
    "checkpoint_encoder",
    "checkpoint_decoder",
    "attention",
    "embedding_cache",
    "embedding_disk_gib",
    "optimizer_in_backward",
    "save",
)
_ALWAYS_OF_STRATEGY = ("name", "freeze", "rank", "update_matrices")
# What is measured in another way is another row of the same run.
_NOT_RESULT_OF_EVALUATION = (
    *("modes", "rounds", "mask_input", "grid", "small_grid", "points_per_side"),
    *("batch_size", "save_predictions", "pictures", "where", "resource"),
)
_WHERE_DATA_LIES = (
    *("root", "images", "labels", "version", "n_files", "image_key", "label_key", "format", "archive"),
    # What they leave out is not in the fingerprint's pixels, or is in the number of images.
    *("on_problem", "empty_images"),
)
# A baseline trains nothing, so it is the same one for every resource, strategy and number of images.
_NOT_BASELINE = ("resource", "peft", "train", "n_images", "n_objects")


def identity(config: RefsamConfig, data_fingerprint: str, weights_hash: str | None) -> dict[str, Any]:
    """The part of a resolved configuration that decides the result.

    Evaluation modes are not in it: a further mode is measured on the run that is there, and trains nothing
    again.

    Args:
        config: resolved (no `auto` strategy, number of objects or pool of patches).
        data_fingerprint: identity of the images and labels, without their paths.
        weights_hash: of the checkpoint, where `model.weights` is a path.
    """
    values = to_values(config)
    for name in _NOT_IDENTITY:
        del values[name]
    for section, names in (
        ("train", _NOT_RESULT_OF_TRAINING),
        ("evaluate", _NOT_RESULT_OF_EVALUATION),
        ("dataset", _WHERE_DATA_LIES),
    ):
        for name in names:
            del values[section][name]
    if config.train.embedding_dtype == "float32" or not encoder_is_frozen(config.peft):
        del values["train"]["embedding_dtype"]  # nothing is rounded
    if config.train.prompts == MIXED:
        del values["train"]["prompts"]  # micro-sam's
    if config.train.loss == "dice":
        del values["train"]["loss"]  # micro-sam's
    # What a strategy has not been given is not part of it: a new setting leaves older runs as they are.
    values["peft"] = {
        name: value
        for name, value in values["peft"].items()
        if name in _ALWAYS_OF_STRATEGY or value not in (None, [], {})
    }
    if config.train.joint == "separate" or not config.train.decoder:
        del values["train"]["joint"]  # micro-sam's step
    for name in ("categories", "test"):
        if not values["dataset"][name]:  # as it was before there was such a choice
            del values["dataset"][name]
    if config.dataset.crowds == "skip":
        del values["dataset"]["crowds"]
    values["dataset"]["fingerprint"] = data_fingerprint
    values["resource"] = values["resource"]["name"]
    del values["model"]["memory_gb"]
    if config.model.family == MICRO_SAM:  # as it was before there was another one
        del values["model"]["family"], values["model"]["hub_id"]
    if weights_hash is not None:
        values["model"]["weights"] = weights_hash
    if config.kind == Kind.baseline:
        for name in _NOT_BASELINE:
            del values[name]
    values["science"] = SCIENCE_VERSION
    return values


def run_id(config: RefsamConfig, identity_values: dict[str, Any]) -> str:
    """`vit_b-lora-n5-v100-nuclei-s0-1f3870be27`: safe as a folder name whatever the names contain."""
    digest = hashlib.sha256(json.dumps(identity_values, sort_keys=True).encode()).hexdigest()[:10]
    parts = [config.model.name]
    if config.kind == Kind.baseline:
        parts += ["initial", config.dataset.name]
    else:
        parts += [config.peft.name, f"n{config.n_images}", config.resource.name, config.dataset.name]
    parts += [f"s{config.seed}", digest]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]", "_", part) for part in parts)


def file_hash(path: Path) -> str:
    """xxh128 of a file's content, in the form of micro-sam's model registry."""
    import xxhash  # not at the top: only runs that start from a checkpoint need it

    digest = xxhash.xxh128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"xxh128:{digest.hexdigest()}"
