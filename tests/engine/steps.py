"""One training step of micro-sam's trainers and of ours, same seeds and batch, with its gradients."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_sam.prompt_generators import IterativePromptGenerator
from micro_sam.training.joint_sam_trainer import JointSamTrainer
from micro_sam.training.sam_trainer import SamTrainer
from micro_sam.training.util import ConvertToSamInputs
from omegaconf import OmegaConf
from segment_anything.modeling import Sam
from torch_em.loss import DiceBasedDistanceLoss
from torch_em.model import UNETR

from benchmarks.gates import ReplayedGates
from benchmarks.train_step import ReplayedPrompts, relative_differences
from refsam.configuration.prompts import MIXED
from refsam.configuration.schema import ModelConfig, PeftConfig, Precision
from refsam.science.engine.decoder import decoder_parts
from refsam.science.engine.prompts import BooleanPrompts
from refsam.science.hugging_face import HuggingFaceSam, from_segment_anything
from refsam.science.models import PROMPT_FRAME, build_unetr, load_model, trainable_sam
from refsam.science.randomness import seed_everything
from refsam.science.state_names import POSITIONS_AGAIN, adapter_name, to_transformers
from refsam.science.strategies.injection import apply_strategy
from refsam.science.training import loop
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.encoder import Encoder
from refsam.science.training.learner import Learner
from refsam.science.training.losses import StepLosses, dice_loss, instance_loss, squared_error
from refsam.science.training.micro_sam_step import micro_sam_step
from refsam.science.training.prompts import Prompts
from refsam.science.training.step import Interactive, Segmentation, refsam_step
from refsam.science.training.step import Step as StepFunctions
from refsam.science.training.summed import summed_step

SEED = 7
CONF = Path(__file__).parents[2] / "conf"
PEFTS = {
    "full": PeftConfig(name="full"),
    "frozen encoder": PeftConfig(name="freeze_encoder", freeze=["image_encoder"]),
    "lora": PeftConfig(name="lora", rank=2, update_matrices=["q", "v"]),
    "dora": PeftConfig(name="dora", rank=2, targets=[r".*\.attn\.(qkv|proj)", r".*\.mlp\.lin[12]"]),
}
Gradients = dict[str, torch.Tensor]
# Below this share of the largest gradient is nothing but rounding; micro-sam takes float32 in some places.
NOISE = {torch.float32: 1e-4, torch.float64: 1e-8}


class RecordingOptimizer(torch.optim.SGD):
    """Changes nothing and keeps a copy of the gradients of every step, by name."""

    def __init__(self, named: dict[str, torch.nn.Parameter]) -> None:
        super().__init__(list(named.values()), lr=0.0)
        self.named = named
        self.recorded: list[Gradients] = []

    def step(self, closure: None = None) -> None:
        self.recorded.append(
            {name: value.grad.clone() for name, value in self.named.items() if value.grad is not None}
        )


class RecordingLogger:
    """Keeps the losses that the trainer logs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log_train(self, step, loss, lr, x, y, samples, *losses) -> None:
        self.losses = [float(value.detach()) for value in (loss, *losses)]

    def log_validation(self, step, metric, loss, x, y, samples, *losses) -> None:
        self.losses = [float(value) for value in (metric, loss, *losses)]


class Ended(Exception):
    """The steps that were asked for are done."""


class LossRecorder:
    """Stands for the Recorder of a training: keeps the losses of each step, and ends it after `steps`."""

    finished = False

    def __init__(self, iteration: int, steps: int) -> None:
        self.iteration = iteration
        self.steps_left = steps
        self.losses: list[list[float]] = []

    def start(self) -> None: ...

    def begin_epoch(self, loader: object) -> None: ...

    def half_done(self, losses: StepLosses) -> None: ...

    def leave_position(self) -> None: ...

    def step(self, losses: StepLosses, rate: float, *shown: torch.Tensor) -> None:
        self.losses.append([float(value) for value in losses if value is not None])
        self.iteration += 1
        if len(self.losses) == self.steps_left:
            raise Ended


@dataclass(frozen=True)
class Choices:
    """What a step chose where rounding may choose otherwise: prompts, and the gates of ReLUs."""

    prompts: list[Any]
    gates: list[torch.Tensor] | None


@dataclass(frozen=True)
class Step:
    """Gradients of the optimizer steps (two with the decoder), what was logged, and the choices."""

    gradients: list[Gradients]
    losses: list[float]
    model: torch.nn.Module
    decoder: torch.nn.Module | None
    choices: Choices


@dataclass(frozen=True)
class Case:
    """What a step is made of. `iteration` 0 starts with points and three masks, 1 with boxes."""

    architecture: str = "tiny"
    peft: str = "full"
    decoder: bool = False
    iteration: int = 0
    batch_size: int = 1
    n_objects: int = 5
    n_sub_iterations: int = 3
    shape: tuple[int, int] = (64, 96)
    dtype: torch.dtype = torch.float64
    mixed: str | None = None
    savings: tuple[Callable[[Sam], None], ...] = ()  # applied to the model
    decoder_savings: tuple[Callable[[UNETR], None], ...] = ()
    summed: bool = False  # our step: one for both losses
    hugging_face: bool = False  # transformers' implementation with the same weights
    seed: int = 3  # of the images
    # Whether choices are kept: in float32 rounding moves some of them, and which by the processor.
    with_choices: bool = False


