"""Training of one run: what micro_sam.training.train_sam puts together, with records and resume."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from refsam.configuration.early_stopping import most_steps
from refsam.configuration.patch_pool import FIXED, encoder_is_frozen, pool_size, with_patch_pool
from refsam.configuration.schema import Precision, RefsamConfig, TrainConfig
from refsam.errors import ConfigError
from refsam.models.strategies import DECODER
from refsam.records.paths import RunPaths
from refsam.science.data import TorchLoader, ending_workers, worker_count
from refsam.science.engine.cache import EmbeddingCache, MemoryStore, Store, shared_store
from refsam.science.engine.prompts import BooleanPrompts
from refsam.science.engine.setup import Savings, apply_savings, choose_savings, describe_savings
from refsam.science.hardware import choose_device, choose_precision, peak_memory, resident_memory
from refsam.science.micro_sam import UNETR, IterativePromptGenerator, TrainableSAM
from refsam.science.models import build_unetr, load_model, trainable_sam
from refsam.science.randomness import derived_seed, seed_everything
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.parts import count_parameters
from refsam.science.strategies.quantization import weights_bytes
from refsam.science.strategies.state import CheckpointPolicy, state_bytes, trained_state
from refsam.science.training import loop
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.checkpoints import previous_latest, read_latest
from refsam.science.training.encoder import Encoder
from refsam.science.training.learner import Learner
from refsam.science.training.losses import instance_loss, mask_loss_of
from refsam.science.training.micro_sam_step import micro_sam_step
from refsam.science.training.optimizers import StepInBackward, build_optimizer, build_schedule
from refsam.science.training.prompts import Prompts
from refsam.science.training.recorder import Progress, Recorder, TrainingLimits
from refsam.science.training.step import Interactive, Segmentation, Step, decoder_step, refsam_step
from refsam.science.training.summed import summed_step
from refsam.system.files import write_json


@dataclass(frozen=True)
class TrainingSummary:
    """What results/training.json holds. Times in seconds over all attempts, memory in GiB of this one."""

    best_epoch: int
    best_metric: float
    epochs: int
    iterations: int
    seconds_total: float
    seconds_to_best: float
    seconds_per_step: float
    peak_memory_gib: float
    base_memory_gib: float  # before the first step
    trainable_parameters: int
    total_parameters: int
    saved_bytes: int  # of the values that were trained, which is what has to be kept
    weights_bytes: int  # of the model in memory, quantized weights as they lie there
    precision: str
    early_stopped: bool
    savings: dict[str, Any]  # as in results/savings.json


@dataclass
class Training:
    """A run's training before its first step, and what its records say of it.

    Attributes:
        parameter_counts: trained ones, and all.
        weights_bytes: of the model in memory, quantized weights as they lie there.
        savings: as in results/savings.json.
    """

    learner: Learner
    step: Step
    prompts: Prompts
    loaders: tuple[TorchLoader, TorchLoader]
    recorder: Recorder
    parameter_counts: tuple[int, int]
    weights_bytes: int
    savings: dict[str, Any]


def train(
    config: RefsamConfig,
    paths: RunPaths,
    loaders: tuple[TorchLoader, TorchLoader],
    report: Callable[[Progress], None],
) -> TrainingSummary:
    """Finetune the run's model, from its latest.pt where there is one, and write the summary.

    Args:
        config: of the run, everything resolved.
        paths: where history, checkpoints, TensorBoard's logs and the summary go.
        loaders: of training and validation: images (batch, 3, H, W) float of values 0 to 255, and labels
            (batch, 4, H, W) float: instances, foreground, center and boundary distances; without the decoder
            only the instances.
        report: called after every step.

    Raises:
        ConfigError: for values of the configuration that cannot be used.
        Diverged: when the validation metric is no number.
    """
    for folder in (paths.checkpoints, paths.tensorboard, paths.results):
        folder.mkdir(parents=True, exist_ok=True)
    seed_everything(config.seed, "model")
    training = build_training(config, paths, loaders, report)
    # Before the first step: what an attempt that runs out of memory tells the next one.
    write_json(paths.savings, training.savings)
    device = training.learner.arithmetic.device
    with ending_workers(loaders):
        _go_on(training.recorder, paths)
        base_memory_gib = resident_memory(device)
        if not training.recorder.finished:
            loop.train(training.learner, training.step, loaders, training.recorder, config.seed)
    summary = _summarize(training, base_memory_gib)
    write_json(paths.training, asdict(summary))
    previous_latest(paths).unlink(missing_ok=True)
    return summary


def _go_on(recorder: Recorder, paths: RunPaths) -> None:
    """Take over latest.pt, where there is one, without keeping it: it is as large as model and optimizer."""
    latest = read_latest(paths)
    if latest is not None:
        recorder.load(latest)


def build_training(
    config: RefsamConfig,
    paths: RunPaths,
    loaders: tuple[TorchLoader, TorchLoader],
    report: Callable[[Progress], None],
) -> Training:
    """The training of a run, before its first step."""
    settings = config.train
    device = choose_device(config)
    precision = choose_precision(settings.precision, device)
    loaded = load_model(config.model, config.seed, device)
    model = trainable_sam(apply_strategy(loaded.sam, config.peft)).to(device)
    unetr = None
    if settings.decoder:
        seed = derived_seed(config.seed, "decoder")
        unetr = build_unetr(loaded.sam, config.model, loaded.decoder_state, seed, device)
    savings = None
    if settings.engine == "refsam":
        savings = choose_savings(config, loaded.sam, device, unetr)
        apply_savings(loaded.sam, savings, unetr)
    parameters = _parameters(model, unetr)
    limits = _limits(settings, len(loaders[0]))
    learner = _learner(settings, model, unetr, parameters, Arithmetic(precision, device), limits.steps)
    prompts = _prompts(config, model)
    if savings is None:
        loss = mask_loss_of(settings)
        step = micro_sam_step(learner, prompts, loss, prompts.rounds(settings.n_sub_iterations))
    else:
        step = _refsam_step(config, paths, learner, prompts, savings)
    keeping = CheckpointPolicy(config.peft, adapter_only=settings.save == "adapter")
    return Training(
        learner=learner,
        step=step,
        prompts=prompts,
        loaders=loaders,
        recorder=Recorder(paths, learner, keeping, limits, config.seed, report),
        parameter_counts=count_parameters(parameters),
        weights_bytes=weights_bytes(model),
        savings={
            **describe_savings(config, savings),
            "patch_pool": pool_size(config, len(loaders[0]) * settings.batch_size),
            "precision": precision.value,
            "hardware_precision": choose_precision(Precision.auto, device).value,
            "workers": worker_count(config),
        },
    )


def _parameters(model: TrainableSAM, unetr: UNETR | None) -> list[torch.nn.Parameter]:
    """Of both models, those of the encoder that they share once."""
    parameters = list(model.parameters())
    if unetr is not None:
        parameters += [value for name, value in unetr.named_parameters() if not name.startswith("encoder")]
    return parameters


def _learner(
    settings: TrainConfig,
    model: TrainableSAM,
    unetr: UNETR | None,
    parameters: list[torch.nn.Parameter],
    arithmetic: Arithmetic,
    steps: int,
) -> Learner:
    optimizer = build_optimizer(settings, parameters, arithmetic.device)
    if settings.optimizer_in_backward:
        if arithmetic.precision == Precision.float16:
            raise ConfigError(
                f"train.optimizer_in_backward=true: on {arithmetic.device} the precision is float16, whose "
                "scaling needs all gradients at once, allowed: train.precision=float32 or bfloat16"
            )
        StepInBackward(optimizer, model.sam.image_encoder.parameters())
    schedule = build_schedule(settings, optimizer, steps)
    return Learner(model, unetr, optimizer, schedule, arithmetic, settings.max_grad_norm, settings.accumulate)


def _prompts(config: RefsamConfig, model: TrainableSAM) -> Prompts:
    settings = config.train
    return Prompts(
        settings.prompts,
        model.transform,
        box_distortion=settings.box_distortion,
        n_objects=config.n_objects,
        mask_prob=settings.mask_prob,
        generator=BooleanPrompts() if settings.engine == "refsam" else IterativePromptGenerator(),
    )


def _refsam_step(
    config: RefsamConfig, paths: RunPaths, learner: Learner, prompts: Prompts, savings: Savings
) -> Step:
    settings, arithmetic = config.train, learner.arithmetic
    encoder = Encoder(learner.model)
    if encoder_is_frozen(config.peft):
        embeddings = _embeddings(config, paths, learner, savings)
        encoder = Encoder(
            learner.model,
            embeddings,
            pooled=with_patch_pool(config).train.patch_pool is not None,
            fixed=settings.validation_patches == FIXED,
        )
    interactive = Interactive(
        model=learner.model,
        encoder=encoder,
        prompts=prompts,
        loss=mask_loss_of(settings),
        arithmetic=arithmetic,
        n_sub_iterations=prompts.rounds(settings.n_sub_iterations),
        object_chunk=savings.object_chunk,
        iou_threshold=settings.mask_threshold if settings.stop_on == "mIoU" else None,
    )
    if learner.unetr is None:
        return refsam_step(interactive, None)
    segmentation = Segmentation(learner.unetr, encoder, instance_loss(), arithmetic)
    if config.peft.name == DECODER:
        return decoder_step(segmentation)
    make = summed_step if settings.joint == "summed" else refsam_step
    return make(interactive, segmentation)


def _limits(settings: TrainConfig, batches_per_epoch: int) -> TrainingLimits:
    steps_per_epoch = math.ceil(batches_per_epoch / settings.accumulate)
    return TrainingLimits(
        steps_per_epoch, int(most_steps(settings, steps_per_epoch)), settings.early_stopping
    )


def _embeddings(config: RefsamConfig, paths: RunPaths, learner: Learner, savings: Savings) -> EmbeddingCache:
    settings, arithmetic = config.train, learner.arithmetic
    dtype = torch.float16 if settings.embedding_dtype == "float16" else torch.float32
    store: Store = MemoryStore(savings.cache_gib)
    if settings.embedding_cache == "disk":
        words = f"{arithmetic.precision.value} kept as {settings.embedding_dtype}, patches"
        store = shared_store(config, paths, learner.model.sam.image_encoder, arithmetic.device, words)
    return EmbeddingCache(store, arithmetic.device, dtype)


def _summarize(training: Training, base_memory_gib: float) -> TrainingSummary:
    recorder, learner = training.recorder, training.learner
    trainable, total = training.parameter_counts
    decoder = learner.decoder_state().get("decoder_state", {})
    return TrainingSummary(
        best_epoch=recorder.best_epoch,
        best_metric=recorder.best_metric,
        epochs=recorder.epoch,
        iterations=recorder.iteration,
        seconds_total=recorder.train_time,
        seconds_to_best=recorder.history.train_time(recorder.best_epoch),
        seconds_per_step=recorder.step_seconds / recorder.iteration,
        # The kernel counts the peak and what is held now by two counters, some pages apart.
        peak_memory_gib=max(peak_memory(learner.arithmetic.device), base_memory_gib),
        base_memory_gib=base_memory_gib,
        trainable_parameters=trainable,
        total_parameters=total,
        saved_bytes=state_bytes({**trained_state(learner.model), **decoder}),
        weights_bytes=training.weights_bytes,
        precision=learner.arithmetic.precision.value,
        early_stopped=recorder.stopped_early,
        savings=training.savings,
    )
