"""Memory of a training step without taking it: `python -m refsam.science.forecast`, which `refsam fit` asks.

The step of a run (the same model, trainer, optimizer and savings as in refsam.science.fit) runs on fake
tensors, which have shapes and types but no values, so that a GPU's step is counted where there is no GPU and
hardly any memory. Counted is every storage from the operation that makes it to the end of its last tensor. On
a CPU the C library places all of them (refsam.science.heap): it keeps much of what is freed.

What fake tensors cannot do is stated here: prompts have places without meaning (their tensors are the same),
a mask that chooses one prediction of each object chooses one, and a number that the host asks for is 1. What
kernels allocate by themselves is added by formula (`_workspaces`, `_Attention`). The rest is an allowance:
on a GPU for cuBLAS (CUBLAS_BYTES), on a CPU for the process (PROCESS_GIB). A GPU's context (300 to 600 MB)
lies in the tenth of its memory that a fit leaves free, and so does what the allocator loses between blocks.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from refsam.configuration.frozen import load
from refsam.configuration.schema import RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.data import patch_loaders
from refsam.science.engine import attention, cache, checkpointing, decoder, late_convolution, masks
from refsam.science.fit import discs, make_optimizer_state, of_one_batch, take
from refsam.science.hardware import GIB
from refsam.science.heap import Heap
from refsam.science.strategies import quantization
from refsam.science.training.build import build_training
from refsam.science.training.prompts import BatchedInputs, Prompts

# What a process holds with Python, torch and micro-sam imported, without the pages of files: as measured.
PROCESS_GIB = 0.7
# torch's cuBLAS workspace since Hopper (32 MiB; before it 8.1 MiB), and as much again for cuBLASLt's.
CUBLAS_BYTES = 2 * 32 * 2**20
# What CUDA's autocast computes in float32 (ATen/autocast_mode.h), of functions that are called here: the
# fake tensors are the CPU's, whose autocast leaves them in half precision.
FLOAT32_ON_CUDA = {
    *("layer_norm", "group_norm", "norm", "softmax", "log_softmax", "exp", "log", "pow", "__pow__", "rsqrt"),
    *("reciprocal", "softplus", "sum", "prod", "cumsum", "mse_loss", "l1_loss", "interpolate"),
    *("binary_cross_entropy_with_logits", "cosine_similarity"),
}
Contexts = tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]
HALF = (torch.float16, torch.bfloat16)
CONVOLUTION = torch.ops.aten.convolution.default
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)  # torch.tensor(1.0)
ROWS = 32  # the memory-efficient kernel keeps a multiple of these logarithms for each head


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, for as long as they are alive.

    Args:
        fake: the mode in which tensors have no values; None where they have them.
        heap: where the C library places them; None where it has places for real ones, or is not asked.

    Attributes:
        bytes: of the storages that are alive.
        peak: the most of them, with what a kernel takes while it runs.
    """

    def __init__(self, fake: FakeTensorMode | None = None, heap: Heap | None = None) -> None:
        super().__init__()
        self.fake = fake
        self.heap = heap
        self.bytes = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = None if self.fake is None else _answer_without_values(self.fake, func, args)
        if answer is None:
            answer = func(*args, **(kwargs or {}))
        made = [each for each in tree_iter(answer) if isinstance(each, Tensor)]
        for each in made:
            self._add(each.untyped_storage())
        for workspace in _workspaces(func, args, answer, on_gpu=self.heap is None):
            self.peak = max(self.peak, self.bytes + sum(workspace))
            if self.heap is not None:
                for block in [self.heap.take(size) for size in workspace]:
                    self.heap.free(block)
        return answer

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return
        heap = self.heap
        block = None if heap is None else heap.take(size)

        def end(_: object) -> None:
            del self._alive[address]
            self.bytes -= size
            if heap is not None and block is not None:
                heap.free(block)

        self._alive[address] = weakref.ref(storage, end)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _answer_without_values(fake: FakeTensorMode, func: Any, args: Any) -> Any:
    """The result of an operation whose shape or value is in the data; None for any other."""
    if func in LIFTS and not isinstance(args[0], FakeTensor):
        # By itself the mode would remember the value, by a weak reference to the storage, whose end breaks
        # the heap of the process (PyTorch 2.15).
        return fake.from_tensor(args[0])
    if func is torch.ops.aten._local_scalar_dense.default:
        kind = args[0].dtype
        return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
    if func is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
        (mask,) = args[1]  # (batch, objects, masks): one of the masks of each object
        return args[0].new_empty((mask.numel() // mask.shape[-1], *args[0].shape[mask.ndim :]))
    return None


def _workspaces(func: Any, args: Any, answer: Any, on_gpu: bool) -> list[list[int]]:
    """Bytes of the blocks that a convolution takes beside its tensors, for each of its calls.

    oneDNN takes what comes in and goes out again, in its own layout. In float32 it computes a backward by two
    calls, one for the gradient of the input and one for those of the weights: so measured steps are met
    (docs/fit.md). What it takes in bfloat16, and what cuDNN's algorithms take, was not measured: both calls
    count as one.
    """
    calls: list[tuple[Tensor | None, ...]] = []
    if func is CONVOLUTION:
        calls.append((*args[:3], answer))
    elif func is CONVOLUTION_BACKWARD:
        (gradient, x, weight), (of_input, *of_weights) = args[:3], answer
        of_weights = [each for each in of_weights if each is not None]
        if on_gpu or gradient.dtype is not torch.float32:
            calls.append((gradient, x, weight, of_input, *of_weights))
        else:
            calls += [(gradient, weight, of_input)] if of_input is not None else []
            calls += [(gradient, x, *of_weights)] if of_weights else []
    return [[each.nbytes for each in call if each is not None] for call in calls]


class _OnCuda(TorchFunctionMode):
    """What CUDA computes in other types than a CPU, or by kernels that keep other tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key, value = (_in_autocast_type(each) for each in args[:3])
            if kwargs.get("attn_mask") is None:
                return _Attention.apply(query, key, value)
        if getattr(func, "__name__", "") in FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tree_map_only(Tensor, lambda each: each.float() if each.dtype in HALF else each, args)
        return func(*args, **kwargs)


def _in_autocast_type(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


class _Attention(torch.autograd.Function):
    """The tensors of PyTorch's memory-efficient attention (aten/native/transformers/cuda/attention.cu).

    Its forward keeps inputs, output and the logarithms of the sums of scores in float32; its backward has a
    mean for every query, and sums the gradients of queries, keys and values in float32.

    Args of apply:
        query, key: (batch, heads, length, channels).
        value: (batch, heads, length, channels of values).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        length = -(-query.shape[-2] // ROWS) * ROWS
        logarithms = query.new_empty((*query.shape[:-2], length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logarithms)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, logarithms = ctx.saved_tensors
        results = tuple(torch.empty_like(each) for each in (query, key, value))
        means = torch.empty_like(logarithms)
        sums = [torch.empty_like(each, dtype=torch.float32) for each in results if each.dtype in HALF]
        del means, sums
        return results


class _LateConvolution(torch.autograd.Function):
    """The tensors of late_convolution.LateConvolution, without its thousands of small products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        n, _, h, w = x.shape
        enlarged = x.new_empty(n, len(weight), 2 * h, 2 * w)
        buffers = _late_buffers(x, weight)
        del buffers
        return enlarged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        results = torch.zeros_like(x), torch.zeros_like(weight)
        buffers = _late_buffers(x, weight)
        del buffers
        return *results, gradient.sum(dim=(0, 2, 3))


def _late_buffers(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Of one round of channels: nine small results, and three that are wide already."""
    pixels = x.shape[2] * x.shape[3]
    channels = min(len(weight), max(1, late_convolution.VALUES_AT_ONCE // pixels))
    taps = late_convolution.TAPS
    return [x.new_empty(taps * taps * channels, pixels), x.new_empty(taps * channels, 2 * pixels)]


@contextlib.contextmanager
def fake_tensors(on_gpu: bool, heap: Heap | None = None) -> Iterator[tuple[FakeTensorMode, Storages]]:
    """In it, tensors have no values, what they would take is counted, and modules stay where they are."""
    with contextlib.ExitStack() as stack:
        _forget()
        stack.callback(_forget)
        # A module would swap its parameters for equal ones, which fake ones do not allow.
        stack.enter_context(mock.patch.object(nn.Module, "to", lambda self, *_, **__: self))
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        storages = stack.enter_context(Storages(fake, heap))
        stack.enter_context(mock.patch.object(decoder, "LateConvolution", _LateConvolution))
        # A frozen encoder's embeddings are found by their images' values: here by their places in a batch.
        stack.enter_context(mock.patch.object(cache, "pixel_hash", lambda image: str(image.storage_offset())))
        if importlib.util.find_spec("bitsandbytes"):
            stack.enter_context(_four_bits())
        if on_gpu:
            stack.enter_context(mock.patch.object(decoder, "convolves_late", return_value=False))
            stack.enter_context(
                mock.patch.object(attention, "kernel_for", return_value=attention.with_one_product)
            )
            stack.enter_context(_OnCuda())
            stack.enter_context(
                mock.patch.object(
                    checkpointing, "_contexts", partial(_on_cuda_again, checkpointing._contexts)
                )
            )
        yield fake, storages


def _on_cuda_again(contexts: Callable[[nn.Module], Contexts], block: nn.Module) -> Contexts:
    """The contexts of a checkpointed block, which is computed again in the mode that a backward leaves."""
    first, again = contexts(block)

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with again, _OnCuda():
            yield

    return first, both()


@contextlib.contextmanager
def _four_bits() -> Iterator[None]:
    """Weights in 4 bits without bitsandbytes' class of parameters, which fake tensors cannot have."""
    functional = importlib.import_module("bitsandbytes.functional")
    modules = importlib.import_module("bitsandbytes.nn.modules")
    dora = importlib.import_module("peft.tuners.lora.dora")

    def parameter(data: Tensor, compress_statistics: bool, quant_type: str, **_: Any) -> Any:
        state = None
        if data.device.type != "meta":
            data, state = functional.quantize_4bit(
                data, blocksize=64, compress_statistics=compress_statistics, quant_type=quant_type
            )
        made: Any = nn.Parameter(data, requires_grad=False)
        made.quant_state, made.compress_statistics, made.quant_type = state, compress_statistics, quant_type
        return made

    def weight_of(layer: nn.Module) -> Any:
        return quantization.dequantized(layer) if quantization.is_quantized_layer(layer) else layer.weight

    with contextlib.ExitStack() as stack:
        for place in (modules, importlib.import_module("bitsandbytes.nn")):
            stack.enter_context(mock.patch.object(place, "Params4bit", parameter))
        stack.enter_context(mock.patch.object(dora, "dequantize_module_weight", weight_of))
        stack.enter_context(mock.patch.dict(functional.name2qmap))
        yield


def _forget() -> None:
    """Empty the caches of tensors: those of a step have values, those of a forecast have none."""
    for cached in (attention.offsets, attention.positions, masks.resizing_matrix, late_convolution.tiles):
        cached.cache_clear()


def forecast(config: RefsamConfig, on_gpu: bool) -> dict[str, Any]:
    """Memory (GiB) of one step as refsam.science.fit would measure it.

    Args:
        config: with an explicit precision and, for refsam's step, explicit savings.
        on_gpu: whether the step would run on a GPU, as torch's allocator counts it; else on a CPU, as a
            process without the pages of files, for which this process must be a new one: what the C library
            has kept of an earlier step would be there for this one.

    Returns:
        peak_gib and base_gib: of the step, and before it. tensors_gib: of the peak, what is counted, without
        free places and allowances. precision.

    Raises:
        OSError: on a CPU where there is no /proc (macOS).
    """
    heap = None if on_gpu else Heap()
    config = replace(of_one_batch(config), resource=replace(config.resource, device="cpu"))
    image = discs(config.n_objects, tuple(config.train.patch_shape))
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder))
        for path in (paths.checkpoints, paths.tensorboard, paths.results):
            path.mkdir(parents=True)
        loaders = patch_loaders(config, [image], [image])
        x, y = next(iter(loaders[0]))
        with fake_tensors(on_gpu, heap) as (fake, storages):
            training = build_training(config, paths, loaders, lambda progress: None)
            _prompt_without_values(training.prompts)
            training.learner.switch(training=True)
            for group in training.learner.optimizer.param_groups:
                if "foreach" in group:
                    group["foreach"] = True  # torch's default on a GPU; on a CPU it is no peak
            make_optimizer_state(training.learner.optimizer)
            base, storages.peak = storages.bytes, storages.bytes
            if heap is not None:
                base = heap.bytes
                heap.begin_peak()
            take(training, fake.from_tensor(x), fake.from_tensor(y))
    peak, fixed = (storages.peak, CUBLAS_BYTES / GIB) if heap is None else (heap.peak, PROCESS_GIB)
    return {
        "peak_gib": peak / GIB + fixed,
        "base_gib": base / GIB + fixed,
        "tensors_gib": storages.peak / GIB,
        "precision": str(config.train.precision),
    }


def _prompt_without_values(prompts: Prompts) -> None:
    """Give prompts of the right shapes, whatever the images show."""

    def convert(
        x: Tensor, y: Tensor, positive: int, negative: int, boxes: bool, n_objects: int
    ) -> tuple[BatchedInputs, list[Any]]:
        inputs = []
        for image in x:
            given: dict[str, Any] = {"image": image, "original_size": image.shape[1:]}
            if boxes:
                given["boxes"] = torch.zeros(n_objects, 4)
            if positive + negative:
                given["point_coords"] = torch.zeros(n_objects, positive + negative, 2)
                given["point_labels"] = torch.zeros(n_objects, positive + negative)
            inputs.append(given)
        return inputs, [list(range(1, n_objects + 1)) for _ in x]

    def correct(segmentation: Tensor, prediction: Tensor, **_: Any) -> tuple[Any, ...]:
        # BooleanPrompts and micro-sam's hold three maps of all objects, of the type of the masks.
        maps = [torch.empty_like(prediction) for _ in range(3)]
        count = len(segmentation)
        del maps
        return torch.zeros(count, 2, 2), torch.ones(count, 2, dtype=torch.int64), None, None

    if prompts.kind != "none":
        prompts.convert = convert
    prompts.generator = correct


def main() -> None:
    """For every line `CONFIG cpu|cuda` of the input, one line of JSON on what its step takes.

    Each is counted by a fork of this process, whose C library has kept nothing of an earlier step.
    """
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps(_answer(line)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(json.dumps({"error": "the process that counts has ended"}), flush=True)


def _answer(line: str) -> dict[str, Any]:
    path, device = line.rstrip("\n").rsplit(" ", 1)
    try:
        return forecast(load(Path(path)), on_gpu=device != "cpu")
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, MemoryError, OSError) as error:
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}


if __name__ == "__main__":
    main()