def discs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 3, H, W), 0 to 255, and targets (batch, 4, H, W), with 3 x 4 discs in each."""
    generator = np.random.default_rng(case.seed)
    height, width = case.shape
    rows, columns = np.mgrid[:height, :width]
    images, targets = [], []
    for _ in range(case.batch_size):
        labels = np.zeros(case.shape, np.float32)
        for index in range(12):
            row, column = (index // 4 + 0.5) * height / 3, (index % 4 + 0.5) * width / 4
            radius = generator.uniform(0.2, 0.45) * min(height / 3, width / 4)
            labels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = index + 1
        image = 120.0 * (labels > 0) + generator.uniform(0, 80, case.shape)
        images.append(np.repeat(image[None], 3, axis=0))
        targets.append(np.concatenate([labels[None], generator.uniform(0, 1, (3, *case.shape))]))
    return torch.from_numpy(np.stack(images)).to(case.dtype), torch.from_numpy(np.stack(targets)).float()


def model_config(architecture: str) -> ModelConfig:
    """A model of conf/, or `tiny`: vit_nano with 16 x 16 tokens, which its windows of 6 do not divide."""
    name = "vit_nano" if architecture == "tiny" else architecture
    given = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    changed: dict[str, Any] = {"weights": "random"}
    if architecture == "tiny":
        changed["custom"] = {
            "image_size": 128,
            "embed_dim": 24,
            "depth": 3,
            "global_attn_indexes": [1],
            "window_size": 6,
            "prompt_embed_dim": 32,
            "unetr_features": 2,
        }
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), given, changed))
    assert isinstance(config, ModelConfig)
    return config


def model_of(case: Case) -> Sam:
    """Random weights, also where initialization is zero and would hide a term: positions, updates of LoRA."""
    sam = apply_strategy(load_model(model_config(case.architecture), 0, "cpu").sam, PEFTS[case.peft])
    generator = torch.Generator().manual_seed(5)
    zero = ("rel_pos", "pos_embed", "w_b_linear", "lora_B", "attention_biases")
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if any(part in name for part in zero):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return hugging_face_twin(sam, case) if case.hugging_face else sam


def hugging_face_twin(sam: Sam, case: Case) -> Sam:
    """transformers' model with the strategy of the case and all weights of `sam`."""
    plain = load_model(model_config(case.architecture), 0, "cpu").sam
    twin = apply_strategy(HuggingFaceSam(from_segment_anything(plain), PROMPT_FRAME), PEFTS[case.peft])
    state = to_transformers(sam.state_dict())
    twin.load_state_dict({adapter_name(name): state[name] for name in state if name != POSITIONS_AGAIN})
    return twin


def take_step(
    case: Case,
    object_chunk: int | None = None,
    validate: bool = False,
    choices: "Choices | None" = None,
    adapted: bool = False,
) -> Step:
    """One step, or validation, of ours with chunks of `object_chunk` objects; of micro-sam's for None.

    Args:
        choices: of another step of a case `with_choices`, to be taken again.
        adapted: whether micro-sam's step is called by our loop, as train.engine=micro_sam does.
    """
    sam = model_of(case)
    for save in case.savings:
        save(sam)
    model = trainable_sam(sam)
    named = dict(model.named_parameters())
    unetr, replayed = None, None
    if case.decoder:
        unetr = build_unetr(sam, model_config(case.architecture), None, 1, "cpu")
        for save_decoder in case.decoder_savings:
            save_decoder(unetr)
        if case.with_choices:
            replayed = ReplayedGates([*decoder_parts(unetr)], choices and choices.gates)
        named |= {name: value for name, value in unetr.named_parameters() if not name.startswith("encoder")}
        unetr.to(case.dtype)
    model.to(case.dtype)
    # UNETR has these constants in the precision of its input, a Sam has them in float32.
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53], dtype=case.dtype).view(-1, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375], dtype=case.dtype).view(-1, 1, 1)
    # It casts coordinates to float32 itself.
    if case.hugging_face:
        sam.prompt_encoder.shared_embedding.float()
    else:
        sam.prompt_encoder.pe_layer.float()
    optimizer = RecordingOptimizer({name: value for name, value in named.items() if value.requires_grad})
    x, y = discs(case)
    batches = [(x, y if case.decoder else y[:, :1])]
    ours = object_chunk is not None or adapted
    generator = IterativePromptGenerator() if object_chunk is None else BooleanPrompts()
    prompts = ReplayedPrompts(generator, choices and choices.prompts)
    if ours:
        arithmetic = Arithmetic(Precision(case.mixed or "float32"), torch.device("cpu"))
        learner = Learner(model, unetr, optimizer, None, arithmetic)
        functions = step_functions(case, learner, object_chunk, prompts if case.with_choices else generator)
        losses = of_our_loop(case, learner, functions, batches, validate)
    else:
        losses = of_micro_sam(
            case, model, unetr, optimizer, batches, validate, prompts if case.with_choices else generator
        )
    # Later draws are the same only where all earlier ones were.
    draws = [random.random(), float(np.random.rand())]
    kept = Choices(prompts.kept, None if replayed is None else replayed.kept)
    return Step(optimizer.recorded, losses + draws, model, unetr, kept)


