"""What values are allowed, said in one sentence each, before anything runs.

Two kinds: `check_values` looks at single fields, and what it finds is a mistake in any sweep.
`combination_problem` looks at values together, and in a sweep such runs are left out while the others run.
"""

import functools
import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from refsam.configuration.frozen import leaves, to_values
from refsam.configuration.optimizers import BITSANDBYTES, OPTIMIZERS
from refsam.configuration.patch_pool import FIXED, NEW, encoder_is_frozen, is_patch_pool
from refsam.configuration.prompts import PROMPTS
from refsam.configuration.schema import ALL, AUTO, Kind, Precision, RefsamConfig, TrainConfig
from refsam.configuration.split import SEEDED, n_images_problem, split_sizes
from refsam.datasets.numbering import COMPONENTS, INSTANCES
from refsam.datasets.reading import COLOURS
from refsam.errors import ConfigError, nearest
from refsam.models.families import FAMILIES, attention_problem, model_problem
from refsam.models.strategies import ADAPT, DECODER, FREEZE, TRAIN, is_quantized, strategy_problem
from refsam.records.measurements import GRIDS, MODES, is_grid
from refsam.records.metrics import QLORA_SAM

LABELS = (INSTANCES, COMPONENTS)
REACTIONS = ("skip", "refuse")
SWITCHES = ("auto", "on", "off")
SWITCHED = (*SWITCHES, True, False)  # YAML reads a bare on as true
# Of a model's own architecture, in pixels, channels and numbers of them.
SIZES = (
    "image_size", "patch_size", "embed_dim", "depth", "num_heads", "prompt_embed_dim", "decoder_mlp_dim",
    "decoder_num_heads", "unetr_features",
)  # fmt: skip
LARGEST_SEED = 2**32 - 1  # of numpy's older generators, which torch-em and micro-sam draw from
PATCH_MULTIPLE = 32  # pixels; the segmentation decoder halves the patch five times


