"""A GPU that is not there: its tensors are computed on the CPU, and Python is told that they are on it.

For tests of what a run does on a GPU, on machines without one. `with gpu((8, 0)):` puts a GPU of that compute
capability into the process. Then

- a tensor on `cuda:0` has a marked storage. Its device, is_cuda, to, cpu and the like say so. An operation of
  tensors on both devices is refused as CUDA refuses it, and so are numpy and generators of the CPU;
- torch's own Python runs in front of the driver: argument checks, device indices, gradient scaler, activation
  checkpointing, pinned memory. Replaced are `_lazy_init` and the functions `torch._C._cuda_*`, no more;
- what is allocated is counted by storage. Beyond the GPU's memory, or its share for the process, torch's
  OutOfMemoryError is raised. `on_allocation` sees every allocation, and may raise;
- the GPU has a random generator of its own, for each operation on it that draws;
- `waits` counts what makes the host wait for the GPU: values that are read, sizes that depend on values. With
  torch.cuda.set_sync_debug_mode("warn") each of them warns.

It knows nothing of CUDA's kernels: not their speed, not their rounding, not their workspaces. Autocast rounds
what CUDA's rounds (CUDA's list of operations in float32 included) to the types that are asked for.
"""

import os
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GIB = 2**30
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
Tensor = torch.Tensor
BELOW = (__file__, str(Path(torch.__file__).parent))  # code that does what other code asks for

# Operations that CUDA allows of tensors on both devices (aten/src/ATen): copies, what the optimizer counts.
ACROSS_DEVICES = (
    "aten.copy_",
    "aten._to_copy",
    "aten._foreach_",
    "aten._fused_",
    "aten.set_",
    "aten.lift_fresh",
)
# In these not even a scalar may be on the other device.
STRICT = ("aten.cat", "aten.stack", "aten.mm", "aten.bmm", "aten.addmm", "aten.convolution")
# Operations that wait: their result is a number, or has a size that depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero")
# What CUDA's autocast computes in float32 (aten/src/ATen/autocast_mode.h, AT_FORALL_FP32); CPU's does not.
AUTOCAST_FLOAT32 = {
    *("layer_norm", "native_layer_norm", "group_norm", "norm", "softmax", "log_softmax", "exp", "expm1"),
    *("log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow", "__pow__", "__rpow__", "softplus"),
    *("cumprod", "cumsum", "prod", "sum", "mse_loss", "l1_loss", "smooth_l1_loss", "nll_loss", "dist"),
    *("cosine_similarity", "binary_cross_entropy_with_logits", "cosh", "sinh", "tan", "acos", "asin"),
}
# Of all tensors on a GPU, by address: what tells their end, bytes, and the GPU. Caches outlive a test's GPU.
STORAGES: dict[int, tuple[weakref.ref[Any], int, "Gpu"]] = {}
FROM_DATA = ("tensor", "as_tensor", "asarray", "new_tensor")


@dataclass
class Gpu:
    """What stands for the device.

    Attributes:
        capability: major and minor.
        total: bytes of memory.
        name: as torch.cuda.get_device_name gives it.
        on_allocation: called with the bytes of each new storage, before it counts.
        waits: how often the host waited, by operation.
        fraction: of the memory that the process may take.
    """

    capability: tuple[int, int]
    total: int
    name: str
    devices: int
    on_allocation: Callable[[int], None] | None = None
    waits: Counter[str] = field(default_factory=Counter)
    fraction: float = 1.0
    sync_debug_mode: int = 0
    allocated: int = 0
    peak: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)
    owner: int = field(default_factory=os.getpid)
    inside: bool = False  # a function of torch was called with tensors of the GPU: what it makes is there
    leaving: bool = False  # a tensor is copied to the CPU
    bare: bool = False  # in an operation: its own code sees tensors as they are, on the CPU

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the GPU."""
        return not self.bare and _address(tensor) in STORAGES

    def put(self, tensor: Tensor, on_gpu: bool = True) -> Tensor:
        """Mark the storage of a new tensor, and count it."""
        address = _address(tensor)
        if address is None or on_gpu == (address in STORAGES):
            return tensor
        if not on_gpu:
            _free(address)
            return tensor
        self.initialize()
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        size = storage.nbytes()
        if self.on_allocation is not None:
            self.on_allocation(size)
        if self.allocated + size > self.fraction * self.total:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity "
                f"of {self.total / GIB:.2f} GiB, of which {self.allocated / 2**20:.2f} MiB are allocated."
            )
        # Storages keep their Python object as long as they live, so its end is theirs.
        STORAGES[address] = weakref.ref(storage, lambda _: _free(address)), size, self
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        return tensor

    def wait(self, operation: str) -> None:
        """The host waits; the warning is of the code outside of torch that makes it wait."""
        self.waits[operation] += 1
        if self.sync_debug_mode:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_filename.startswith(BELOW):
                frame = frame.f_back
            place = frame.f_code.co_filename, frame.f_lineno
            warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, *place)

    def initialize(self) -> None:
        """What _lazy_init refuses: the GPU in a process that was forked from one that uses it."""
        if os.getpid() != self.owner:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from the GPU's generator."""
        of_cpu = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(of_cpu)

    def statistics(self) -> dict[str, Any]:
        """As torch._C._cuda_memoryStats: reserved is what is allocated, for there is no cache."""
        counted = {"current": self.allocated, "peak": self.peak, "allocated": self.peak, "freed": 0}
        return {name: {"all": counted} for name in ("allocated_bytes", "reserved_bytes", "active_bytes")}