def step_functions(
    case: Case, learner: Learner, object_chunk: int | None, generator: Callable[..., Any]
) -> StepFunctions:
    """Our step with chunks of `object_chunk` objects; the adapter of micro-sam's for None."""
    prompts = Prompts(
        MIXED,
        learner.model.transform,
        box_distortion=0.025,
        n_objects=case.n_objects,
        mask_prob=0.5,
        generator=generator,
    )
    if object_chunk is None:
        return micro_sam_step(learner, prompts, dice_loss, case.n_sub_iterations)
    encoder, arithmetic = Encoder(learner.model), learner.arithmetic
    interactive = Interactive(
        learner.model, encoder, prompts, dice_loss, arithmetic, case.n_sub_iterations, object_chunk
    )
    if learner.unetr is None:
        return refsam_step(interactive, None)
    make = summed_step if case.summed else refsam_step
    return make(interactive, Segmentation(learner.unetr, encoder, instance_loss(), arithmetic))


def of_our_loop(
    case: Case, learner: Learner, functions: StepFunctions, batches: list[Any], validate: bool
) -> list[float]:
    """The losses of one step of loop.train, or of loop.validate with its metric before them."""
    if validate:
        validation = loop.validate(learner, functions, batches, SEED)
        return [validation.metric, *validation.losses.values()]
    recorder = LossRecorder(case.iteration, steps=1)
    seed_a_step()
    with pytest.raises(Ended):
        loop.train(learner, functions, (batches, batches), recorder, SEED)
    return recorder.losses[0]


def of_micro_sam(
    case: Case,
    model: torch.nn.Module,
    unetr: UNETR | None,
    optimizer: RecordingOptimizer,
    batches: list[Any],
    validate: bool,
    generator: Callable[..., Any],
) -> list[float]:
    """The losses of one step, or of a validation, of micro-sam's own trainer in its own loop."""
    loss = DiceBasedDistanceLoss(mask_distances_in_bg=True)
    joint = {"unetr": unetr, "instance_loss": loss, "instance_metric": loss}
    trainer = (SamTrainer if unetr is None else JointSamTrainer)(
        name="step",
        train_loader=batches,
        val_loader=batches,
        model=model,
        optimizer=optimizer,
        device="cpu",
        convert_inputs=ConvertToSamInputs(transform=model.transform, box_distortion_factor=0.025),
        n_objects_per_batch=case.n_objects,
        n_sub_iteration=case.n_sub_iterations,
        mixed_precision=case.mixed is not None,
        mixed_precision_dtype=case.mixed,
        logger=None,
        compile_model=False,
        prompt_generator=generator,
        mse_loss=squared_error,
        **({} if unetr is None else joint),
    )
    trainer.logger = RecordingLogger()
    trainer.max_iteration = trainer._iteration = case.iteration
    if validate:
        seed_everything(SEED, "validation")  # as loop.validate does
        trainer._validate()
    else:
        seed_a_step()
        epoch = trainer._train_epoch_mixed if case.mixed else trainer._train_epoch
        epoch(progress=None)
    return trainer.logger.losses


def seed_a_step() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@cache
def reference(case: Case) -> Step:
    """micro-sam's own step."""
    return take_step(case)


def assert_same_gradients(step: Step, reference: Step, tolerance: float) -> None:
    """Every parameter's gradient agrees: the norm of the difference is below `tolerance` of the norm.

    Some gradients are zero in exact arithmetic and rounding in the computer's, and are left out: of what is
    added to all scores of a softmax (the biases of the mask decoder's keys), and of what the next
    normalization takes away again (in the segmentation decoder), which both steps have below NOISE.
    """
    assert len(step.gradients) == len(reference.gradients) > 0
    for ours, theirs in zip(step.gradients, reference.gradients, strict=True):
        assert len(ours) > 0
        differences = relative_errors(ours, theirs)
        worst = max(differences, key=differences.__getitem__)
        assert differences[worst] < tolerance, f"{worst}: {differences[worst]:.1e}"


def relative_errors(ours: Gradients, expected: Gradients) -> dict[str, float]:
    """Norm of the difference over norm, by parameter, less those that `assert_same_gradients` leaves out."""
    return relative_differences(ours, expected, NOISE[next(iter(expected.values())).dtype])
