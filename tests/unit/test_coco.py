"""COCO annotations as label images and back, what is wrong in them, and the data sets that have them."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np
import pytest
import tifffile

from refsam.configuration.schema import DatasetConfig
from refsam.configuration.split import split_images
from refsam.datasets.coco import left_out
from refsam.datasets.coco_writing import labels_to_coco, merge_coco
from refsam.datasets.index import check_images, fingerprint, inspect
from refsam.datasets.listing import list_pairs
from refsam.datasets.pair import DataMissing
from refsam.datasets.pairs import read_pair_labels
from refsam.datasets.prepare import prepare
from refsam.errors import ConfigError
from refsam.system.names import normalized

HEIGHT, WIDTH = 40, 60
SQUARE = [[5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]]  # x, y of the corners
Make = Callable[..., DatasetConfig]


def annotation(number: int, image: int = 1, **values: Any) -> dict[str, Any]:
    described = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": SQUARE}
    return {**described, **values}


def content(*annotations: dict[str, Any], n_images: int = 1, **values: Any) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        for number in range(1, n_images + 1)
    ]
    categories = [{"id": 1, "name": "fish"}, {"id": 2, "name": "crab"}]
    return {"images": images, "annotations": list(annotations), "categories": categories, **values}


@pytest.fixture
def coco(dataset: Make, tmp_path: Path) -> Make:
    """A function that writes images 1.png to 3.png and an annotation file, and returns the data set."""

    def write(described: object, **values: object) -> DatasetConfig:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in (1, 2, 3):
            imageio.v3.imwrite(folder / f"{number}.png", np.full((HEIGHT, WIDTH), number, np.uint8))
        text = described if isinstance(described, str) else json.dumps(described)
        (tmp_path / "annotations.json").write_text(text)
        return dataset("coco", tmp_path, **values)

    return write


def labels_of(config: DatasetConfig) -> list[np.ndarray]:
    return [read_pair_labels(pair, config) for pair in list_pairs(config)]


def square(top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_polygons_and_both_kinds_of_run_lengths_give_the_same_mask(coco: Make) -> None:
    mask = square(5, 5, 10)
    compressed = labels_to_coco([("x", mask.astype(np.uint8))])["annotations"][0]["segmentation"]
    # Uncompressed: lengths of zeros and ones in turn, down the columns.
    flat = mask.ravel(order="F").astype(np.int8)
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counted = {"size": [HEIGHT, WIDTH], "counts": np.diff(edges).tolist()}
    for segmentation in (SQUARE, compressed, counted):
        (labels,) = labels_of(coco(content(annotation(1, segmentation=segmentation))))
        np.testing.assert_array_equal(labels, mask)
        assert labels.dtype == np.uint32


def test_several_polygons_are_one_object(coco: Make) -> None:
    both = [*SQUARE, [30.0, 20.0, 40.0, 20.0, 40.0, 30.0, 30.0, 30.0]]
    (labels,) = labels_of(coco(content(annotation(1, segmentation=both))))
    np.testing.assert_array_equal(labels, square(5, 5, 10) | square(20, 30, 10))


def test_a_smaller_object_lies_on_a_larger_one(coco: Make) -> None:
    small = [[7.0, 7.0, 10.0, 7.0, 10.0, 10.0, 7.0, 10.0]]
    for order in ((small, SQUARE), (SQUARE, small)):
        found = content(*(annotation(number, segmentation=shape) for number, shape in enumerate(order)))
        (labels,) = labels_of(coco(found))
        number = order.index(small) + 1
        np.testing.assert_array_equal(labels == number, square(7, 7, 3))
        np.testing.assert_array_equal(labels > 0, square(5, 5, 10))


def test_crowds_and_other_categories_are_no_objects(coco: Make) -> None:
    described = content(
        annotation(1),
        annotation(2, iscrowd=1),
        annotation(3, image=2, category_id=2),
        annotation(4, image=3, iscrowd=1),
        n_images=3,
    )
    assert [pair.name for pair in list_pairs(coco(described))] == ["1", "2"]
    assert [labels.max() for labels in labels_of(coco(described))] == [1, 1]
    config = coco(described, categories=["crab"])
    assert [pair.name for pair in list_pairs(config)] == ["2"]
    with pytest.raises(ConfigError, match=r"no category crabs \(did you mean crab\?\); it has fish, crab"):
        list_pairs(coco(described, categories=["crabs"]))


def test_images_without_objects_are_left_out_or_refused(coco: Make) -> None:
    described = content(annotation(1), n_images=3)
    config = coco(described)
    assert [pair.name for pair in list_pairs(config)] == ["1"]
    assert "left out are 2 images without objects (2.png, 3.png)" in str(left_out(config))
    with pytest.raises(ConfigError, match=r"has 2 images without objects \(2.png, 3.png\)"):
        list_pairs(coco(described, empty_images="refuse"))


def test_a_file_without_any_object_is_refused(coco: Make) -> None:
    with pytest.raises(ConfigError, match="has no image with an object that can be used"):
        list_pairs(coco(content()))


FAR = [[70.0, 5.0, 90.0, 5.0, 90.0, 15.0]]
PROBLEMS = {
    "missing image": annotation(9, image=4),
    "annotation of an unknown image": annotation(9, image=77),
    "annotation of an unknown category": annotation(9, category_id=5),
    "duplicate annotation id": annotation(1),
    "empty segmentation": annotation(9, segmentation=[]),
    "empty polygon": annotation(9, segmentation=[[1.0, 1.0, 5.0, 5.0, 9.0, 9.0]]),
    "broken polygon": annotation(9, segmentation=[[1.0, 1.0, 5.0, 5.0]]),
    "polygon outside of its image": annotation(9, segmentation=FAR),
    "box outside of its image": annotation(9, bbox=[50.0, 30.0, 20.0, 5.0]),
    "broken segmentation": annotation(9, segmentation="circle"),
    "run lengths of another size than the image": annotation(
        9, segmentation={"size": [3, 3], "counts": [4, 5]}
    ),
    "broken run lengths": annotation(9, segmentation={"size": [HEIGHT, WIDTH], "counts": [4, 5]}),
    "empty run lengths": annotation(9, segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
    "broken box": annotation(9, bbox=[50.0, 30.0, -20.0, 5.0]),
    "annotation without an id": {name: value for name, value in annotation(9).items() if name != "id"},
}
# Between the centers of pixels.
SLIVER = [[5.6, 5.0, 5.7, 5.0, 5.7, 15.0, 5.6, 15.0]]
ODD_POLYGONS = ([1.0, 1.0, 5.0, 5.0, 9.0], [1.0, 1.0, 5.0, 5.0, None, 3.0], [1.0, 1.0, 5.0, 5.0, "a", 3.0], 7)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_problem_is_named_and_refused_or_left_out(kind: str, coco: Make) -> None:
    described = content(annotation(1), PROBLEMS[kind], n_images=4 if kind == "missing image" else 1)
    config = coco(described)
    with pytest.raises(ConfigError, match=f"1 × {kind} .*dataset.on_problem=skip"):
        list_pairs(config)
    lenient = coco(described, on_problem="skip")
    (labels,) = labels_of(lenient)
    np.testing.assert_array_equal(labels, square(5, 5, 10))
    assert f"left out are 1 × {kind}" in str(left_out(lenient))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("empty polygon", {"segmentation": SLIVER}),
        ("broken box", {"bbox": []}),
        ("broken box", {"bbox": {"x": 1}}),
        ("broken segmentation", {"segmentation": 7}),
        ("run lengths of another size than the image", {"segmentation": {"size": 7, "counts": "1"}}),
        ("broken run lengths", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}}),
        ("annotation without an id", {"id": [9]}),
        ("annotation of an unknown image", {"image_id": {"file": 1}}),
        ("annotation without a category", {"category_id": [1]}),
    ],
)
def test_values_of_other_types_are_problems_and_no_crash(
    kind: str, values: dict[str, object], coco: Make
) -> None:
    described = content(annotation(1), annotation(9, **values))
    with pytest.raises(ConfigError, match=f"1 × {kind} "):
        list_pairs(coco(described))
    assert len(list_pairs(coco(described, on_problem="skip"))) == 1


@pytest.mark.parametrize("text", ["0", "abc", "~~~~", "`0`0`0", "\u20ac", " ", "o"])
def test_compressed_run_lengths_that_do_not_cover_the_image_are_broken(text: str, coco: Make) -> None:
    """Of most of them, pycocotools would make a mask of what happens to be in memory."""
    broken = annotation(2, segmentation={"size": [HEIGHT, WIDTH], "counts": text})
    with pytest.raises(ConfigError, match=r"1 × broken run lengths \(annotation 2 of 1\.png\)"):
        list_pairs(coco(content(annotation(1), broken)))


def test_compressed_run_lengths_of_all_kinds_of_masks_are_whole(coco: Make) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.random((HEIGHT, WIDTH)) < share for share in (0.001, 0.5, 0.999, 2)]
    described = labels_to_coco(
        (f"{number}.png", mask.astype(int)) for number, mask in enumerate(masks[:3], 1)
    )
    for labels, mask in zip(labels_of(coco(described)), masks, strict=False):
        np.testing.assert_array_equal(labels, mask)
    described = labels_to_coco([("1.png", masks[3].astype(int))])
    np.testing.assert_array_equal(labels_of(coco(described))[0], masks[3])


@pytest.mark.parametrize("polygon", ODD_POLYGONS, ids=repr)
def test_polygons_are_pairs_of_numbers(polygon: object, coco: Make) -> None:
    with pytest.raises(ConfigError, match="1 × broken polygon"):
        list_pairs(coco(content(annotation(1), annotation(2, segmentation=[polygon]))))


@pytest.mark.parametrize(
    ("kind", "number", "name"),
    [
        ("duplicate image id", 1, "other.png"),
        ("duplicate file name", 2, "1.png"),
        ("duplicate file name", 2, "1.tif"),  # runs call images by their names without suffix
    ],
)
def test_of_duplicate_images_the_first_counts(kind: str, number: int, name: str, coco: Make) -> None:
    described = content(annotation(1))
    described["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    with pytest.raises(ConfigError, match=f"1 × {kind}"):
        list_pairs(coco(described))
    assert [pair.name for pair in list_pairs(coco(described, on_problem="skip"))] == ["1"]


def test_of_duplicate_categories_the_first_counts(coco: Make) -> None:
    described = content(annotation(1), categories=[{"id": 1, "name": "fish"}, {"id": 1, "name": "crab"}])
    with pytest.raises(ConfigError, match=r"1 × duplicate category id \(1 of crab\)"):
        list_pairs(coco(described))
    assert len(list_pairs(coco(described, on_problem="skip", categories=["fish"]))) == 1
    with pytest.raises(ConfigError, match="has no category crab; it has fish"):
        list_pairs(coco(described, on_problem="skip", categories=["crab"]))


@pytest.mark.parametrize(
    "size", [{}, {"height": None}, {"height": 0}, {"width": "6e"}, {"width": 6.5}], ids=repr
)
def test_an_image_without_a_size_is_a_problem(size: dict[str, object], coco: Make) -> None:
    described = content(annotation(1))
    described["images"].append({"id": 2, "file_name": "2.png", "height": HEIGHT, "width": WIDTH, **size})
    if not size:
        del described["images"][1]["height"]
    with pytest.raises(ConfigError, match=r"1 × image without a size \(2\.png\)"):
        list_pairs(coco(described))


def test_problems_are_counted_and_some_of_them_named(coco: Make) -> None:
    broken = [annotation(number, segmentation=[[1.0]]) for number in range(2, 7)]
    with pytest.raises(ConfigError) as error:
        list_pairs(coco(content(annotation(1), *broken, annotation(7, image=8))))
    places = ", ".join(f"annotation {number} of 1.png" for number in (2, 3, 4))
    assert f"5 × broken polygon ({places}, …), 1 × annotation of an unknown image" in str(error.value)


def test_a_corner_on_the_border_is_inside(coco: Make) -> None:
    edge = [[50.0, 30.0, 60.5, 30.0, 60.5, 40.5, 50.0, 40.5]]
    (labels,) = labels_of(coco(content(annotation(1, segmentation=edge, bbox=[50.0, 30.0, 10.5, 10.5]))))
    np.testing.assert_array_equal(labels, square(30, 50, 10))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"images": ' + "9" * 10_000, "cannot be read as JSON"),
        ('{"images": []} {"images": []}', "cannot be read as JSON"),
        ("<annotations>", "is XML or HTML, not JSON"),
        ("[]", "has no list of images"),
        (json.dumps(content(categories=7)), "has no list of categories"),
        (json.dumps(content(images=[{"id": 1, "height": 5}])), "has no file_name in number 0 of its images"),
        (json.dumps(content(images=[{"id": 1, "file_name": 7}])), "has no file_name in number 0"),
        (json.dumps(content(images=[{"id": [], "file_name": "a"}])), "has no id in number 0 of its images"),
        (json.dumps(content(categories=[{"id": 1, "name": ["a"]}])), "has no name in number 0"),
    ],
)
def test_files_of_another_format_are_refused(text: str, sentence: str, coco: Make) -> None:
    with pytest.raises(ConfigError, match=sentence):
        list_pairs(coco(text))


def test_a_file_or_a_folder_that_is_not_there(coco: Make, dataset: Make, tmp_path: Path) -> None:
    config = coco(content(annotation(1)), labels="other.json")
    with pytest.raises(ConfigError, match=r"other.json is not a file; give COCO's annotation file"):
        list_pairs(config)
    with pytest.raises(DataMissing, match=r"dataset\.root=FOLDER"):
        list_pairs(dataset("coco", tmp_path / "none"))


def test_label_images_come_back_as_they_were(dataset: Make, tmp_path: Path, synthetic: DatasetConfig) -> None:
    pairs = list_pairs(synthetic)[:3]
    before = [read_pair_labels(pair, synthetic) for pair in pairs]
    described = labels_to_coco((pair.image.name, labels) for pair, labels in zip(pairs, before, strict=True))
    (tmp_path / "annotations.json").write_text(json.dumps(described))
    config = dataset("coco", tmp_path, images=str(Path(synthetic.root) / "images"))
    after = labels_of(config)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    areas = [item["area"] for item in described["annotations"]]
    assert areas == [int((labels == i).sum()) for labels in before for i in range(1, labels.max() + 1)]


def test_the_fingerprint_is_of_the_objects(coco: Make, tmp_path: Path) -> None:
    described = content(annotation(1), annotation(2, image=2, category_id=2), n_images=2)
    config = coco(described)
    facts = inspect(list_pairs(config), config, tmp_path / "cache")
    assert [fact.n_objects for fact in facts.values()] == [1, 1]
    first = fingerprint(config, tmp_path / "cache")
    assert first != fingerprint(coco(described, categories=["fish"]), tmp_path / "cache")
    described["annotations"].append(annotation(3, segmentation=[[30.0, 5.0, 40.0, 5.0, 40.0, 9.0]]))
    assert first != fingerprint(coco(described), tmp_path / "cache")


def test_of_crowds_only_the_sentence_says_so_and_include_takes_them(coco: Make, tmp_path: Path) -> None:
    brushes = labels_to_coco([("1.png", square(5, 5, 10).astype(int) + square(20, 30, 10))])["annotations"]
    described = content(*({**item, "iscrowd": 1} for item in brushes))
    skipped = coco(described)
    with pytest.raises(ConfigError, match=r"has 1 object, all of them crowds .*dataset\.crowds=include"):
        list_pairs(skipped)
    included = coco(described, crowds="include")
    np.testing.assert_array_equal(labels_of(included)[0] > 0, square(5, 5, 10) | square(20, 30, 10))
    assert left_out(included) is None
    # Facts that were kept of one choice are not those of the other.
    both = content(annotation(1), annotation(2, iscrowd=1, segmentation=[[30, 5, 40, 5, 40, 15]]))
    counts = []
    for crowds in ("skip", "include"):
        config = coco(both, crowds=crowds)
        counts.append(inspect(list_pairs(config), config, tmp_path / "cache")["1"].n_objects)
    assert counts == [1, 2]


def test_what_gives_no_object_is_counted_by_its_reason(coco: Make) -> None:
    left, right = [[5, 5, 10, 5, 10, 15, 5, 15]], [[10, 5, 15, 5, 15, 15, 10, 15]]
    described = content(
        annotation(1),
        annotation(2, iscrowd=1),
        annotation(3, segmentation=left),
        annotation(4, segmentation=right),
        annotation(5, category_id=2),
        annotation(6, image=2),
        annotation(7, image=2),  # the same pixels: the later one is painted last
        n_images=3,
    )
    config = coco(described, categories=["fish"])
    assert left_out(config) == (
        f"{config.root}/annotations.json: left out are 1 × crowd (annotation 2 of 1.png), 1 × object of "
        "another category (annotation 5 of 1.png), 2 × object covered by others (annotation 1 of 1.png, "
        "annotation 6 of 2.png), and 1 image without objects (3.png); dataset.crowds=include takes crowds "
        "as objects"
    )
    first, second = labels_of(config)
    assert set(np.unique(first)) == {0, 1, 2}  # in the order of the file, without the covered one
    assert set(np.unique(second)) == {0, 1}


PLAIN = {
    "ids as text": {"id": "9", "image_id": "1", "category_id": "1"},
    "ids as floats": {"id": 9.0, "image_id": 1.0, "category_id": 1.0},
    "iscrowd as text": {"iscrowd": "0"},
    "iscrowd false": {"iscrowd": False},
    "iscrowd 'False'": {"iscrowd": "False"},
    "no iscrowd": {"iscrowd": None},
    "box as text": {"bbox": ["5.0", "5", "10", "10"]},
    "corners as text": {"segmentation": [[str(value) for value in SQUARE[0]]]},
}


@pytest.mark.parametrize("case", PLAIN)
def test_values_whose_meaning_is_plain_are_read(case: str, coco: Make) -> None:
    (labels,) = labels_of(coco(content(annotation(9, **PLAIN[case]))))
    np.testing.assert_array_equal(labels, square(5, 5, 10))


@pytest.mark.parametrize("crowd", [1, "1", True, "true", "True", 1.0])
def test_a_crowd_is_one_however_it_is_written(crowd: object, coco: Make) -> None:
    described = content(annotation(1), annotation(2, iscrowd=crowd))
    assert "1 × crowd (annotation 2" in str(left_out(coco(described)))


@pytest.mark.parametrize("crowd", [2, "yes", [], {}, 0.5])
def test_a_crowd_that_is_neither_is_named(crowd: object, coco: Make) -> None:
    described = content(annotation(1), annotation(2, iscrowd=crowd))
    with pytest.raises(ConfigError, match=r"1 × iscrowd that is neither 0 nor 1 \(annotation 2 of 1\.png\)"):
        list_pairs(coco(described))


@pytest.mark.parametrize("size", [(40.0, 60.0), ("40", "60"), ("40.0", 60)])
def test_sizes_and_ids_of_images_and_categories_are_read(size: tuple[object, object], coco: Make) -> None:
    described = content(annotation(1))
    described["images"][0].update({"id": "1", "height": size[0], "width": size[1]})
    described["categories"][0].update({"id": "1", "name": 7})
    (labels,) = labels_of(coco(described, categories=["7"]))
    np.testing.assert_array_equal(labels, square(5, 5, 10))


def test_ids_that_are_names_stay_names(coco: Make) -> None:
    described = content(annotation("a", image_id="007"), annotation("b", image_id=7), n_images=2)
    described["images"][0]["id"], described["images"][1]["id"] = "007", "7"
    assert [pair.item for pair in list_pairs(coco(described))] == ["007", 7]


def test_run_lengths_that_python_printed_as_bytes_are_read(coco: Make) -> None:
    mask = square(5, 5, 10)
    packed = labels_to_coco([("x", mask.astype(np.uint8))])["annotations"][0]["segmentation"]
    printed = {**packed, "counts": str(packed["counts"].encode())}
    (labels,) = labels_of(coco(content(annotation(1, segmentation=printed))))
    np.testing.assert_array_equal(labels, mask)
    with pytest.raises(ConfigError, match="broken run lengths"):
        list_pairs(coco(content(annotation(1, segmentation={**packed, "counts": "b'\\x"}))))


def test_run_lengths_as_floats_are_read(coco: Make) -> None:
    floats = {"size": [40.0, 60.0], "counts": [HEIGHT * WIDTH - 1.0, "1"]}
    (labels,) = labels_of(coco(content(annotation(1, segmentation=floats))))
    np.testing.assert_array_equal(labels, square(HEIGHT - 1, WIDTH - 1, 1))


def test_only_a_box_is_no_segmentation(coco: Make) -> None:
    boxed = annotation(2, bbox=[5, 5, 10, 10], segmentation=[])
    del (missing := annotation(3, bbox=[5, 5, 10, 10]))["segmentation"]
    with pytest.raises(
        ConfigError, match=r"2 × empty segmentation \(only a box\) \(annotation 2 of 1.png, ann"
    ):
        list_pairs(coco(content(annotation(1), boxed, missing)))


@pytest.mark.parametrize(
    ("encoding", "sentence"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "is encoded as UTF-16; save it as UTF-8"),
        ("latin-1", r"is not UTF-8 \(byte \d+\); save it as UTF-8"),
    ],
)
def test_files_are_utf8_with_or_without_a_mark(
    encoding: str, sentence: str | None, coco: Make, tmp_path: Path
) -> None:
    described = content(annotation(1), categories=[{"id": 1, "name": "Grünalge"}])
    config = coco("", categories=["Gru\u0308nalge"])
    (tmp_path / "annotations.json").write_text(json.dumps(described, ensure_ascii=False), encoding=encoding)
    if sentence is None:
        assert len(list_pairs(config)) == 1
    else:
        with pytest.raises(ConfigError, match=sentence):
            list_pairs(config)


OTHERS = {
    "LabelMe's": {"version": "5.0", "shapes": [], "imagePath": "a.png", "imageHeight": 5},
    "VIA's": {"_via_settings": {}, "_via_img_metadata": {}},
    "VIA's format": {"a.png123": {"filename": "a.png", "size": 123, "regions": []}},
    "Supervisely's": {"description": "", "tags": [], "size": {"height": 5, "width": 5}, "objects": []},
    "Labelbox's": [{"data_row": {"id": "x"}, "projects": {}}],
    "Labelbox's format": [{"ID": "x", "Labeled Data": "a.png", "Label": {}}],
    "Label Studio's": [{"id": 1, "data": {"image": "a.png"}, "annotations": []}],
    "GeoJSON": {"type": "FeatureCollection", "features": []},
    "GeoJSON, as": [{"type": "Feature", "geometry": {}, "properties": {}}],
    "CreateML's": [{"image": "a.png", "annotations": []}],
    "COCO's format of results": [{"image_id": 1, "category_id": 1, "segmentation": SQUARE, "score": 0.5}],
    "COCO's panoptic": content({"image_id": 1, "segments_info": [], "file_name": "a.png"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_named(name: str, coco: Make) -> None:
    with pytest.raises(ConfigError, match=f"looks like {name}.*export it"):
        list_pairs(coco(OTHERS[name]))


def test_lists_that_are_mappings_are_named(coco: Make) -> None:
    described = content(annotation(1))
    described["images"] = {"1": described["images"][0]}
    with pytest.raises(ConfigError, match="has no list of images, which COCO's format asks for"):
        list_pairs(coco(described))


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("a\\b.png", "a/b.png"),
        ("my%20image.png", "my image.png"),
        ("my%20image.png", "my%20image.png"),
        ("Gr\u00fcn.png", "Gru\u0308n.png"),
        ("Gru\u0308n.png", "Gr\u00fcn.png"),
        ("./a.png", "a.png"),
    ],
)
def test_file_names_are_found_however_they_are_written(
    written: str, on_disk: str, coco: Make, tmp_path: Path
) -> None:
    described = content(annotation(1))
    described["images"][0]["file_name"] = written
    config = coco(described)
    (tmp_path / "images" / on_disk).parent.mkdir(exist_ok=True)
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / on_disk)
    (pair,) = list_pairs(config)
    assert pair.image == tmp_path / "images" / on_disk
    assert pair.name == normalized(on_disk).removesuffix(".png")


@pytest.mark.parametrize("name", ["../1.png", "/etc/hostname", "..\\1.png", "a/../../images/1.png"])
def test_file_names_stay_in_their_folder(name: str, coco: Make, tmp_path: Path) -> None:
    described = content(annotation(1), annotation(2, image=2), n_images=2)
    described["images"][1]["file_name"] = name
    config = coco(described)
    (tmp_path / "1.png").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    with pytest.raises(ConfigError, match=r"1 × file name that leaves dataset\.images"):
        list_pairs(config)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800.png", ".", " "])
def test_file_names_that_no_file_can_have_are_missing(name: str, coco: Make) -> None:
    described = content(annotation(1), annotation(2, image=2), n_images=2)
    described["images"][1]["file_name"] = name
    with pytest.raises(ConfigError, match="1 × missing image"):
        list_pairs(coco(described))


def test_annotations_of_an_image_that_is_left_out_are_not_counted_beside_it(coco: Make) -> None:
    described = content(annotation(1), annotation(2, image=2), n_images=2)
    described["images"][1]["height"] = None
    with pytest.raises(ConfigError, match=r"has 1 × image without a size \(2\.png\); correct"):
        list_pairs(coco(described))


def test_a_size_that_the_file_of_an_image_cannot_have_is_refused(coco: Make) -> None:
    described = content(annotation(1), annotation(2, image=2), n_images=2)
    described["images"][1].update({"height": 40_000, "width": 50_000})
    with pytest.raises(ConfigError, match=r"1 × image of a size that its file cannot have \(2\.png\)"):
        list_pairs(coco(described))


def test_an_image_that_no_memory_holds_is_refused_before_anything_is_made_of_it(coco: Make) -> None:
    described = content(annotation(1, segmentation={"size": [10**6, 10**6], "counts": [10**12 - 1, 1]}))
    described["images"][0].update({"height": 10**6, "width": 10**6})
    with pytest.raises(ConfigError, match=r"1 × image of more than 2\^31 pixels"):
        list_pairs(coco(described))


def test_files_are_merged_with_new_numbers_and_equal_categories() -> None:
    first, second = content(annotation(1)), content(annotation(1, category_id=2))
    second["categories"] = [{"id": 2, "name": "fish"}, {"id": 3, "name": "eel"}]
    merged = merge_coco({"train": first, "val": second})
    assert [image["file_name"] for image in merged["images"]] == ["train/1.png", "val/1.png"]
    assert [(item["id"], item["image_id"], item["category_id"]) for item in merged["annotations"]] == [
        (1, 1, 1),
        (2, 2, 1),
    ]
    assert [category["name"] for category in merged["categories"]] == ["fish", "crab", "eel"]


@pytest.mark.slow
def test_the_nuclei_with_annotations_are_the_nuclei(
    dataset: Make, nuclei: DatasetConfig, tmp_path: Path
) -> None:
    config = dataset("nuclei_coco", tmp_path / "nuclei_coco")
    said: list[str] = []
    prepare(config, said.append)
    ours, theirs = list_pairs(config), list_pairs(nuclei)
    assert len(ours) == len(theirs) == config.n_files
    for pair, plain in list(zip(ours, theirs, strict=True))[::12]:
        assert plain.name == f"images/{pair.name}"
        np.testing.assert_array_equal(read_pair_labels(pair, config), read_pair_labels(plain, nuclei))
        np.testing.assert_array_equal(tifffile.imread(pair.image), tifffile.imread(plain.image))
    prepare(config, said.append)
    assert "is there already: 48 images" in said[-1]


def write_trashcan_like(folder: Path) -> None:
    """The layout of TrashCan 1.0's dataset.zip: three images to train on, one of them broken, one to test."""
    version = folder / "dataset" / "instance_version"
    for part, count in (("train", 3), ("val", 1)):
        described = content(*(annotation(number, number) for number in range(1, count + 1)), n_images=count)
        (version / part).mkdir(parents=True)
        for image in described["images"]:
            image["file_name"] = image["file_name"].replace("png", "jpg")
            pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            imageio.v3.imwrite(version / part / image["file_name"], pixels)
        if part == "train":
            described["annotations"][2]["segmentation"] = [[1.0, 2.0]]
        (version / f"instances_{part}_trashcan.json").write_text(json.dumps(described))


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_trashcan_is_made_of_what_the_user_has_downloaded(
    packed: bool, dataset: Make, tmp_path: Path
) -> None:
    write_trashcan_like(tmp_path / "given")
    archive = tmp_path / "given"
    if packed:
        archive = tmp_path / "dataset.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted((tmp_path / "given").rglob("*")):
                file.write(path, path.relative_to(tmp_path / "given"))
    config = dataset("trashcan", tmp_path / "trashcan", archive=str(archive))
    said: list[str] = []
    prepare(config, said.append)
    assert [pair.name for pair in list_pairs(config)] == ["train/1", "train/2", "val/1"]
    assert said[:2] == ["  train images: 3", "  val images: 1"]
    assert "left out are 1 × broken polygon (annotation 3 of train/3.jpg)" in said[-1]
    assert labels_of(config)[2].sum() == 100


