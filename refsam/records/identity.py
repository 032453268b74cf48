"""run_id: readable parts and a hash of everything that the result depends on, and of nothing else."""

import hashlib
import json
from pathlib import Path
from typing import Any

from refsam.configuration.frozen import to_values
from refsam.configuration.optimizers import own_weight_decay
from refsam.configuration.patch_pool import FIXED, encoder_is_frozen
from refsam.configuration.prompts import MIXED
from refsam.configuration.run_names import readable_id
from refsam.configuration.schema import Kind, PeftConfig, RefsamConfig
from refsam.configuration.split import SEEDED
from refsam.datasets.numbering import INSTANCES
from refsam.models.families import MICRO_SAM
from refsam.models.strategies import ADAPT, DECODER, TRAIN, frozen_parts

# Changed when the science changes in a way that makes older results another experiment.
SCIENCE_VERSION = 1

NOT_IDENTITY = ("cluster", "runs", "data", "name", "baseline", "dry_run", "wait", "on_invalid", "exclude")
NOT_RESULT_OF_TRAINING = (
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
    "train",  # as the strategy says
)
# What was done before there was a choice, and is micro-sam's.
_USUAL_TRAINING = {
    "embedding_dtype": "float32",
    "prompts": MIXED,
    "loss": "dice",
    "joint": "separate",
    "validation_patches": FIXED,
    "betas": None,
    "max_grad_norm": None,
    "accumulate": 1,
    "scheduler": "plateau",
    "stop_on": "loss",
    "focal_alpha": 0.25,
    "mask_threshold": 0.0,
}
# Of the interactive segmentation, which `peft=decoder` leaves alone.
_NOT_OF_DECODER = ("prompts", "n_sub_iterations", "mask_prob", "box_distortion", "loss", "joint")
# The hash is put in the place of the path where there is one.
_NOT_RESULT_OF_MODEL = ("memory_gb", "weights_hash")
_ALWAYS_OF_STRATEGY = ("name", "freeze", "rank", "update_matrices")
# What is measured in another way is another row of the same run.
NOT_RESULT_OF_EVALUATION = (
    *("modes", "rounds", "mask_input", "grid", "small_grid", "points_per_side"),
    *("batch_size", "save_predictions", "metrics", "pictures", "where", "resource"),
)
_WHERE_DATA_LIES = (
    *("root", "images", "labels", "version", "n_files", "image_key", "label_key", "format", "archive"),
    "fingerprint",
    # What they leave out is not in the fingerprint's pixels, or is in the number of images.
    *("on_problem", "empty_images"),
)
# A baseline trains nothing, so it is the same one for every resource, strategy and number of images.
_NOT_BASELINE = ("resource", "peft", "train", "n_images", "n_objects")


def identity(config: RefsamConfig, data_fingerprint: str, weights_hash: str | None) -> dict[str, Any]:
    """What `result_values` finds, less the options that are left at what was done before there was a choice:
    so the runs of that time keep their ids.

    Args:
        config: resolved (no `auto` strategy, number of objects or pool of patches).
        data_fingerprint: identity of the images and labels, without their paths.
        weights_hash: of the checkpoint, where `model.weights` is a path.
    """
    values = result_values(config)
    train = values.get("train", {})
    for name, usual in _USUAL_TRAINING.items():
        if name in train and train[name] == usual:
            del train[name]
    if "weight_decay" in train and own_weight_decay(config.train):
        del train["weight_decay"]
    if "peft" in values:
        values["peft"]["freeze"] = _frozen(config.peft)
        if config.peft.decoder != ADAPT:  # what it says is in `freeze`
            del values["peft"]["decoder"]
        # What a strategy has not been given is not part of it.
        values["peft"] = {
            name: value
            for name, value in values["peft"].items()
            if name in _ALWAYS_OF_STRATEGY or value not in (None, [], {})
        }
    for name in ("categories", "test", "channels", "labels_are", "protocol"):
        if not values["dataset"][name]:
            del values["dataset"][name]
    if config.dataset.crowds == "skip":
        del values["dataset"]["crowds"]
    if values["dataset"].get("split_seed") in (None, config.seed):  # there was one seed for both
        values["dataset"].pop("split_seed", None)
    if config.evaluate.folds is None:  # as before there was a choice
        del values["evaluate"]["folds"], values["evaluate"]["fold"]
    values["dataset"]["fingerprint"] = data_fingerprint
    if config.model.family == MICRO_SAM:
        del values["model"]["family"], values["model"]["hub_id"]
    if weights_hash is not None:
        values["model"]["weights"] = weights_hash
    values["science"] = SCIENCE_VERSION
    return values


def _frozen(peft: PeftConfig) -> list[str]:
    """The frozen parts as they were given, and those that peft.decoder adds."""
    return peft.freeze if peft.decoder == TRAIN else frozen_parts(peft)


def result_values(config: RefsamConfig) -> dict[str, Any]:
    """The values of a resolved configuration that decide the result, in the schema's sections.

    Evaluation modes are not in it: a further mode is measured on the run that is there, and trains nothing
    again. A field that the others leave without an effect is not in it either.
    """
    values = to_values(config)
    for name in NOT_IDENTITY:
        del values[name]
    for section, names in (
        ("train", NOT_RESULT_OF_TRAINING),
        ("evaluate", NOT_RESULT_OF_EVALUATION),
        ("dataset", _WHERE_DATA_LIES),
        ("model", _NOT_RESULT_OF_MODEL),
    ):
        for name in names:
            del values[section][name]
    if not encoder_is_frozen(config.peft):
        del values["train"]["embedding_dtype"]  # nothing is rounded
    if config.train.loss != "dice_focal":
        del values["train"]["focal_alpha"]  # there is no focal loss
        if config.train.stop_on != "mIoU":
            del values["train"]["mask_threshold"]  # micro-sam's IoU has its own
    # What the other schedule takes.
    unused = (
        ("warmup",) if config.train.scheduler == "plateau" else ("scheduler_factor", "scheduler_patience")
    )
    for name in unused:
        del values["train"][name]
    if config.peft.name == DECODER and config.kind != Kind.baseline:
        for name in _NOT_OF_DECODER:
            del values["train"][name]
        del values["n_objects"]
    elif not config.train.decoder:
        del values["train"]["joint"]  # there is one optimizer step
    if config.dataset.split != SEEDED:
        del values["dataset"]["split_seed"]  # nothing is shuffled
    if config.evaluate.folds is not None:
        del values["dataset"]["train_pool"], values["dataset"]["n_unused"]  # all that a fold leaves can train
    if config.dataset.labels_are == INSTANCES:
        values["dataset"]["labels_are"] = None  # which stands for it
    values["resource"] = values["resource"]["name"]
    if config.kind == Kind.baseline:
        for name in _NOT_BASELINE:
            del values[name]
    return values


def run_id(config: RefsamConfig, identity_values: dict[str, Any]) -> str:
    """`vit_b-lora-n5-v100-nuclei-s0-1f3870be27`: safe as a folder name whatever the names contain."""
    digest = hashlib.sha256(json.dumps(identity_values, sort_keys=True).encode()).hexdigest()[:10]
    return f"{readable_id(to_values(config))}-{digest}"


def file_hash(path: Path) -> str:
    """xxh128 of a file's content, in the form of micro-sam's model registry."""
    import xxhash  # not at the top: only runs that start from a checkpoint need it

    digest = xxhash.xxh128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"xxh128:{digest.hexdigest()}"
