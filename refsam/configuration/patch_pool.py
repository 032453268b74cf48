"""`train.patch_pool`: how many different patches the epochs of a training draw from.

A number, `4x` for four times as many as an epoch has samples, or null for new patches in every epoch. With a
frozen encoder the embeddings of a pool are computed once, so there `auto` is a pool, and elsewhere null. It
changes what is trained on and is part of a run's identity.
"""

import re
from dataclasses import replace
from typing import Any

from refsam.configuration.schema import AUTO, PeftConfig, RefsamConfig

# Of train.validation_patches: the same patches in every epoch, or new ones.
FIXED, NEW = "fixed", "new"
# Few enough that their embeddings fit into memory (200 of 4 MiB in the study's settings), and enough that
# the encoder is a twenty-fifth of what it was in 100 epochs.
POOL_OF_FROZEN_ENCODER = "4x"
_TIMES = re.compile(r"([1-9]\d*)x")


def encoder_is_frozen(peft: PeftConfig) -> bool:
    """Whether a strategy leaves the image encoder's function as it is."""
    return "image_encoder" in peft.freeze


def with_patch_pool(config: RefsamConfig) -> RefsamConfig:
    """The configuration with `auto` replaced; its strategy has to be resolved."""
    if config.train.patch_pool != AUTO:
        return config
    pool = POOL_OF_FROZEN_ENCODER if encoder_is_frozen(config.peft) else None
    return replace(config, train=replace(config.train, patch_pool=pool))


def is_patch_pool(value: Any) -> bool:
    """Whether a value of train.patch_pool is allowed."""
    if isinstance(value, str):
        return value == AUTO or _TIMES.fullmatch(value) is not None
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def pool_size(config: RefsamConfig, samples: int) -> int | None:
    """Number of patches in the pool where an epoch has this many samples; None without a pool."""
    pool = with_patch_pool(config).train.patch_pool
    times = _TIMES.fullmatch(str(pool))
    return samples * int(times.group(1)) if times else pool
