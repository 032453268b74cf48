"""Label images as annotations in COCO's format, and several such files as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from refsam.datasets.coco_values import Key, key

if TYPE_CHECKING:
    from numpy.typing import NDArray


def labels_to_coco(images: Iterable[tuple[str, NDArray[Any]]], category: str = "object") -> dict[str, Any]:
    """The objects of label images in COCO's format, as compressed run lengths: nothing is rounded.

    Args:
        images: file name and (H, W) integer label image of each.
    """
    import numpy as np
    from pycocotools import mask

    described: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": category}],
    }
    for image_id, (name, labels) in enumerate(images, start=1):
        height, width = labels.shape
        described["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for object_id in np.unique(labels[labels > 0]):
            encoded = mask.encode(np.asfortranarray(labels == object_id, dtype=np.uint8))
            described["annotations"].append(
                {
                    "id": len(described["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": int(mask.area(encoded)),
                    "bbox": [float(value) for value in mask.toBbox(encoded)],
                    "segmentation": {"size": [height, width], "counts": encoded["counts"].decode()},
                }
            )
    return described


def merge_coco(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Several files as one: images lie in a folder with the part's name, and everything is renumbered.

    Categories are taken as equal where their names are.
    """
    merged: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    categories: dict[str, int] = {}
    for folder, part in parts.items():
        of_part: dict[Key | None, int] = {}
        for category in part["categories"]:
            of_part[category["id"]] = categories.setdefault(category["name"], len(categories) + 1)
        images: dict[Key | None, int] = {}
        for image in part["images"]:
            images[image["id"]] = len(merged["images"]) + 1
            name = f"{folder}/{image['file_name']}"
            merged["images"].append({**image, "id": images[image["id"]], "file_name": name})
        for annotation in part["annotations"]:
            # What points to nothing still does, and is found when the merged file is read.
            changes = {
                "id": len(merged["annotations"]) + 1,
                "image_id": images.get(key(annotation.get("image_id")), 0),
                "category_id": of_part.get(key(annotation.get("category_id")), 0),
            }
            merged["annotations"].append({**annotation, **changes})
    merged["categories"] = [{"id": number, "name": name} for name, number in categories.items()]
    return merged