def test_objects_of_a_few_pixels_do_not_stop_a_sweep_on_trashcan(dataset: Make, tmp_path: Path) -> None:
    speck = annotation(1, segmentation=[[5.0, 5.0, 8.0, 5.0, 8.0, 8.0, 5.0, 8.0]])
    (tmp_path / "images").mkdir()
    imageio.v3.imwrite(tmp_path / "images" / "1.png", np.full((HEIGHT, WIDTH), 9, np.uint8))
    (tmp_path / "annotations.json").write_text(json.dumps(content(speck)))
    config = dataset("trashcan", tmp_path)
    facts = inspect(list_pairs(config), config, tmp_path / "cache")
    assert facts["1"].largest_object == 9
    check_images(config, facts, (32, 32))
    with pytest.raises(ConfigError, match="the largest object of 1 has 9"):
        check_images(replace(config, min_object_size=25), facts, (32, 32))


def test_trashcan_says_what_it_needs(dataset: Make, tmp_path: Path) -> None:
    config = dataset("trashcan", tmp_path / "trashcan")
    with pytest.raises(DataMissing, match=r"refsam prepare dataset=trashcan dataset.archive=ARCHIVE"):
        list_pairs(config)
    with pytest.raises(ConfigError, match=r"dataset.archive: nothing was given; download dataset.zip"):
        prepare(config)
    for name, sentence in (("none.zip", "cannot be opened"), ("", "holds no dataset/instance_version")):
        config = dataset("trashcan", tmp_path / "trashcan", archive=str(tmp_path / name))
        with pytest.raises(ConfigError, match=sentence):
            prepare(config)
    assert not (tmp_path / "trashcan").exists()


def test_a_published_split_tests_on_its_own_images() -> None:
    names = [f"train/{i}" for i in range(8)] + [f"val/{i}" for i in range(3)]
    split = split_images(names, "seeded", 0, 100, 2, 0, "val/*")
    assert split.test == (8, 9, 10)
    assert sorted(split.pool + split.validation) == list(range(8))
    assert len(split.validation) == 2
    with pytest.raises(ValueError, match="no image for testing has a name like other"):
        split_images(names, "seeded", 0, 100, 2, 0, "other/*")
