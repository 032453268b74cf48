"""Several batches in a step, the learning rate over the steps, and the IoU that can stop a training."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from micro_sam.prompt_generators import IterativePromptGenerator
from steps import SEED, Case, Ended, LossRecorder, RecordingOptimizer, discs, model_of
from torch.optim.lr_scheduler import LambdaLR

from refsam.configuration.compose import compose
from refsam.configuration.prompts import BOXES
from refsam.configuration.schema import Precision
from refsam.science.models import trainable_sam
from refsam.science.training import loop
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.encoder import Encoder
from refsam.science.training.learner import Learner
from refsam.science.training.losses import dice_loss
from refsam.science.training.micro_sam_step import micro_sam_step
from refsam.science.training.optimizers import build_optimizer, build_schedule
from refsam.science.training.prompts import Prompts
from refsam.science.training.step import Interactive, refsam_step

CASE = Case(batch_size=4, n_objects=12)


def prompts(model: Any) -> Prompts:
    """Boxes as they are, so that nothing is drawn."""
    return Prompts(
        BOXES,
        model.transform,
        box_distortion=0.0,
        n_objects=CASE.n_objects,
        mask_prob=0.0,
        generator=IterativePromptGenerator(),
    )


def learner_of(accumulate: int) -> Learner:
    model = trainable_sam(model_of(CASE)).to(CASE.dtype)
    sam = model.sam
    sam.pixel_mean, sam.pixel_std = sam.pixel_mean.to(CASE.dtype), sam.pixel_std.to(CASE.dtype)
    sam.prompt_encoder.pe_layer.float()
    optimizer = RecordingOptimizer(dict(model.named_parameters()))
    arithmetic = Arithmetic(Precision.float32, torch.device("cpu"))
    return Learner(model, None, optimizer, None, arithmetic, accumulate=accumulate)


def gradients_and_losses(accumulate: int, engine: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Of one step that takes the same images in so many batches."""
    learner = learner_of(accumulate)
    x, y = discs(CASE)
    size = len(x) // accumulate
    batches = [(x[first : first + size], y[first : first + size, :1]) for first in range(0, len(x), size)]
    chosen = prompts(learner.model)
    if engine == "micro_sam":
        step = micro_sam_step(learner, chosen, dice_loss, 1)
    else:
        encoder = Encoder(learner.model)
        interactive = Interactive(learner.model, encoder, chosen, dice_loss, learner.arithmetic, 1, 5)
        step = refsam_step(interactive, None)
    recorder = LossRecorder(iteration=1, steps=1)
    with pytest.raises(Ended):
        loop.train(learner, step, (batches, batches), recorder, SEED)
    assert isinstance(learner.optimizer, RecordingOptimizer)
    (gradients,) = learner.optimizer.recorded
    return gradients, recorder.losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["refsam", "micro_sam"])
def test_a_step_of_two_batches_has_the_mean_gradient_of_one_twice_as_large(engine: str) -> None:
    expected, losses = gradients_and_losses(1, engine)
    found, other_losses = gradients_and_losses(2, engine)
    assert other_losses == pytest.approx(losses, rel=1e-12)
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-12 * largest), name


def test_a_cosine_schedule_rises_in_the_warm_up_and_falls_to_zero() -> None:
    settings = compose(
        [
            "n_objects=5",
            "train.scheduler=cosine",
            "train.warmup=0.1",
            "train.lr=2e-4",
            "train.optimizer=adamw",
        ]
    ).train
    optimizer = build_optimizer(settings, [torch.nn.Parameter(torch.zeros(1))], torch.device("cpu"))
    steps, rising = 45, 5  # a tenth of 45, rounded up
    schedule = build_schedule(settings, optimizer, steps)
    assert isinstance(schedule, LambdaLR)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [2e-4 * step / rising for step in range(rising)]
    expected += [
        1e-4 * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) for step in range(rising, steps)
    ]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_the_iou_of_a_validation_is_that_of_the_pixels_of_all_objects_of_an_image() -> None:
    learner = learner_of(1)
    kept: list[tuple[Any, torch.Tensor]] = []

    def loss(outputs: Any, targets: torch.Tensor) -> Any:
        kept.append((outputs, targets))
        return dice_loss(outputs, targets)

    interactive = Interactive(
        learner.model, Encoder(learner.model), prompts(learner.model), loss, learner.arithmetic, 1, 5,
        iou_threshold=0.0,
    )  # fmt: skip
    x, y = discs(CASE)
    with torch.no_grad():
        *_, miou = interactive.validate(x, y[:, :1], 0)
    assert len(kept) == 3  # of twelve objects five at a time
    assert miou is not None
    ious = []
    for image in range(len(x)):
        masks = np.concatenate([outputs[image]["masks"].numpy() > 0 for outputs, _ in kept])
        true = np.concatenate([targets[image].numpy() > 0 for _, targets in kept])
        ious.append((masks & true).sum() / (masks | true).sum())
    assert miou.item() == pytest.approx(np.mean(ious), rel=1e-6)
    assert replace(interactive, iou_threshold=None).validate(x, y[:, :1], 0)[2] is None
