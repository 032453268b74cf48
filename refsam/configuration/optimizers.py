"""The optimizers by the names that train.optimizer gives them; known without torch, for the plan."""

from dataclasses import dataclass

from refsam.configuration.schema import TrainConfig

BITSANDBYTES = "bitsandbytes"


@dataclass(frozen=True)
class Optimizer:
    """What one value of train.optimizer means.

    Attributes:
        library: `torch` or `bitsandbytes`, whose module `optim` has the class.
        kind: name of the class.
        weight_decay: that it has where train.weight_decay gives none.
        needs_gpu: whether it works on GPUs only.
    """

    library: str
    kind: str
    weight_decay: float = 0.0
    needs_gpu: bool = False


OPTIMIZERS = {
    "adam": Optimizer("torch", "Adam"),
    "adamw": Optimizer("torch", "AdamW", weight_decay=0.01),
    "lion": Optimizer(BITSANDBYTES, "Lion"),
    "adam8bit": Optimizer(BITSANDBYTES, "Adam8bit"),
    "paged_adam8bit": Optimizer(BITSANDBYTES, "PagedAdam8bit", needs_gpu=True),
    "lion8bit": Optimizer(BITSANDBYTES, "Lion8bit"),
}


def own_weight_decay(train: TrainConfig) -> bool:
    """Whether a training has the weight decay that its optimizer has without train.weight_decay."""
    return train.weight_decay in (None, OPTIMIZERS[train.optimizer].weight_decay)
