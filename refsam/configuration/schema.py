"""The types of every configuration value.

The values themselves, with all defaults, are in the YAML files of `conf/`. A field that has no default here
is mandatory in the YAML; Hydra merges the files into these classes, so a misspelt key or a wrong type is an
error before anything runs.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

AUTO = "auto"
ALL = "all"  # of n_images: all that are for training
OWN_JOB = "run"  # of evaluate.where: no job of its own


class Kind(StrEnum):
    """What a run does: finetune a model, or only evaluate the initial one."""

    finetuning = "finetuning"
    baseline = "baseline"


class OnInvalid(StrEnum):
    """What a sweep does with combinations that cannot run: leave them out and say so, or refuse the sweep."""

    skip = "skip"
    error = "error"


class Precision(StrEnum):
    """Arithmetic of the training step; `auto` is chosen on the hardware that the run gets. `mixed` is what
    micro-sam takes: float16 on GPUs, bfloat16 on CPUs.
    """

    auto = "auto"
    mixed = "mixed"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Normalization(StrEnum):
    """How pixel values become 8 bit; `auto` keeps 8 bit images and stretches others between percentiles 1 and
    99. `patch` stretches between minimum and maximum: in training of each patch, elsewhere of the image.
    """

    auto = "auto"
    none = "none"
    minmax = "minmax"
    percentile = "percentile"
    patch = "patch"


@dataclass
class RequestConfig:
    """What the scheduler is asked for. Memory in GiB of main memory, time as Slurm writes it (D-HH:MM:SS)."""

    partition: str | None = None  # of the site's Slurm; null: its default partition
    gpu: str | None = None  # GPU type as the site's Slurm names it; null asks for no GPU
    gpus: int = 0  # how many
    cores: int = MISSING  # CPU cores
    # GiB of main memory; null: what the machine has, divided by the runs at a time, or what Slurm gives
    memory_gb: int | None = MISSING
    time: str = MISSING  # as Slurm writes it: 2-00:00:00


@dataclass
class SettingConfig:
    """What fits on a resource for one model: finetuning strategy and number of objects, and who found it
    out.
    """

    peft: str = MISSING
    n_objects: int = MISSING
    source: str = MISSING


@dataclass
class ResourceConfig:
    """A named kind of machine."""

    name: str = MISSING  # of the kind of machine, in tables and run ids
    device: str = MISSING  # cpu, cuda, or auto (whatever the machine has)
    device_memory_gb: int | None = None  # null: not known before the run
    compute_capability: float | None = None  # of its GPU, such as 7.5; null: not known before the run
    request: RequestConfig = field(default_factory=RequestConfig)
    # What fits, by model architecture (vit_t, vit_b, …).
    settings: dict[str, SettingConfig] = field(default_factory=dict)


@dataclass
class ArchitectureConfig:
    """Shape of an image encoder that no registry knows (a small ViT of our own). Sizes in pixels and
    channels.
    """

    image_size: int = MISSING  # pixels, height and width
    patch_size: int = MISSING  # pixels of one token
    embed_dim: int = MISSING  # channels of the encoder
    depth: int = MISSING  # blocks of the encoder
    num_heads: int = MISSING  # of attention in the encoder
    global_attn_indexes: list[int] = MISSING  # blocks with global attention
    window_size: int = MISSING  # tokens; 0: all attention is global
    prompt_embed_dim: int = MISSING  # channels of the image embedding
    position_scale: float = (
        MISSING  # of the random frequencies that encode positions; 1 is Segment Anything's
    )
    decoder_mlp_dim: int = MISSING  # channels of the mask decoder's MLP
    decoder_num_heads: int = MISSING  # of attention in the mask decoder
    unetr_features: int = MISSING  # of the finest level of the automatic-segmentation decoder


@dataclass
class ModelConfig:
    """A Segment Anything model."""

    name: str = MISSING  # in tables, and for micro-sam that of its weights
    architecture: str = MISSING  # vit_t, vit_b, vit_l, vit_h, vit_nano, or what the hub's model says
    weights: str = MISSING  # pretrained, random, or the path of a checkpoint (hf: of a folder, too)
    memory_gb: float = MISSING  # main memory that one local training process is planned with
    custom: ArchitectureConfig | None = None
    family: str = "micro_sam"  # or hf: transformers' SamModel
    hub_id: str | None = None  # what `pretrained` means for a model of family hf
    weights_hash: str | None = (
        None  # of a checkpoint, as it was when the run was planned; filled in by the plan
    )


@dataclass
class PeftConfig:
    """A finetuning strategy: which parts are frozen, and what is put into the image encoder, if anything.

    `name` is one of models/strategies.py, whose table says which of the other fields it takes. A field
    that is null or empty is not given.
    """

    name: str = MISSING  # auto, full, freeze_encoder, lora, dora, …
    freeze: list[str] = field(default_factory=list)  # of image_encoder, prompt_encoder, mask_decoder
    # Mask decoder and prompt encoder: train, freeze, or adapt (the decoder's queries and values, the rest is
    # frozen).
    decoder: str = "train"
    rank: int | None = None  # of the adapter
    update_matrices: list[str] = field(default_factory=list)  # of q, k, v, mlp
    alpha: Any = None  # a number, or learnable_scalar for adaptformer
    dropout: float | None = None  # of the adapter's input, 0 to 1
    projection: int | None = None  # channels of adaptformer's bottleneck
    share: float | None = None  # percent of the encoder's blocks, the last ones, that are adapted; null: all
    # Regular expressions for the full names of linear layers, as image_encoder.blocks.0.attn.qkv.
    targets: list[str] = field(default_factory=list)
    quantization: str | None = None  # of the frozen weights: nf4 or fp4
    double_quantization: bool | None = None  # whether the constants of the quantization are quantized too
    quantized_layers: str | None = None  # linear ones: encoder (null), or all of the model
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of peft's configuration


@dataclass
class DatasetConfig:
    """Pairs of images and label images.

    `images` and `labels` are glob patterns below `root`; `*_key` is the path inside HDF5 files. `channels`
    makes an image of one to three channels of a file, by their numbers from 0 or as r, g, b; null in the list
    is an empty one; null instead of it takes grey and RGB images as they are. `train_pool`
    images of the seeded order are for training, the next `n_validation` for validation, all others for
    testing.
    """

    name: str = MISSING  # in tables and run ids
    root: str = MISSING  # folder of the data set
    images: str = MISSING  # glob pattern below root
    labels: str = MISSING  # glob pattern below root
    image_key: str | None = None  # path of the images inside HDF5 files
    label_key: str | None = None  # path of the labels inside HDF5 files
    version: str | None = None  # identity of a published data set; null: identified by its files
    protocol: str | None = None  # of a study whose text and script differ, which one is followed
    n_files: int | None = None  # how many images a published data set has
    split: str = MISSING  # seeded (shuffled by split_seed) or ordered (sorted, as in the published study)
    split_seed: int | None = None  # null: the run's seed, so that other seeds test on other images
    train_pool: int = MISSING  # images for training, of which the first n_images are taken
    n_validation: int = MISSING  # images for validation, after those for training; all others test
    n_unused: int = MISSING  # images after validation that are left out (the resource study's other two)
    normalize: Normalization = Normalization.auto
    padding: bool = MISSING  # whether images smaller than train.patch_shape are padded with zeros
    min_object_size: int = MISSING  # pixels; smaller objects are ignored in training
    format: str = "label_images"  # or coco: `images` is a folder and `labels` an annotation file below `root`
    categories: list[str] = field(default_factory=list)  # of COCO's, by name; none: all
    on_problem: str = "refuse"  # annotations that cannot be used, or skip, which leaves them out
    empty_images: str = "skip"  # images without annotations, or refuse
    crowds: str = "skip"  # annotations with iscrowd=1, or include, which takes each as one object
    test: str | None = None  # pattern of the names that test, where they are published; null: by `split`
    channels: list[Any] | None = None
    # instances (each id is an object) or components (each connected piece of an id is); null: instances,
    # where the labels do not look like binary masks.
    labels_are: str | None = None
    archive: str | None = None  # what `refsam prepare` makes the data set of, where a person has to fetch it
    fingerprint: str | None = (
        None  # of the images and labels, when the run was planned; filled in by the plan
    )


@dataclass
class TrainConfig:
    """How a run is trained. The defaults in conf/train/default.yaml are those of the resource study.

    A field has a default here only if there are config.yaml that were frozen before it was: what they mean.
    """

    epochs: int | None = MISSING  # at most; null: as max_steps says
    max_steps: int | None = None  # steps of the optimizer at most; null: as the epochs say
    batch_size: int = MISSING  # patches of a batch
    accumulate: int = 1  # batches of a step of the optimizer, whose gradients are averaged
    min_samples: int = MISSING  # samples per epoch, oversampled where there are fewer patches
    validation_samples: int | None = MISSING  # patches of a validation; null: as many as fit into its images
    validation_patches: str = "fixed"  # and their prompts, the same in every epoch (fixed) or new ones (new)
    lr: float = MISSING  # learning rate at the start
    optimizer: str = MISSING  # adam, adamw, lion, adam8bit, paged_adam8bit or lion8bit
    betas: list[float] | None = None  # of its running means; null: the optimizer's own
    weight_decay: float | None = None  # null: the optimizer's own (0.01 of adamw, 0 of the others)
    max_grad_norm: float | None = None  # larger gradients are scaled down to this norm; null: no limit
    optimizer_in_backward: bool = False  # step the encoder's parameters while their gradients are made
    scheduler: str = "plateau"  # of the learning rate: plateau, or cosine (over all steps, down to 0)
    warmup: float = 0.0  # of cosine: the first share of all steps, in which the learning rate rises from 0
    scheduler_factor: float = MISSING  # of plateau: of the learning rate, where the validation stays
    scheduler_patience: int = MISSING  # of plateau: epochs without a better validation, before that
    early_stopping: int | None = MISSING  # epochs without a better one, before the end; null: never
    stop_on: str = "loss"  # what makes an epoch better: loss, or mIoU of the validation
    patch_shape: list[int] = MISSING  # (H, W) in pixels, multiples of 32
    n_sub_iterations: int = MISSING  # rounds of prompts in a step
    mask_prob: float = MISSING  # probability that the mask of the round before is an input
    box_distortion: float = MISSING  # of boxes as prompts, relative to their size
    prompts: str = "mixed"  # points and boxes in turn, boxes, points, or none: see configuration/prompts.py
    decoder: bool = MISSING  # with the automatic-segmentation decoder
    train: str = "all"  # what the strategy trains (all), or only that decoder (decoder, as peft=decoder)
    precision: Precision = Precision.auto
    patch_pool: Any = None  # patches that the epochs draw from, see configuration/patch_pool.py
    engine: str = "micro_sam"  # refsam, or micro_sam for its own step; the same gradients
    object_chunk: Any = "auto"  # objects decoded at a time, or auto: as many as the memory allows
    loss: str = "dice"  # dice (micro-sam's), or dice_focal; with the regression of the IoU
    focal_alpha: float | None = 0.25  # of dice_focal: weight of objects against background; null: the same
    # Logit from which a pixel is in the mask: of the IoU that dice_focal regresses, and of stop_on=mIoU.
    mask_threshold: float = 0.0
    save: str = "all"  # what checkpoints hold: all weights, or adapter (only what is trained)
    joint: str = "separate"  # with the decoder: separate (micro-sam's two optimizer steps), or summed (one)
    checkpoint_encoder: Any = "off"  # off, on, every how many blocks, or auto: where the memory asks for it
    checkpoint_decoder: Any = (
        "off"  # of automatic segmentation: off, on, or auto: where the memory asks for it
    )
    attention: str = "eager"  # fused, eager, sdpa (of family hf), or auto: fused, and for family hf sdpa
    embedding_cache: str = "off"  # of a frozen encoder: memory, disk (shared by runs), or off
    embedding_disk_gib: float | None = None  # of all embeddings on the disk; null: no limit
    embedding_dtype: str = "float32"  # of what is kept: float32, or float16, which is not exact
    workers: Any = MISSING  # processes that prepare samples, or auto: by the cores, and none on a CPU


@dataclass
class EvaluateConfig:
    """How the result is measured, see docs/evaluation.md."""

    modes: list[str] = MISSING  # point, box, amg, ais, apg, no_prompt
    where: str = OWN_JOB  # in the run's own job (run), or after it, as a job on this resource
    resource: ResourceConfig | None = None  # what `where` names; filled in by the plan
    rounds: int = 0  # of correcting prompts after the first one, for point and box
    # Whether the mask of the round before is an input of the next one; with both, each is measured.
    mask_input: list[bool] = field(default_factory=lambda: [False, True])
    grid: str = "study"  # of the automatic modes' parameters: study, small or defaults
    small_grid: dict[str, Any] = field(default_factory=dict)  # mode: parameter: values
    points_per_side: int = 32  # of the grid of points of amg
    metrics: str | None = None  # beside ours: qlora_sam, as that study's script measures; null: none
    pictures: int = 0  # test images whose segmentation is drawn, in each mode with its first prompt
    max_images: int | None = None  # of the test images, in the split's order
    crop: list[int] | None = None  # (H, W) pixels from the middle of each test image; null: the whole image
    folds: int | None = None  # of k-fold cross-validation, each a run of its own; null: one split
    fold: int | None = None  # which of the folds tests, from 1; null: all of them
    batch_size: int = MISSING  # prompts that are decoded at a time
    dilation: int = MISSING  # pixels around an object from which no prompt is taken, as in micro-sam
    save_predictions: bool = MISSING  # whether all segmentations are kept, as TIFF files


@dataclass
class ClusterConfig:
    """Where runs are executed."""

    kind: str = MISSING  # auto (Slurm where sbatch is, else local), local, slurm
    explicit: bool = MISSING  # whether a resource that this machine is not may be run here
    parallel: str = MISSING  # runs at a time on the machine at hand; auto: by memory and cores
    account: str | None = None  # that pays for the jobs, as sbatch takes it
    qos: str | None = None  # quality of service, as sbatch takes it
    constraint: str | None = None  # features that a node must have, as sbatch takes them
    exclude: str | None = None  # nodes that get no run, as sbatch takes them
    # Further options of sbatch, each as --name=value or --name: [--mail-type=END,--licenses=matlab].
    extra: list[str] = field(default_factory=list)
    array_parallelism: int | None = None  # runs of one array at a time; null: as many as the site allows
    max_array_size: int | None = None  # runs in one array at most; null: as many as scontrol says
    max_submit_jobs: int | None = None  # jobs in the queue at most; null: as many as sacctmgr says
    # The longest time of a job by partition, where scontrol does not say it: {gpu: 2-00:00:00}.
    max_times: dict[str, str] = field(default_factory=dict)
    script_only: bool = False  # write job scripts for a person to submit instead of submitting
    snapshot: bool = (
        False  # jobs run a copy of the code as it is now instead of what is there when they start
    )
    # From Slurm's signal to the time limit, in which a run saves what it has; a quarter of the limit at most.
    signal_seconds: int = 120
    template: str | None = None  # what a job does first: a file of slurm_templates, without .sh, or a path


@dataclass
class RefsamConfig:
    """One run: every value it was made from."""

    kind: Kind = Kind.finetuning  # finetuning, or baseline: only evaluate the initial model
    resource: ResourceConfig = field(default_factory=ResourceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    n_images: Any = MISSING  # training images: a positive number, or all that are for training
    n_objects: Any = MISSING  # a positive number, or auto: what the resource's file says for the model
    seed: int = MISSING  # of the training, from 0
    name: str | None = None  # of the sweep; null: derived from its runs
    runs: str = MISSING  # folder of the run directories
    data: str = MISSING  # folder of the data sets
    baseline: bool = MISSING  # whether the initial model is evaluated beside the finetuned ones
    dry_run: bool = MISSING  # print the plan and do nothing
    wait: bool = False  # whether the command stays until Slurm has ended all runs
    on_invalid: OnInvalid = OnInvalid.skip  # combinations that cannot run: skip, or error
    # Combinations that a sweep leaves out, each as fields and their values: [{resource.name: v100}].
    exclude: list[dict[str, Any]] = field(default_factory=list)


def register() -> None:
    """Put the schema into Hydra's ConfigStore, where conf/config.yaml finds it as `schema`."""
    from hydra.core.config_store import ConfigStore  # what only reads records needs no Hydra

    store = ConfigStore.instance()
    if "schema.yaml" in store.repo:  # making the node takes a tenth of a composition
        return
    store.store(name="schema", node=RefsamConfig, provider="refsam")
    # Hydra copies all its sources for every look-up, and this store with them, which takes a second of
    # --help. It is only read: what it hands out is copied on the way.
    vars(store)["__deepcopy__"] = lambda memo: store
