"""Files of weights, read without executing anything that they say.

torch's own reader for weights refuses a file that also holds an object of another class, as checkpoints of
trainers do. Here such an object is replaced by a stand-in: its class is neither imported nor called.
"""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from refsam.errors import ConfigError
from refsam.science.hardware import is_out_of_memory

ARCHIVE = b"PK\x03\x04"  # torch's format since 1.6; only this one can be mapped into memory


def read_weights(path: Path) -> dict[str, Any]:
    """The dict in a file that torch.save has written, its tensors on the CPU, mapped into memory if possible.

    Tensors, containers, numbers and text are as they were saved, parameters are tensors, and anything else is
    STAND_IN.

    Raises:
        ConfigError: for a file that is damaged, holds something else than a dict, or is a TorchScript
        archive.
        OSError: when it cannot be read now.
    """
    with path.open("rb") as file:
        options: dict[str, Any] = {"map_location": "cpu", "mmap": file.read(len(ARCHIVE)) == ARCHIVE}
    try:
        values = _load(path, options)
    except Exception as error:  # whatever a reader stumbles over in bytes that are not what was written
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"{path} cannot be read as weights ({type(error).__name__}: {reason}); expected a file that "
            "torch.save has written"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__} instead of a dict of weights")
    return values


def _load(path: Path, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that this reader may not know
            return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError:
        # TorchScript, which torch.load would execute below, is refused above by another error.
        return torch.load(path, weights_only=False, pickle_module=_PICKLE, **options)


class _StandIn:
    """Is called, filled and set to a state as any object of a pickle is, and does nothing."""

    # What torch's reader of old files asks the class of a module for.
    __name__ = "StandIn"
    dump_patches = False

    def __call__(self, *arguments: object) -> "_StandIn":
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    add = extend = append

    def __repr__(self) -> str:
        return "STAND_IN"


STAND_IN = _StandIn()


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> torch.Tensor:
    rebuilt: torch.Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return rebuilt


def _bytes(text: str, _: object = None) -> bytes:
    """What pickle's protocol 2 calls for bytes, which it has no instruction for."""
    return text.encode("latin1")


# All that a file can have called, by the names that it uses. Nothing here imports, opens or calls anything.
_CALLED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("_codecs", "encode"): _bytes,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")  # protocol 2 has the names of Python 2
        for kind in (set, frozenset, bytearray, complex)
    },
}
_TYPES = {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, in which a file can name and call nothing but the above, and set no attribute.

    torch adds the types of storages to the names, and reads storages by their persistent ids.
    """

    stack: list[Any]
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        return _CALLED.get((module, name)) or _TYPES.get((module, name), STAND_IN)

    def get_extension(self, code: int) -> None:
        self.append(STAND_IN)

    def _instantiate(self, kind: object, arguments: object) -> None:
        self.append(STAND_IN)

    def load_newobj(self) -> None:
        del self.stack[-2:]
        self.append(STAND_IN)

    def load_newobj_ex(self) -> None:
        del self.stack[-3:]
        self.append(STAND_IN)

    def load_build(self) -> None:
        del self.stack[-1:]

    dispatch: ClassVar[Any] = {
        **pickle._Unpickler.dispatch,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }


_PICKLE = SimpleNamespace(
    __name__="refsam", Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load()
)
