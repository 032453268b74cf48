"""How much room the checkpoints of runs take, estimated before anything is trained."""

from collections.abc import Iterable

from refsam.configuration.schema import Kind, RefsamConfig
from refsam.models.strategies import trained_share

BYTES = 4  # of a parameter in float32
ADAM_STATES = 2  # values that Adam keeps for each trained parameter
# Parameters of the image encoders, counted in the models of segment_anything, MobileSAM and transformers.
ENCODERS = {
    "vit_t": 6_065_276,
    "vit_b": 89_670_912,
    "vit_l": 308_278_272,
    "vit_h": 637_026_048,
    "slimsam_50": 23_897_216,
    "slimsam_77": 5_658_968,
}
PROMPT_EMBED_DIM = 256  # of all of them
PROMPTS_AND_MASKS = 4_064_816  # parameters of prompt encoder and mask decoder
SEGMENTATION_DECODER = 9_593_159  # parameters of micro-sam's UNETR decoder


def checkpoint_bytes(config: RefsamConfig) -> int:
    """What best.pt, latest.pt and the latest.pt before it take in the end. 0 for a baseline."""
    if config.kind == Kind.baseline:
        return 0
    encoder, rest = _parameters(config)
    trained = round(trained_share(config.peft) * encoder) + rest
    best = BYTES * (trained if config.train.save == "adapter" else encoder + rest)
    latest = best + BYTES * ADAM_STATES * trained
    return best + 2 * latest


def room_needed(configs: Iterable[RefsamConfig]) -> int:
    """Bytes that the checkpoints of these runs take, the one included that is being written at the end."""
    sizes = [checkpoint_bytes(config) for config in configs]
    return sum(sizes) + max(sizes, default=0) // 2


def _parameters(config: RefsamConfig) -> tuple[int, int]:
    """Of the image encoder, and of everything else."""
    custom = config.model.custom
    if custom is None:
        known = ENCODERS.get(config.model.architecture, max(ENCODERS.values()))
        return known, PROMPTS_AND_MASKS + (SEGMENTATION_DECODER if config.train.decoder else 0)
    # Of each block: queries, keys, values and projection, and an MLP four times as wide.
    blocks = 12 * custom.depth * custom.embed_dim**2
    patches = 3 * custom.patch_size**2 * custom.embed_dim
    share = custom.prompt_embed_dim / PROMPT_EMBED_DIM
    decoder = SEGMENTATION_DECODER * (custom.unetr_features / 64) ** 2 if config.train.decoder else 0
    return blocks + patches, round(PROMPTS_AND_MASKS * share**2 + decoder)