@dataclass(frozen=True)
class _Rule:
    field: str
    holds: Callable[[Any], bool]
    allowed: str
    choices: tuple[str, ...] = ()  # all values or the named ones, as they are typed


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _optional(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: value in choices


def _choice(field: str, choices: tuple[str, ...]) -> _Rule:
    return _Rule(field, _one_of(choices), (" or " if len(choices) == 2 else ", ").join(choices), choices)


def _is_time(value: str) -> bool:
    return re.fullmatch(r"(\d+-)?\d{1,2}(:\d{2}){0,2}", value) is not None


def _from_zero(value: Any) -> bool:
    return math.isfinite(value) and value >= 0


def _above_zero(value: Any) -> bool:
    return math.isfinite(value) and value > 0


def _some_of(choices: tuple[Any, ...]) -> Callable[[Any], bool]:
    """One or more, each once."""
    return lambda values: (
        bool(values) and all(value in choices and values.count(value) == 1 for value in values)
    )


def _are_channels(values: Any) -> bool:
    """One to three, not all of them empty."""
    return (
        1 <= len(values) <= len(COLOURS)
        and any(value is not None for value in values)
        and all(value is None or value in tuple(COLOURS) or _whole(0)(value) for value in values)
    )


def _positive_or_auto(value: Any) -> bool:
    return value == AUTO or _whole(1)(value)


_RULES = (
    _Rule("n_images", lambda value: value == ALL or _whole(1)(value), "all, or an integer >= 1"),
    _Rule("n_objects", _positive_or_auto, "auto, or an integer >= 1"),
    _Rule(
        "seed",
        lambda value: _whole(0)(value) and value <= LARGEST_SEED,
        f"an integer from 0 to {LARGEST_SEED}",
    ),
    _Rule(
        "name",  # of a folder and a job, and a word of commands
        _optional(lambda name: re.fullmatch(r"\w[\w.-]{0,99}", name) is not None),
        "100 letters, digits, _ . - at most, the first one no . or -",
    ),
    _choice("model.family", FAMILIES),
    *(_Rule(f"model.custom.{name}", _whole(1), "an integer >= 1") for name in SIZES),
    _Rule("model.custom.window_size", _whole(0), "an integer >= 0 (0: all attention is global)"),
    _Rule("model.custom.position_scale", _above_zero, "a number > 0"),
    _Rule("train.epochs", _optional(_whole(1)), "null, or an integer >= 1"),
    _Rule("train.max_steps", _optional(_whole(1)), "null, or an integer >= 1"),
    _Rule("train.batch_size", _whole(1), "an integer >= 1"),
    _Rule("train.accumulate", _whole(1), "an integer >= 1"),
    _Rule("train.min_samples", _whole(1), "an integer >= 1"),
    _Rule("train.validation_samples", _optional(_whole(1)), "null, or an integer >= 1"),
    _choice("train.validation_patches", (FIXED, NEW)),
    _Rule("train.lr", _above_zero, "a number > 0"),
    _choice("peft.decoder", (TRAIN, FREEZE, ADAPT)),
    _choice("train.optimizer", tuple(OPTIMIZERS)),
    _Rule(
        "train.betas",
        _optional(lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
        "null, or two numbers from 0 to less than 1, as [0.9,0.999]",
    ),
    _Rule("train.weight_decay", _optional(_from_zero), "null, or a number from 0"),
    _Rule("train.max_grad_norm", _optional(_above_zero), "null, or a number > 0"),
    _choice("train.scheduler", ("plateau", "cosine")),
    _Rule("train.warmup", lambda value: 0 <= value < 1, "a number from 0 to less than 1"),
    _choice("train.stop_on", ("loss", "mIoU")),
    _Rule("train.scheduler_factor", lambda value: 0 < value < 1, "a number between 0 and 1"),
    _Rule("train.scheduler_patience", _whole(0), "an integer >= 0"),
    _Rule("train.early_stopping", _optional(_whole(1)), "null, or an integer >= 1"),
    _Rule(
        "train.patch_shape",
        lambda shape: (
            len(shape) == 2 and all(size >= PATCH_MULTIPLE and size % PATCH_MULTIPLE == 0 for size in shape)
        ),
        f"two multiples of {PATCH_MULTIPLE} pixels, as [512,512]",
    ),
    _Rule("train.n_sub_iterations", _whole(1), "an integer >= 1"),
    _Rule("train.mask_prob", lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    _Rule("train.box_distortion", _from_zero, "a number from 0"),
    _Rule("train.workers", lambda value: value == AUTO or _whole(0)(value), "auto, or an integer >= 0"),
    _Rule("train.patch_pool", is_patch_pool, "auto, null, an integer >= 1, or a multiple as 4x"),
    _choice("train.embedding_cache", ("memory", "disk", "off")),
    _Rule("train.embedding_disk_gib", _optional(_above_zero), "null, or a number of GiB above 0"),
    _choice("train.embedding_dtype", ("float32", "float16")),
    _choice("train.engine", ("refsam", "micro_sam")),
    _Rule("train.object_chunk", _positive_or_auto, "auto, or an integer >= 1"),
    _Rule(
        "train.checkpoint_encoder",
        lambda value: value in SWITCHED or _whole(1)(value),
        "auto, on, off, or an integer >= 1",
        SWITCHES,
    ),
    _Rule("train.checkpoint_decoder", lambda value: value in SWITCHED, "auto, on or off", SWITCHES),
    _choice("train.loss", ("dice", "dice_focal")),
    _Rule("train.focal_alpha", _optional(lambda value: 0 <= value <= 1), "null, or a number from 0 to 1"),
    _Rule("train.mask_threshold", _from_zero, "a number from 0"),
    _choice("train.save", ("all", "adapter")),
    _choice("train.train", ("all", DECODER)),
    _choice("train.prompts", PROMPTS),
    _choice("train.joint", ("separate", "summed")),
    _choice("train.attention", ("auto", "fused", "sdpa", "eager")),
    _Rule("evaluate.modes", _some_of(MODES), f"a list of {', '.join(MODES)}", MODES),
    _Rule(
        "evaluate.where",
        lambda where: re.fullmatch(r"[\w.-]+", where) is not None,
        "run, or the name of a resource",
    ),
    _Rule("evaluate.rounds", _whole(0), "an integer >= 0"),
    _choice("evaluate.grid", GRIDS),
    _Rule("evaluate.metrics", _optional(_one_of((QLORA_SAM,))), f"null or {QLORA_SAM}", (QLORA_SAM,)),
    _Rule("evaluate.pictures", _whole(0), "an integer >= 0"),
    _Rule("evaluate.points_per_side", _whole(1), "an integer >= 1"),
    _Rule(
        "evaluate.small_grid",
        is_grid,
        "for each automatic mode its parameters with a list of values, as "
        "{amg: {pred_iou_thresh: [0.6, 0.9]}}",
    ),
    _Rule("evaluate.mask_input", _some_of((True, False)), "a list of true and false"),
    _Rule("evaluate.max_images", _optional(_whole(1)), "null, or an integer >= 1"),
    _Rule(
        "evaluate.crop",
        _optional(lambda crop: len(crop) == 2 and all(map(_whole(1), crop))),
        "null, or two integers (pixels), as [256,256]",
    ),
    _Rule("evaluate.folds", _optional(_whole(2)), "null, or an integer >= 2"),
    _Rule("evaluate.fold", _optional(_whole(1)), "null, or an integer >= 1"),
    _Rule("evaluate.batch_size", _whole(1), "an integer >= 1"),
    _Rule("evaluate.dilation", _whole(0), "an integer >= 0 (pixels)"),
    _choice("dataset.split", ("seeded", "ordered")),
    _Rule(
        "dataset.split_seed",
        _optional(lambda value: _whole(0)(value) and value <= LARGEST_SEED),
        f"null (that of the run), or an integer from 0 to {LARGEST_SEED}",
    ),
    _choice("dataset.format", ("label_images", "coco")),
    _Rule(
        "dataset.channels",
        _optional(_are_channels),
        "null, or a list of one to three channels, by number from 0 or as r, g, b (null: an empty one), such "
        "as [2], [0,2] or [r,g,b]",
    ),
    _Rule("dataset.labels_are", _optional(_one_of(LABELS)), f"null, {' or '.join(LABELS)}", LABELS),
    _choice("dataset.on_problem", REACTIONS),
    _choice("dataset.empty_images", REACTIONS),
    _choice("dataset.crowds", ("skip", "include")),
    _Rule("dataset.train_pool", _whole(1), "an integer >= 1"),
    _Rule("dataset.n_validation", _whole(1), "an integer >= 1"),
    _Rule("dataset.n_unused", _whole(0), "an integer >= 0"),
    _Rule("dataset.min_object_size", _whole(0), "an integer >= 0 (pixels)"),
    _choice("cluster.kind", ("auto", "local", "slurm")),
    _Rule(
        "cluster.parallel",
        lambda value: value == AUTO or re.fullmatch(r"0*[1-9][0-9]*", value) is not None,
        "auto, or an integer >= 1",
    ),
    *(
        _Rule(f"cluster.{name}", _optional(_whole(1)), "null, or an integer >= 1")
        for name in ("array_parallelism", "max_array_size", "max_submit_jobs")
    ),
    _Rule(
        "cluster.signal_seconds",
        lambda value: _whole(1)(value) and value <= 65535,  # Slurm's own limit
        "an integer from 1 to 65535 (seconds)",
    ),
    _choice("resource.device", ("auto", "cpu", "cuda")),
    _Rule("resource.request.cores", _whole(1), "an integer >= 1"),
    _Rule("resource.request.memory_gb", _optional(_whole(1)), "null, or an integer >= 1 (GiB)"),
    _Rule("resource.request.gpus", _whole(0), "an integer >= 0"),
    _Rule("resource.request.time", _is_time, "a time as Slurm writes it, 2-00:00:00"),
    _Rule(
        "cluster.max_times",
        lambda times: all(map(_is_time, times.values())),
        "for each partition a time as Slurm writes it, as {gpu: 2-00:00:00}",
    ),
)


def allowed_values(field: str) -> str | None:
    """What a field (its dotted name) takes, in words; None where every value of its type is allowed."""
    return next((rule.allowed for rule in _RULES if rule.field == field), None)


def choices(field: str) -> tuple[str, ...]:
    """The values of a field (its dotted name) that have names; none where it takes any of its type."""
    return next((rule.choices for rule in _RULES if rule.field == field), ())


def check_values(config: RefsamConfig) -> None:
    """Raise ConfigError for the first field with a value that no run can have."""
    for rule in _RULES:
        *parents, name = rule.field.split(".")
        parent: Any = functools.reduce(getattr, parents, config)
        if parent is None:  # model.custom of a model that has none
            continue
        value = getattr(parent, name)
        if value == MISSING:
            raise ConfigError(f"{rule.field} must be given: {rule.field}=… (there is no default)")
        if not rule.holds(value):
            raise ConfigError(f"{rule.field} must be {rule.allowed}, got {value!r}")
    for name, setting in config.resource.settings.items():
        field = f"resource.settings.{name}"  # of a person's own file
        if not _whole(1)(setting.n_objects):
            raise ConfigError(f"{field}.n_objects must be an integer >= 1, got {setting.n_objects!r}")
        if setting.peft in (AUTO, MISSING):
            raise ConfigError(f"{field}.peft must be the name of a finetuning strategy, got {setting.peft!r}")


def excluded(config: RefsamConfig) -> str | None:
    """Which of the combinations of `exclude` a resolved run is; None where it is none of them.

    Raises:
        ConfigError: for a field that there is not.
    """
    values = leaves(to_values(config)) if config.exclude else {}
    for fields in config.exclude:
        unknown = next((name for name in fields if name not in values), None)
        if unknown is not None:
            raise ConfigError(f"exclude must name fields of a run, got {unknown!r}{nearest(unknown, values)}")
        if all(values[name] == value for name, value in fields.items()):
            return f"exclude: {' '.join(f'{name}={value}' for name, value in fields.items())}"
    return None


def combination_problem(
    config: RefsamConfig, total_images: int, names: Sequence[str] | None = None
) -> str | None:
    """Why a resolved run cannot be trained although each value is fine; None where it can.

    Args:
        config: with a resolved strategy and number of objects; with folds but none chosen: of all of them.
        total_images: images of the data set.
        names: of them, where they are known; without, a published split is not checked.
    """
    dataset = config.dataset
    if problem := model_problem(config.model) or _fold_problem(config, total_images):
        return problem
    if names is None and dataset.test is not None:
        return None if config.kind == Kind.baseline else _training_problem(config)
    try:
        names = names or [str(index) for index in range(total_images)]
        sizes = split_sizes(dataset, names, config.evaluate.folds)
    except ValueError as error:
        return f"dataset={dataset.name}: {error}"
    if config.kind == Kind.baseline:
        return None
    return n_images_problem(config, sizes) or _training_problem(config)


def _fold_problem(config: RefsamConfig, total_images: int) -> str | None:
    """Why the data set cannot be cross-validated as it was asked for."""
    dataset, folds, fold = config.dataset, config.evaluate.folds, config.evaluate.fold
    if folds is None:
        return (
            None if fold is None else f"evaluate.fold: {fold} was given without evaluate.folds; expected null"
        )
    for field, value, usual in (("test", dataset.test, None), ("split", dataset.split, SEEDED)):
        if value != usual:
            return (
                f"evaluate.folds={folds} does not go with dataset.{field}={value}, which says what tests of "
                f"dataset={dataset.name}, allowed: evaluate.folds=null"
            )
    if folds > total_images:
        return (
            f"evaluate.folds={folds}, and dataset={dataset.name} has {total_images} images, which is less "
            "than one test image per fold"
        )
    if fold is not None and fold > folds:
        return f"evaluate.fold must be null, or an integer from 1 to {folds}, got {fold}"
    return None


def _training_problem(config: RefsamConfig) -> str | None:
    return (
        strategy_problem(config.model, config.peft)
        or attention_problem(config.model, config.train.attention)
        or _missing_extra(config)
        or _schedule_problem(config.train)
        or _decoder_problem(config)
        or _engine_problem(config)
    )


def _missing_extra(config: RefsamConfig) -> str | None:
    """Which optional package a run needs that is not installed where the sweep is planned."""
    if importlib.util.find_spec(BITSANDBYTES) is not None:
        return None
    optimizer = config.train.optimizer
    if OPTIMIZERS[optimizer].library == BITSANDBYTES:
        return (
            f"train.optimizer={optimizer} needs bitsandbytes, which is not installed here: pip install "
            "'refsam[quantized]'"
        )
    if not is_quantized(config.peft):
        return None
    return (
        f"peft.name={config.peft.name} keeps weights in 4 bits and needs bitsandbytes, which is not "
        "installed here: pip install 'refsam[quantized]'"
    )


def _schedule_problem(train: TrainConfig) -> str | None:
    """Why the learning rate cannot be what its schedule says."""
    if train.warmup > 0 and train.scheduler == "plateau":
        return f"train.warmup={train.warmup} does not go with train.scheduler=plateau, allowed: 0"
    return None


def _decoder_problem(config: RefsamConfig) -> str | None:
    """Why only the segmentation decoder cannot be trained, where that was asked for."""
    train, name = config.train, config.peft.name
    if DECODER not in (train.train, name):
        return None
    if name not in (DECODER, AUTO):
        return f"train.train=decoder does not go with peft.name={name}, allowed: peft=auto, peft=decoder"
    for field, needed in (("decoder", True), ("engine", "refsam"), ("stop_on", "loss")):
        given = getattr(train, field)
        if given != needed:
            return (
                f"train.train=decoder trains the segmentation decoder alone and does not go with "
                f"train.{field}={str(given).lower()}, allowed: {str(needed).lower()}"
            )
    return None


def _engine_problem(config: RefsamConfig) -> str | None:
    """Why the choices for the training step do not go together."""
    train = config.train
    if train.epochs is None and train.max_steps is None:
        return "train.epochs must be an integer >= 1 without train.max_steps, got null"
    if train.embedding_dtype == "float16" and encoder_is_frozen(config.peft):
        for field, value in (("embedding_cache", "off"), ("engine", "micro_sam")):
            if getattr(train, field) == value:
                return (
                    f"train.embedding_dtype=float16 does not go with train.{field}={value}, which keeps no "
                    "embeddings, allowed: float32"
                )
    if train.engine == "micro_sam" and train.joint == "summed" and train.decoder:
        return "train.joint=summed does not go with train.engine=micro_sam, allowed: separate"
    if train.engine == "micro_sam" and train.optimizer_in_backward:
        return "train.optimizer_in_backward=true does not go with train.engine=micro_sam, allowed: false"
    if train.engine == "micro_sam" and train.stop_on == "mIoU":
        return (
            "train.stop_on=mIoU does not go with train.engine=micro_sam, whose validation returns no masks, "
            "allowed: loss"
        )
    later = {
        "max_grad_norm": train.max_grad_norm,
        "accumulate": None if train.accumulate == 1 else train.accumulate,
    }
    for name, given in later.items():
        if train.optimizer_in_backward and given is not None:
            return (
                f"train.optimizer_in_backward=true does not go with train.{name}={given}, which needs all "
                "gradients at once, allowed: false"
            )
    if train.precision == Precision.float16 and train.optimizer_in_backward:
        return (
            "train.optimizer_in_backward=true does not go with train.precision=float16, whose scaling needs "
            "all gradients at once, allowed: float32, bfloat16"
        )
    return None


def missing_setting(config: RefsamConfig) -> str:
    """Sentence for `auto` where the resource's file has no row for the model."""
    resource = config.resource
    known = ", ".join(sorted(resource.settings)) or "none"
    return (
        f"peft=auto: resource {resource.name} has no settings for {config.model.architecture} "
        f"(it has {known}); give peft= and n_objects="
    )
