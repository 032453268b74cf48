"""What a GPU does with single products, convolutions and blocks of the image encoder."""

import time
from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Block
from torch import nn
from torch.profiler import ProfilerActivity, profile, supported_activities

from benchmarks.gpu.page import Line
from benchmarks.gpu.rows import PRECISIONS, Scale
from refsam.configuration.schema import Precision
from refsam.science.engine.attention import use_fused_attention
from refsam.science.hardware import GIB, release_memory
from refsam.science.randomness import be_deterministic
from refsam.science.training.arithmetic import Arithmetic

DEVICE = torch.device("cuda", 0)
FLOAT32_ERROR = 1e-5  # TF32 has 10 bits of mantissa: 1e-3 in one product, 1e-4 in the mean of a sum
OPERATOR = "aten::_scaled_dot_product_"
SHOWN = 70  # letters of a kernel's name


def arithmetic(scale: Scale) -> list[Line]:
    """Errors of float32, and TFLOP/s by precision."""
    be_deterministic()
    lines: list[Line] = []
    operations: tuple[tuple[str, Callable[..., torch.Tensor], tuple[int, ...], tuple[int, ...]], ...] = (
        ("product", torch.matmul, (256, 256), (256, 256)),
        ("convolution", nn.functional.conv2d, (1, 32, 32, 32), (32, 32, 3, 3)),
    )
    for name, operation, *shapes in operations:
        given = [torch.randn(shape, device=DEVICE, dtype=torch.float64) for shape in shapes]
        exact = operation(*given)
        found = operation(*(each.float() for each in given)).double()
        error = float((found - exact).norm() / exact.norm())
        lines.append({"what": f"{name} in float32", "error": error, "is float32": error < FLOAT32_ERROR})
    size = scale.product
    for precision in PRECISIONS:
        left, right = (
            torch.randn(size, size, device=DEVICE, dtype=getattr(torch, precision)) for _ in range(2)
        )
        seconds = _seconds(lambda left=left, right=right: left @ right, scale.repeats)
        lines.append({"what": f"product in {precision}", "TFLOP/s": 2 * size**3 / seconds / 1e12})
    return lines


def kernels(scale: Scale, precision: str) -> list[Line]:
    """Fused and eager attention of a windowed and of a global block."""
    be_deterministic()
    computing = Arithmetic(Precision(precision), DEVICE)
    lines = []
    for model, (channels, heads) in scale.blocks.items():
        x = torch.randn(1, scale.grid, scale.grid, channels, device=DEVICE)
        for window in (scale.window, 0):
            size = window or scale.grid
            for attention in ("fused", "eager"):
                torch.manual_seed(0)
                block = Block(channels, heads, use_rel_pos=True, window_size=window, input_size=(size, size))
                encoder = nn.Sequential(block).to(DEVICE)
                if attention == "fused":
                    use_fused_attention(encoder)
                kind = f"{model}, {'windows' if window else 'global'}"
                line = {"block": kind, "attention": attention, "precision": precision}
                lines.append(line | _block(encoder, x, computing, scale.repeats))
                release_memory(DEVICE)
    return lines


def _block(encoder: nn.Module, x: torch.Tensor, computing: Arithmetic, repeats: int) -> Line:
    """Seconds, memory and kernels of forward and backward."""

    def step() -> None:
        with computing.forward():
            mean = encoder(x).float().square().mean()
        computing.backward(mean)

    seconds = _seconds(step, repeats)
    base = torch.cuda.memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    with profile(
        activities=[ProfilerActivity.CPU, *({ProfilerActivity.CUDA} & supported_activities())]
    ) as seen:
        step()
        torch.cuda.synchronize(DEVICE)
    peak = torch.cuda.max_memory_allocated(DEVICE) - base
    return {"seconds": seconds, "peak GiB": peak / GIB, **_chosen(seen.key_averages())}


def _chosen(events: Any) -> Line:
    """The attention's operators, and what the GPU computed longest."""
    operators = [each.key for each in events if each.key.startswith(OPERATOR)]
    forward = [name.removeprefix(OPERATOR) for name in operators if not name.endswith("_backward")]
    on_gpu = [each for each in events if "cuda" in str(each.device_type).lower()]
    longest = max(on_gpu, key=lambda each: each.self_device_time_total, default=None)
    line: Line = {"operator": ", ".join(forward) or "none", "longest kernel": None, "its share": None}
    total = sum(each.self_device_time_total for each in on_gpu)
    if longest is not None and total:
        line |= {"longest kernel": longest.key[:SHOWN], "its share": longest.self_device_time_total / total}
    return line


def _seconds(compute: Callable[[], object], repeats: int) -> float:
    """Of one call, the mean of some after a first."""
    compute()
    torch.cuda.synchronize(DEVICE)
    started = time.perf_counter()
    for _ in range(repeats):
        compute()
    torch.cuda.synchronize(DEVICE)
    return (time.perf_counter() - started) / repeats
