"""refsam: finetune Segment Anything over every resource, model, strategy and number of images, and
compare.
"""


def __getattr__(name: str) -> str:
    """`refsam.__version__`, looked up when asked for: reading the package's metadata costs a tenth of a
    second.
    """
    if name != "__version__":
        raise AttributeError(f"module refsam has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("refsam")
    except PackageNotFoundError:
        return "0+unknown"  # a source tree that was never installed
