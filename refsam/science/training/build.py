"""Training of one run: what micro_sam.training.train_sam puts together, with records and resume."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from micro_sam.training.util import ConvertToSamInputs
from torch_em.loss import DiceBasedDistanceLoss

from refsam.configuration.patch_pool import encoder_is_frozen, pool_size, with_patch_pool
from refsam.configuration.schema import Precision, RefsamConfig, TrainConfig
from refsam.errors import BadInput
from refsam.records.files import write_json
from refsam.records.paths import RunPaths
from refsam.science.data import TorchLoader, ending_workers, worker_count
from refsam.science.engine.cache import EmbeddingCache, MemoryStore, Store, shared_store
from refsam.science.engine.setup import Savings, apply_savings, choose_savings, describe_savings
from refsam.science.hardware import choose_device, choose_precision, peak_memory
from refsam.science.models import build_unetr, load_model, trainable_sam
from refsam.science.randomness import derived_seed, seed_everything
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.parts import count_parameters
from refsam.science.strategies.quantization import weights_bytes
from refsam.science.strategies.state import Keeping, state_bytes, trained_state
from refsam.science.training.checkpoints import previous_latest, read_latest
from refsam.science.training.loop import (
    LowMemoryJointSamTrainer,
    LowMemorySamTrainer,
    Progress,
    RecordedJointSamLogger,
    RecordedJointSamTrainer,
    RecordedSamLogger,
    RecordedSamTrainer,
    RecordedTraining,
    SummedJointSamTrainer,
)
from refsam.science.training.optimizers import StepInBackward, build_optimizer


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
        BadInput: for values of the configuration that cannot be used.
        Diverged: when the validation metric is no number.
    """
    for folder in (paths.checkpoints, paths.tensorboard, paths.results):
        folder.mkdir(parents=True, exist_ok=True)
    seed_everything(config.seed, "model")
    trainer = build_trainer(config, paths, loaders, report)
    # Before the first step: what an attempt that runs out of memory tells the next one.
    write_json(paths.savings, trainer.savings)
    with ending_workers(loaders):
        trainer.run(read_latest(paths))
    summary = _summarize(trainer)
    write_json(paths.training, asdict(summary))
    previous_latest(paths).unlink(missing_ok=True)
    return summary


def build_trainer(
    config: RefsamConfig,
    paths: RunPaths,
    loaders: tuple[TorchLoader, TorchLoader],
    report: Callable[[Progress], None],
) -> RecordedTraining:
    """The trainer of a run, before its first step."""
    settings = config.train
    device = choose_device(config)
    loaded = load_model(config.model, config.seed, device)
    model = trainable_sam(apply_strategy(loaded.sam, config.peft)).to(device)
    parameters = list(model.parameters())
    arguments: dict[str, Any] = {}
    unetr = None
    if settings.decoder:
        seed = derived_seed(config.seed, "decoder")
        unetr = build_unetr(loaded.sam, config.model, loaded.decoder_state, seed, device)
        parameters += [value for name, value in unetr.named_parameters() if not name.startswith("encoder")]
        instance_loss = DiceBasedDistanceLoss(mask_distances_in_bg=True)
        arguments = {"unetr": unetr, "instance_loss": instance_loss, "instance_metric": instance_loss}
    savings = None
    precision = choose_precision(settings.precision, device)
    if settings.engine == "refsam":
        savings = choose_savings(config, loaded.sam, device, unetr)
        apply_savings(loaded.sam, savings, unetr)
        arguments["object_chunk"] = savings.object_chunk
        if encoder_is_frozen(config.peft):
            arguments["embeddings"] = _embeddings(
                config, paths, loaded.sam.image_encoder, savings, device, precision
            )
            arguments["pooled"] = with_patch_pool(config).train.patch_pool is not None
    optimizer = build_optimizer(settings, parameters, device)
    if settings.optimizer_in_backward:
        if precision == Precision.float16:
            raise BadInput(
                f"train.optimizer_in_backward=true: on {device} the precision is float16, whose scaling "
                "needs all gradients at once, allowed: train.precision=float32 or bfloat16"
            )
        StepInBackward(optimizer, loaded.sam.image_encoder.parameters())
    trainer: RecordedTraining = _trainer_class(settings)(
        paths=paths,
        seed=config.seed,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        report=report,
        keeping=Keeping(config.peft, adapter_only=settings.save == "adapter"),
        loss=settings.loss,
        prompts=settings.prompts,
        train_loader=loaders[0],
        val_loader=loaders[1],
        model=model,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="min", factor=settings.scheduler_factor, patience=settings.scheduler_patience
        ),
        device=device,
        logger=RecordedJointSamLogger if settings.decoder else RecordedSamLogger,
        convert_inputs=ConvertToSamInputs(
            transform=model.transform, box_distortion_factor=settings.box_distortion
        ),
        n_objects_per_batch=config.n_objects,
        n_sub_iteration=settings.n_sub_iterations,
        mask_prob=settings.mask_prob,
        early_stopping=settings.early_stopping,
        compile_model=False,
        **_precision_arguments(precision),
        **arguments,
    )
    trainer.parameter_counts = count_parameters(parameters)
    trainer.weights_bytes = weights_bytes(model)
    trainer.savings = {
        **describe_savings(config, savings),
        "patch_pool": pool_size(config, trainer.steps_per_epoch * settings.batch_size),
        "precision": precision.value,
        "hardware_precision": choose_precision(Precision.auto, device).value,
        "workers": worker_count(config),
    }
    return trainer


