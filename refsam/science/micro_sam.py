"""All that refsam uses of micro-sam, and of torch-em's losses and UNETR, in one place.

micro-sam's next major version moves these paths, so pyproject.toml has an upper bound of its version.
"""

from micro_sam import util
from micro_sam.evaluation.instance_segmentation import (
    default_grid_search_values_amg,
    default_grid_search_values_apg,
    default_grid_search_values_instance_segmentation_with_decoder,
)
from micro_sam.inference import batched_inference, batched_tiled_inference
from micro_sam.instance_segmentation import (
    AutomaticMaskGenerator,
    AutomaticPromptGenerator,
    DecoderAdapter,
    InstanceSegmentationWithDecoder,
    TiledAutomaticMaskGenerator,
    TiledAutomaticPromptGenerator,
    TiledInstanceSegmentationWithDecoder,
    _derive_point_prompts,
    get_unetr,
)
from micro_sam.models import peft_sam
from micro_sam.models.peft_sam import AdaptFormer, AttentionLoRA, FacTSurgery, MLPLoRA, ScaleShiftLayer
from micro_sam.prompt_generators import IterativePromptGenerator, PointAndBoxPromptGenerator
from micro_sam.training import default_sam_dataset
from micro_sam.training.joint_sam_trainer import JointSamLogger, JointSamTrainer
from micro_sam.training.sam_trainer import SamLogger, SamTrainer
from micro_sam.training.trainable_sam import TrainableSAM
from micro_sam.training.util import ConvertToSamInputs
from micro_sam.util import (
    _compute_hash,
    get_centers_and_bounding_boxes,
    mask_data_to_segmentation,
    precompute_image_embeddings,
    set_precomputed,
)
from torch_em.loss import DiceBasedDistanceLoss, DiceLoss
from torch_em.model import UNETR
