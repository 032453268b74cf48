"""Models of the Hugging Face hub on this disk: in the hub's cache or in a folder. Fetches nothing itself."""

import hashlib
import json
from pathlib import Path

from refsam.configuration.pinned import revision
from refsam.configuration.schema import ModelConfig
from refsam.errors import ConfigError

CONFIGURATION = "config.json"
# As transformers looks for them: the first one that is there is loaded.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ANY = "hf"  # the model of conf/ that takes any hub id
KIND = "sam"  # model_type of a SamModel
# transformers' defaults (SamVisionConfig, SamMaskDecoderConfig), which a configuration may leave out.
DEPTH, CHANNELS, MLP_RATIO = 12, 768, 4
DECODER_CHANNELS = 256


def snapshot(hub_id: str) -> Path | None:
    """The folder in the hub's cache that holds a model, its weights included; None where it is not there.

    Of a model whose commit is pinned, no other one is taken.
    """
    from huggingface_hub import try_to_load_from_cache  # takes half a second, for those who have such a model

    found = try_to_load_from_cache(hub_id, CONFIGURATION, revision=revision(hub_id))
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if any((folder / name).exists() for name in WEIGHTS) else None


def missing(name: str, hub_id: str | None) -> str:
    """Sentence for a model that is not in the cache."""
    # model=hf is any model of the hub, and has to be told which.
    wanted = f"model={name}" if name != ANY else f"model={name} model.hub_id={hub_id}"
    return (
        f"model.hub_id: {hub_id} is not in the Hugging Face hub's cache; fetch it on a machine with internet "
        f"with: refsam prepare {wanted}, or give a folder as model.weights=FOLDER"
    )


def require_model(folder: Path) -> None:
    """Raise ConfigError for a folder that save_pretrained of a SamModel has not written."""
    given = f"model.weights: {folder}"
    try:
        kind = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{given} has no {CONFIGURATION} that can be read; expected a folder as save_pretrained of "
            "transformers.SamModel writes it"
        ) from error
    if kind != KIND:
        raise ConfigError(f"{given} holds a model of type {kind}; expected {KIND} (transformers.SamModel)")
    if not any((folder / name).exists() for name in WEIGHTS):
        raise ConfigError(f"{given} holds no weights; needed is one of {', '.join(WEIGHTS)}")


def model_shape(model: ModelConfig) -> tuple[int, int, int, int] | None:
    """Blocks and channels of a model's image encoder, channels of its MLP, and of the mask decoder, from its
    configuration.

    None where the model is not on this disk, or has a configuration without an encoder like a SamModel's.
    """
    folder = snapshot(str(model.hub_id)) if model.weights == "pretrained" else Path(model.weights)
    try:
        parts = json.loads(((folder or Path()) / CONFIGURATION).read_text(encoding="utf-8"))
        values = parts["vision_config"]
        channels = int(values.get("hidden_size", CHANNELS))
        hidden = values.get("mlp_dim") or MLP_RATIO * channels
        decoder = (parts.get("mask_decoder_config") or {}).get("hidden_size", DECODER_CHANNELS)
        return int(values.get("num_hidden_layers", DEPTH)), channels, int(hidden), int(decoder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def folder_hash(folder: Path) -> str:
    """Hash of a model's configuration and weights, wherever the folder lies."""
    digest = hashlib.sha256()
    names = {CONFIGURATION, *WEIGHTS}
    files = [
        path for path in folder.iterdir() if path.name in names or path.suffix in (".safetensors", ".bin")
    ]
    for path in sorted(files):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:32]}"
