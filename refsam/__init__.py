"""refsam: finetune Segment Anything over every resource, model, strategy and number of images, and
compare.

    model = refsam.load("runs/vit_b-full-n5-…")
    labels = model.segment(image)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refsam.api import TrainedModel as TrainedModel
    from refsam.api import load as load


def __getattr__(name: str) -> Any:
    """What is looked up when it is asked for: `load` and `TrainedModel` bring torch along, and reading the
    package's metadata for `__version__` costs a tenth of a second.
    """
    if name in ("load", "TrainedModel"):
        from refsam import api

        return getattr(api, name)
    if name != "__version__":
        raise AttributeError(f"module refsam has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("refsam")
    except PackageNotFoundError:
        return "0+unknown"  # a source tree that was never installed
