"""The optimizers: their groups, Lion by its definition, and the norm of gradients."""

from typing import Any

import pytest
import torch

from refsam.configuration.compose import compose
from refsam.configuration.optimizers import OPTIMIZERS
from refsam.configuration.schema import Precision
from refsam.science.training.arithmetic import Arithmetic
from refsam.science.training.optimizers import build_optimizer

CPU = torch.device("cpu")
ON_CPU = [name for name, optimizer in OPTIMIZERS.items() if not optimizer.needs_gpu]
SIZE = 4096  # values of a tensor, from which bitsandbytes keeps its state in 8 bits


def built(parameters: list[torch.nn.Parameter], *overrides: str) -> torch.optim.Optimizer:
    return build_optimizer(compose(["n_objects=5", *overrides]).train, parameters, CPU)


def parameter(*, trained: bool = True) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-2, 2, SIZE), requires_grad=trained)


@pytest.mark.parametrize("name", ON_CPU)
def test_all_trained_parameters_are_in_one_group_with_the_settings_of_the_run(name: str) -> None:
    trained, frozen = parameter(), parameter(trained=False)
    given = ("train.lr=2e-4", "train.weight_decay=10", "train.betas=[0.9,0.95]")
    (group,) = built([trained, frozen], f"train.optimizer={name}", *given).param_groups
    assert len(group["params"]) == 1
    assert group["params"][0] is trained
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (2e-4, 10.0, (0.9, 0.95))


@pytest.mark.parametrize(
    ("name", "decay", "betas"),
    [
        ("adam", 0.0, (0.9, 0.999)),
        ("adamw", 0.01, (0.9, 0.999)),
        ("adam8bit", 0.0, (0.9, 0.999)),
        ("lion", 0.0, (0.9, 0.99)),
        ("lion8bit", 0.0, (0.9, 0.99)),
    ],
)
def test_without_settings_an_optimizer_has_its_own(name: str, decay: float, betas: tuple[float, ...]) -> None:
    (group,) = built([parameter()], f"train.optimizer={name}").param_groups
    assert (group["weight_decay"], tuple(group["betas"])) == (decay, betas)


@pytest.mark.parametrize("name", ["lion", "lion8bit"])
def test_lion_steps_as_its_paper_says(name: str) -> None:
    weight = parameter()
    rate, decay, first, second = 1e-2, 10.0, 0.9, 0.999
    optimizer = built(
        [weight], f"train.optimizer={name}", f"train.lr={rate}", f"train.weight_decay={decay}",
        f"train.betas=[{first},{second}]",
    )  # fmt: skip
    expected, mean = weight.detach().clone(), torch.zeros(SIZE)
    gradients = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))
    agreeing = []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        direction = (first * mean + (1 - first) * gradient).sign()
        expected = expected * (1 - rate * decay) - rate * direction
        mean = second * mean + (1 - second) * gradient
        agreeing.append(torch.isclose(weight.detach(), expected, atol=1e-6).float().mean().item())
    # Eight bits round the running mean, which moves the sign of what is nearly zero.
    assert agreeing[0] == 1
    assert agreeing[1] > (0.99 if name == "lion8bit" else 0.9999)
    state: dict[str, Any] = optimizer.state[weight]
    assert state["state1"].dtype == (torch.uint8 if name == "lion8bit" else torch.float32)


def test_gradients_are_scaled_down_to_the_largest_norm_together() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    arithmetic = Arithmetic(Precision.float32, CPU)
    moved = []
    for limit in (None, 10.0, 1.0):
        for weight, gradient in zip(weights, (3.0, 4.0), strict=True):
            weight.data.zero_()
            weight.grad = torch.tensor([gradient])
        arithmetic.step(optimizer, limit)
        moved.append([-weight.item() for weight in weights])
    assert moved[:2] == [[3.0, 4.0], [3.0, 4.0]]
    assert moved[2] == pytest.approx([0.6, 0.8], abs=1e-5)
