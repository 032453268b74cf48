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
from refsam.datasets.coco import labels_to_coco, left_out, merge_coco
from refsam.datasets.index import check_images, fingerprint, inspect
from refsam.datasets.listing import DataMissing, list_pairs
from refsam.datasets.pairs import read_pair_labels
from refsam.datasets.prepare import prepare
from refsam.errors import BadInput

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
    with pytest.raises(BadInput, match=r"no category crabs \(did you mean crab\?\); it has fish, crab"):
        list_pairs(coco(described, categories=["crabs"]))


def test_images_without_objects_are_left_out_or_refused(coco: Make) -> None:
    described = content(annotation(1), n_images=3)
    config = coco(described)
    assert [pair.name for pair in list_pairs(config)] == ["1"]
    assert "left out are 2 images without objects (2.png, 3.png)" in str(left_out(config))
    with pytest.raises(BadInput, match=r"has 2 images without objects \(2.png, 3.png\)"):
        list_pairs(coco(described, empty_images="refuse"))


def test_a_file_without_any_object_is_refused(coco: Make) -> None:
    with pytest.raises(BadInput, match="has no image with an object that can be used"):
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
    with pytest.raises(BadInput, match=f"1 × {kind} .*dataset.on_problem=skip"):
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
        ("annotation of an unknown category", {"category_id": [1]}),
    ],
)
def test_values_of_other_types_are_problems_and_no_crash(
    kind: str, values: dict[str, object], coco: Make
) -> None:
    described = content(annotation(1), annotation(9, **values))
    with pytest.raises(BadInput, match=f"1 × {kind} "):
        list_pairs(coco(described))
    assert len(list_pairs(coco(described, on_problem="skip"))) == 1


@pytest.mark.parametrize("text", ["0", "abc", "~~~~", "`0`0`0", "\u20ac", " ", "o"])
def test_compressed_run_lengths_that_do_not_cover_the_image_are_broken(text: str, coco: Make) -> None:
    """Of most of them, pycocotools would make a mask of what happens to be in memory."""
    broken = annotation(2, segmentation={"size": [HEIGHT, WIDTH], "counts": text})
    with pytest.raises(BadInput, match=r"1 × broken run lengths \(annotation 2 of 1\.png\)"):
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
    with pytest.raises(BadInput, match="1 × broken polygon"):
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
    with pytest.raises(BadInput, match=f"1 × {kind}"):
        list_pairs(coco(described))
    assert [pair.name for pair in list_pairs(coco(described, on_problem="skip"))] == ["1"]


def test_of_duplicate_categories_the_first_counts(coco: Make) -> None:
    described = content(annotation(1), categories=[{"id": 1, "name": "fish"}, {"id": 1, "name": "crab"}])
    with pytest.raises(BadInput, match=r"1 × duplicate category id \(1 of crab\)"):
        list_pairs(coco(described))
    assert len(list_pairs(coco(described, on_problem="skip", categories=["fish"]))) == 1
    with pytest.raises(BadInput, match="has no category crab; it has fish"):
        list_pairs(coco(described, on_problem="skip", categories=["crab"]))


@pytest.mark.parametrize(
    "size", [{}, {"height": None}, {"height": 0}, {"width": "60"}, {"width": 6.5}], ids=repr
)
def test_an_image_without_a_size_is_a_problem(size: dict[str, object], coco: Make) -> None:
    described = content(annotation(1))
    described["images"].append({"id": 2, "file_name": "2.png", "height": HEIGHT, "width": WIDTH, **size})
    if not size:
        del described["images"][1]["height"]
    with pytest.raises(BadInput, match=r"1 × image without a size \(2\.png\)"):
        list_pairs(coco(described))


def test_problems_are_counted_and_some_of_them_named(coco: Make) -> None:
    broken = [annotation(number, segmentation=[[1.0]]) for number in range(2, 7)]
    with pytest.raises(BadInput) as error:
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
        ("[]", "has no list of images"),
        (json.dumps(content(categories=7)), "has no list of categories"),
        (json.dumps(content(images=[{"id": 1, "height": 5}])), "has no file_name in number 0 of its images"),
        (json.dumps(content(images=[{"id": 1, "file_name": 7}])), "has no file_name in number 0"),
        (json.dumps(content(images=[{"id": [], "file_name": "a"}])), "has no id in number 0 of its images"),
        (json.dumps(content(categories=[{"id": 1, "name": ["a"]}])), "has no name in number 0"),
    ],
)
def test_files_of_another_format_are_refused(text: str, sentence: str, coco: Make) -> None:
    with pytest.raises(BadInput, match=sentence):
        list_pairs(coco(text))


def test_a_file_or_a_folder_that_is_not_there(coco: Make, dataset: Make, tmp_path: Path) -> None:
    config = coco(content(annotation(1)), labels="other.json")
    with pytest.raises(BadInput, match=r"other.json is no file; give COCO's annotation file"):
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
    with pytest.raises(BadInput, match="the largest object of 1 has 9"):
        check_images(replace(config, min_object_size=25), facts, (32, 32))


def test_trashcan_says_what_it_needs(dataset: Make, tmp_path: Path) -> None:
    config = dataset("trashcan", tmp_path / "trashcan")
    with pytest.raises(DataMissing, match=r"refsam prepare dataset=trashcan dataset.archive=ARCHIVE"):
        list_pairs(config)
    with pytest.raises(BadInput, match=r"dataset.archive: nothing was given; download dataset.zip"):
        prepare(config)
    for name, sentence in (("none.zip", "cannot be opened"), ("", "holds no dataset/instance_version")):
        config = dataset("trashcan", tmp_path / "trashcan", archive=str(tmp_path / name))
        with pytest.raises(BadInput, match=sentence):
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