def _free(address: int) -> None:
    if address in STORAGES:
        _, size, gpu = STORAGES.pop(address)
        gpu.allocated -= size


def _address(tensor: Tensor) -> int | None:
    try:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse ones have none
        return None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Of nested lists, tuples and dictionaries."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _is_cuda(device: Any) -> bool:
    if isinstance(device, int):
        return True
    return device is not None and torch.device(device).type == "cuda"


class _Operations(TorchDispatchMode):
    """Every operation, below autograd: where its inputs are, and where its results."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs, name = self.gpu, dict(kwargs or {}), str(func)
        given = list(_tensors((args, kwargs)))
        on_gpu = [gpu.holds(each) for each in given]
        device = kwargs.get("device")
        if _is_cuda(device):
            kwargs["device"] = CPU
            result_on_gpu = True
        elif device is not None and device.type == "meta":
            return func(*args, **kwargs)
        elif name.startswith("aten.index"):
            result_on_gpu = on_gpu[0]
        else:  # a device that an operation asks for by itself is that of its input, for it the CPU
            result_on_gpu = (any(on_gpu) or gpu.inside) and not gpu.leaving
        _refuse_both(name, given, on_gpu)
        if any(on_gpu):
            _count_waits(gpu, name, given)
        known = {_address(each) for each in given}
        with ExitStack() as stack:
            stack.callback(setattr, gpu, "bare", gpu.bare)
            gpu.bare = True
            if result_on_gpu and torch.Tag.nondeterministic_seeded in func.tags:
                _refuse_generator(kwargs.pop("generator", None), gpu)
                stack.enter_context(gpu.drawing())
            results = func(*args, **kwargs)
        if name.startswith("aten.set_"):
            return results  # the storage that a tensor is given is where it was
        for each in _tensors((results,)):
            if _address(each) not in known:
                gpu.put(each, result_on_gpu)
        return results


def _refuse_both(name: str, given: list[Tensor], on_gpu: list[bool]) -> None:
    """What CUDA says of an operation of tensors on both devices."""
    if all(on_gpu) or not any(on_gpu) or name.startswith(ACROSS_DEVICES):
        return
    if name.startswith(("aten.index", "aten._index_put", "aten._unsafe_index")) and on_gpu[0]:
        return  # indices may be on the CPU
    shapes = [tuple(t.shape) for t, there in zip(given, on_gpu, strict=True) if not there]
    if any(shapes) or name.startswith(STRICT):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({name}; on the CPU: {shapes})"
        )


def _refuse_generator(generator: torch.Generator | None, gpu: Gpu) -> None:
    if generator is not None and generator is not gpu.generator:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


def _count_waits(gpu: Gpu, name: str, given: list[Tensor]) -> None:
    masks = name.startswith(("aten.index", "aten._index_put")) and any(
        t.dtype == torch.bool for t in given[1:]
    )
    if masks or any(part in name for part in WAITING):
        gpu.wait(name)


class _Functions(TorchFunctionMode):
    """Every function of torch, above autograd: what one makes from tensors of the GPU is there too."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        device = kwargs.get("device")
        on_gpu = any(gpu.holds(each) for each in _tensors((args, kwargs)))
        if on_gpu and name in AUTOCAST_FLOAT32 and torch.is_autocast_enabled("cuda"):
            args, kwargs = tree_map_only(Tensor, _at_least_float32, (args, kwargs))
        if name in FROM_DATA and (_is_cuda(device) or (device is None and name == "new_tensor" and on_gpu)):
            # They guard the device before they make the tensor, which needs a driver.
            made = func(*args, **{**kwargs, "device": CPU})
            return gpu.put(made.clone() if gpu.holds(made) or name != "tensor" else made)
        before, gpu.inside = gpu.inside, on_gpu if device is None else _is_cuda(device)
        try:
            return func(*args, **kwargs)
        finally:
            gpu.inside = before


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _torchs_own(name: str) -> Callable[..., Any]:
    """A method of torch.Tensor, called past the mode of functions, which would find the one in its place."""
    method = getattr(Tensor, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return method(*args, **kwargs)

    return call


def _methods(gpu: Gpu) -> dict[str, Any]:
    """The attributes of torch.Tensor that tell or change where a tensor is."""
    own = {name: _torchs_own(name) for name in ("to", "numpy", "tolist", "clone", "__deepcopy__")}
    of_torch = Tensor.device

    def device(self: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            return CUDA if gpu.holds(self) else of_torch.__get__(self)

    def to_cpu(self: Tensor, *args: Any, **options: Any) -> Tensor:
        if not gpu.holds(self):
            return own["to"](self, CPU, *args, **options)
        gpu.wait("to the CPU")
        gpu.leaving = True
        try:
            changed = own["to"](self, CPU, *args, **options)
            return own["clone"](changed) if _address(changed) == _address(self) else changed
        finally:
            gpu.leaving = False

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = list(args), dict(kwargs)  # type: ignore[assignment]
        other = args[0] if args and isinstance(args[0], Tensor) else kwargs.pop("other", None)
        if other is not None:
            args[:1] = [other.device, other.dtype]  # type: ignore[index]
        place = kwargs.get("device")
        by_position = bool(args) and (args[0] is None or isinstance(args[0], str | int | torch.device))
        if by_position and not isinstance(args[0], bool):
            place = args.pop(0)  # type: ignore[attr-defined]
        kwargs.pop("device", None)
        if place is None:
            return own["to"](self, *args, **kwargs) if args or kwargs else self
        if torch.device(place).type == "meta":
            return own["to"](self, place, *args, **kwargs)
        if _is_cuda(place) and not gpu.holds(self):
            return own["to"](self, CUDA, *args, **kwargs)
        if not _is_cuda(place):
            return to_cpu(self, *args, **kwargs)
        return own["to"](self, CPU, *args, **kwargs)  # below Python it is there already

    def numpy(self: Tensor, **options: Any) -> Any:
        if gpu.holds(self) and not options.get("force"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        return own["numpy"](self, **options)

    def tolist(self: Tensor) -> Any:
        if gpu.holds(self):
            gpu.wait("tolist")
        return own["tolist"](self)

    def pin_memory(self: Tensor, device: Any = None) -> Tensor:
        if gpu.holds(self):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return self.clone()

    def deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
        return gpu.put(own["__deepcopy__"](self, memo), gpu.holds(self))

    return {
        "device": property(device),
        "is_cuda": property(gpu.holds),
        "is_cpu": property(lambda self: device(self).type == "cpu"),
        "get_device": lambda self: 0 if gpu.holds(self) else -1,
        "to": to,
        "cpu": to_cpu,
        "cuda": lambda self, device=None, **options: to(self, CUDA, **options),
        "numpy": numpy,
        "tolist": tolist,
        "pin_memory": pin_memory,
        "is_pinned": lambda self, device=None: False,
        "__deepcopy__": deepcopy,
    }


def _driver(gpu: Gpu) -> dict[str, Any]:
    """What of torch._C reaches the driver."""

    def properties(index: int) -> Any:
        major, minor = gpu.capability
        return SimpleNamespace(
            name=gpu.name, major=major, minor=minor, total_memory=gpu.total, multi_processor_count=20
        )

    def reset_peak(index: int) -> None:
        gpu.peak = gpu.allocated

    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: None)
    functions = {
        "_cuda_getDeviceCount": lambda: gpu.devices,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": lambda index: None,
        "_cuda_exchangeDevice": lambda index: 0,
        "_cuda_maybeExchangeDevice": lambda index: 0,
        "_cuda_isInBadFork": lambda: os.getpid() != gpu.owner,
        "_cuda_synchronize": lambda: None,
        "_cuda_emptyCache": lambda *mempool: None,
        "_cuda_memoryStats": lambda index: gpu.statistics(),
        "_cuda_resetPeakMemoryStats": reset_peak,
        "_cuda_resetAccumulatedMemoryStats": lambda index: None,
        "_cuda_getMemoryFraction": lambda index: gpu.fraction,
        "_cuda_setMemoryFraction": lambda share, index: setattr(gpu, "fraction", share),
        "_cuda_get_sync_debug_mode": lambda: gpu.sync_debug_mode,
        "_cuda_set_sync_debug_mode": lambda mode: setattr(gpu, "sync_debug_mode", mode),
        "_cuda_isCurrentStreamCapturing": lambda: False,
        "_accelerator_getDeviceIndex": lambda: 0,
        "_accelerator_setDeviceIndex": lambda index: None,
        "_accelerator_getStream": lambda index: stream,
        "_accelerator_synchronizeDevice": lambda index: None,
    }
    return {name: value for name, value in functions.items() if hasattr(torch._C, name)} | {
        "_get_device_properties": properties
    }


@contextmanager
def gpu(
    capability: tuple[int, int] = (8, 0), gib: float = 8.0, name: str = "A GPU", devices: int = 1
) -> Iterator[Gpu]:
    """Put a GPU into this process.

    Args:
        capability: compute capability, major and minor.
        gib: memory.
        name: of it.
        devices: how many there are; all tensors are on the first.
    """
    made = Gpu(capability, int(gib * GIB), name, devices)
    architectures = f"sm_{capability[0]}{capability[1]}"
    with ExitStack() as stack:

        def replace(target: Any, attribute: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(target, attribute, value, create=True))

        driver = _driver(made)
        properties = driver.pop("_get_device_properties")
        for attribute, value in driver.items():
            replace(torch._C, attribute, value)
        replace(torch._C, "_cuda_getArchFlags", lambda: architectures)
        for module in (torch.cuda, torch.cuda.memory, torch.cuda.random):
            replace(module, "_lazy_init", made.initialize)
        replace(torch.cuda, "_get_device_properties", properties)
        for attribute in ("_exchange_device", "_maybe_exchange_device"):  # copies of what is in torch._C
            replace(torch.cuda, attribute, lambda index: 0)
        replace(torch.cuda, "_initialized", True)
        replace(torch.cuda, "_cached_device_count", None)
        replace(torch.cuda, "_device_count_nvml", lambda: -1)
        replace(torch.cuda, "default_generators", (made.generator,) * devices)
        _replace_autocast(replace)
        _replace_storage_tags(replace, made)
        methods = _methods(made)
        for attribute, value in methods.items():
            replace(Tensor, attribute, value)
        stack.enter_context(_Operations(made))
        stack.enter_context(_Functions(made))
        yield made


def _replace_autocast(replace: Callable[[Any, str, Any], None]) -> None:
    """CUDA's autocast looks for tensors of CUDA, which these are not below Python: take the CPU's."""
    autocast = torch.amp.autocast_mode.autocast
    begin, is_enabled, type_of = autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype

    def of_cpu(device_type: str | None) -> str:
        return "cpu" if device_type in (None, "cuda") else device_type

    def init(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, **rest: Any) -> None:
        if device_type == "cuda" and dtype is None:
            dtype = torch.float16
        begin(self, of_cpu(device_type), dtype=dtype, enabled=enabled, **rest)

    replace(autocast, "__init__", init)
    replace(torch, "is_autocast_enabled", lambda device_type=None: is_enabled(of_cpu(device_type)))
    replace(torch, "get_autocast_dtype", lambda device_type: type_of(of_cpu(device_type)))


def _replace_storage_tags(replace: Callable[[Any, str, Any], None], made: Gpu) -> None:
    """A checkpoint says where its tensors were; elsewhere the GPU's are only opened with map_location."""
    location_tag = torch.serialization.location_tag

    def tag(storage: Any) -> str:
        bare = getattr(storage, "_untyped_storage", storage)
        return "cuda:0" if bare._cdata in STORAGES else location_tag(storage)

    replace(torch.serialization, "location_tag", tag)


def place_in_refsam() -> str | None:
    """File and function of refsam's innermost frame: who asks for memory at present."""
    frame, folder = sys._getframe(1), str(ROOT / "refsam")
    while frame is not None:
        if frame.f_code.co_filename.startswith(folder):
            return f"{Path(frame.f_code.co_filename).relative_to(folder)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return None