def _embeddings(
    config: RefsamConfig,
    paths: RunPaths,
    encoder: torch.nn.Module,
    savings: Savings,
    device: torch.device,
    precision: Precision,
) -> EmbeddingCache:
    settings = config.train
    dtype = torch.float16 if settings.embedding_dtype == "float16" else torch.float32
    store: Store = MemoryStore(savings.cache_gib)
    if settings.embedding_cache == "disk":
        arithmetic = f"{precision.value} kept as {settings.embedding_dtype}, patches"
        store = shared_store(config, paths, encoder, device, arithmetic)
    return EmbeddingCache(store, device, dtype)


def _trainer_class(settings: TrainConfig) -> type[RecordedTraining]:
    if not settings.decoder:
        return LowMemorySamTrainer if settings.engine == "refsam" else RecordedSamTrainer
    if settings.engine != "refsam":
        return RecordedJointSamTrainer
    return SummedJointSamTrainer if settings.joint == "summed" else LowMemoryJointSamTrainer


def _precision_arguments(precision: Precision) -> dict[str, Any]:
    if precision == Precision.float32:
        return {"mixed_precision": False}
    return {"mixed_precision": True, "mixed_precision_dtype": precision.value}


def _summarize(trainer: RecordedTraining) -> TrainingSummary:
    trainable, total = trainer.parameter_counts
    mixed = trainer.mixed_precision
    decoder = trainer._decoder_state().get("decoder_state", {})
    return TrainingSummary(
        best_epoch=trainer._best_epoch,
        best_metric=trainer.best_metric,
        epochs=trainer.epochs_finished,
        iterations=trainer.iteration,
        seconds_total=trainer.train_time,
        seconds_to_best=trainer.history.train_time(trainer._best_epoch),
        seconds_per_step=trainer.step_seconds / trainer.iteration,
        # The kernel counts the peak and what is held now by two counters, some pages apart.
        peak_memory_gib=max(peak_memory(trainer.device), trainer.base_memory_gib),
        base_memory_gib=trainer.base_memory_gib,
        trainable_parameters=trainable,
        total_parameters=total,
        saved_bytes=state_bytes({**trained_state(trainer.model), **decoder}),
        weights_bytes=trainer.weights_bytes,
        precision=trainer.mixed_precision_dtype if mixed else Precision.float32.value,
        early_stopped=trainer.stopped_early,
        savings=trainer.savings,
    )
