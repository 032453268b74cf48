"""The numbers of the objects in a label image, and how many pieces they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INSTANCES, COMPONENTS = "instances", "components"  # of dataset.labels_are
CONNECTIVITY = 2  # diagonal neighbours belong together, as in micro-sam's training
SMALL_IDS = 2**16  # up to which, or to the number of pixels, a table of all ids is made


def numbered(ids: NDArray[Any]) -> NDArray[np.uint32]:
    """(H, W) uint32: the ids that occur, numbered from 1 in their order; 0 stays 0."""
    import numpy as np

    highest = int(ids.max())
    if highest >= max(ids.size, SMALL_IDS):
        present, places = np.unique(ids, return_inverse=True)
        first = 0 if present[0] == 0 else 1
        return (places.reshape(ids.shape) + first).astype(np.uint32)
    occurs = np.bincount(ids.ravel()) > 0
    occurs[0] = False
    if occurs[1:].all():
        return ids.astype(np.uint32, copy=False)
    numbers: NDArray[np.uint32] = np.cumsum(occurs, dtype=np.uint32)[ids]
    return numbers


def numbered_pieces(ids: NDArray[Any]) -> NDArray[np.uint32]:
    """(H, W) uint32: the connected pieces of the ids, numbered from 1; 0 stays 0."""
    import numpy as np

    return _pieces(numbered(ids)).astype(np.uint32)


def _pieces(labels: NDArray[np.uint32]) -> NDArray[Any]:
    from skimage.measure import label

    pieces: NDArray[Any] = label(  # type: ignore[no-untyped-call]
        labels, background=0, connectivity=CONNECTIVITY
    )
    return pieces


def piece_counts(labels: NDArray[np.uint32]) -> NDArray[np.intp]:
    """How many connected pieces each of the objects 1, 2, … of a numbered label image has."""
    import numpy as np

    pieces, n_objects = _pieces(labels), int(labels.max())
    owners = np.zeros(int(pieces.max()) + 1, np.intp)
    if len(owners) == n_objects + 1:
        return np.ones(n_objects, np.intp)
    owners[pieces] = labels
    return np.bincount(owners[1:], minlength=n_objects + 1)[1:]
