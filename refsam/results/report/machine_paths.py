"""What the report says of paths: the part that means something to others, unless the whole is asked for."""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LEFT_OUT = "…/"
# The folders of an absolute path within a text: not a part of a relative one, or of an address.
_PATH = re.compile(r"(?<![\w/.:~<+…*-])(?:/[\w.+@%~-]+)+(?=/)")
# The same of a text that is nothing but a path, whatever its names hold.
_ALONE = re.compile(r"(?:/[^/]+)*/(?=[^/]+$)")


class Shortened:
    """Takes the folders of this machine out of texts: `/home/me/runs/a/job.out` is `…/runs/a/job.out`."""

    def __init__(self, folders: Iterable[Path], roots: Iterable[str]) -> None:
        """
        Args:
            folders: of runs; their own names stay.
            roots: of data sets; what tells them apart stays.
        """
        absolute = sorted({root.rstrip("/") for root in roots if root.startswith("/")})
        parents = [str(folder.absolute().parent) for folder in folders]
        if absolute:
            parents.append(os.path.commonpath([str(Path(root).parent) for root in absolute]))
        longest = sorted({f"{parent.rstrip('/')}/" for parent in parents}, key=len, reverse=True)
        self._known = [parent for parent in longest if parent != "/"]

    def text(self, text: str) -> str:
        """A text without folders of the machine; addresses of images and of the web stay as they are."""
        if "/" not in text or text.startswith(("data:image/", "https://")):
            return text
        for parent in self._known:
            text = text.replace(parent, LEFT_OUT)
        if text.startswith("/") and "\n" not in text and " " not in text:
            return _ALONE.sub(LEFT_OUT, text)
        return _PATH.sub(LEFT_OUT.rstrip("/"), text)

    def facts(self, value: Any) -> Any:
        """The same of all texts in a value of dataclasses, mappings and lists."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Path):
            return self.text(str(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed = {item.name: self.facts(getattr(value, item.name)) for item in dataclasses.fields(value)}
            return dataclasses.replace(value, **changed)
        if isinstance(value, dict):
            return {key: self.facts(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self.facts, value))
        return value
