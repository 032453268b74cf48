"""All that the training uses of micro-sam, and of torch-em's losses, in one place.

micro-sam's next major version moves these paths, so pyproject.toml has an upper bound of its version.
"""

from micro_sam.prompt_generators import IterativePromptGenerator
from micro_sam.training.joint_sam_trainer import JointSamLogger, JointSamTrainer
from micro_sam.training.sam_trainer import SamLogger, SamTrainer
from micro_sam.training.trainable_sam import TrainableSAM
from micro_sam.training.util import ConvertToSamInputs
from torch_em.loss import DiceBasedDistanceLoss, DiceLoss
from torch_em.model import UNETR

__all__ = [
    "UNETR",
    "ConvertToSamInputs",
    "DiceBasedDistanceLoss",
    "DiceLoss",
    "IterativePromptGenerator",
    "JointSamLogger",
    "JointSamTrainer",
    "SamLogger",
    "SamTrainer",
    "TrainableSAM",
]
