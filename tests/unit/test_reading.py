"""The files that people have: read with the right values, or refused in one sentence that names the file."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from refsam.configuration.schema import DatasetConfig, Normalization
from refsam.datasets import index, reading
from refsam.datasets.listing import list_pairs
from refsam.datasets.numbering import numbered, numbered_pieces, piece_counts
from refsam.datasets.pairs import read_pair
from refsam.errors import ConfigError

MakeDataset = Callable[..., DatasetConfig]
ORIENTATION = 274


def read_image(path: Path, key: str | None = None, channels: reading.Channels | None = None) -> np.ndarray:
    return reading.open_image(path, key, channels).pixels()


def read_labels(path: Path, key: str | None = None) -> np.ndarray:
    return reading.open_labels(path, key).ids


def values(*shape: int, most: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def discs(n: int = 6, height: int = 60, width: int = 80) -> np.ndarray:
    """(H, W) with `n` squares of 8 x 8 pixels, numbered from 1."""
    labels = np.zeros((height, width), np.uint16)
    for i in range(n):
        labels[5 + 20 * (i // 3) : 13 + 20 * (i // 3), 5 + 20 * (i % 3) : 13 + 20 * (i % 3)] = i + 1
    return labels


def refusal(read: Callable[..., object], path: Path, *arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, *arguments)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


# Depth


DEEP = {
    "png": imagecodecs.png_encode,
    "jp2": imagecodecs.jpeg2k_encode,
    "jxl": imagecodecs.jpegxl_encode,
    "jxr": imagecodecs.jpegxr_encode,
}


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [
        (suffix, (20, 30, *samples))
        for suffix in DEEP
        for samples in ((), (2,), (3,), (4,))
        # JPEG XR has no grey with an opacity; this JPEG 2000 does not say that its fourth sample is one.
        if (suffix, samples) not in (("jxr", (2,)), ("jp2", (4,)))
    ],
)
def test_all_16_bits_of_every_colour_type_are_read(
    tmp_path: Path, suffix: str, shape: tuple[int, ...]
) -> None:
    pixels = values(*shape, most=4096, dtype="uint16")  # a camera of 12 bit
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(DEEP[suffix](pixels))
    expected = pixels if len(shape) == 2 else pixels[..., 0] if shape[2] == 2 else pixels[..., :3]
    read = reading.open_image(path)
    assert read.record.dtype == "uint16"
    np.testing.assert_array_equal(read.pixels(), expected)
    assert read.as_8bit(Normalization.auto).max() == 255


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_a_pnm_of_16_bit_is_read_with_all_bits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = values(*shape, most=4096, dtype="uint16")
    path = tmp_path / "a.pnm"
    path.write_bytes(b"P%d\n30 20\n4095\n" % (5 if len(shape) == 2 else 6) + pixels.astype(">u2").tobytes())
    if len(shape) == 2:  # Pillow scales it to its 16 bits
        np.testing.assert_array_equal(read_image(path), np.round(pixels / 4095 * 65535))
    else:
        np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_less_than_8_bit_go_up_to_white(tmp_path: Path, bits: int) -> None:
    small = values(20, 30, most=2**bits)
    Image.fromarray(small * np.uint8(255 // (2**bits - 1))).convert("1" if bits == 1 else "L").save(
        tmp_path / "a.png", bits=bits
    )
    tifffile.imwrite(tmp_path / "a.tif", small > 0 if bits == 1 else small, bitspersample=bits, photometric=1)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), small * np.uint8(255 // (2**bits - 1)))


# Colour


def test_the_orientation_turns_as_pillow_turns(tmp_path: Path) -> None:
    pixels = values(20, 30, 3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(ORIENTATION, 3, 1, orientation, True)])
        with Image.open(tmp_path / "a.png") as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture))
        for name in ("a.png", "a.tif"):
            read = reading.open_image(tmp_path / name)
            np.testing.assert_array_equal(read.pixels(), expected)
            assert read.record.orientation == orientation


@pytest.mark.parametrize("shape", [(24, 24), (20, 30)])
def test_images_and_labels_are_turned_as_viewers_show_them(
    tmp_path: Path, dataset: MakeDataset, shape: tuple[int, int]
) -> None:
    """As a camera stores them: the picture lies on its side, and the labels were drawn on the upright one."""
    upright = np.zeros(shape, np.uint8)
    upright[2:10, 3:8] = 200
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    lying = Image.fromarray(np.rot90(upright))
    lying.save(tmp_path / "images/a.jpg", exif=exif, quality=95)
    tifffile.imwrite(tmp_path / "labels/a.tif", (upright > 0).astype(np.uint8))
    lying.save(tmp_path / "images/b.png", exif=exif)
    Image.fromarray(np.rot90(upright > 0).astype(np.uint8)).save(tmp_path / "labels/b.png", exif=exif)
    for pair in list_pairs(dataset("folder", tmp_path)):
        image, labels = read_pair(pair, dataset("folder", tmp_path))
        np.testing.assert_array_equal(image > 100, upright > 0)
        np.testing.assert_array_equal(labels > 0, upright > 0)


@pytest.mark.parametrize(("size", "turns"), [((30, 20), True), ((20, 30), False)])
def test_the_size_in_coco_annotations_decides_whether_an_image_is_turned(
    tmp_path: Path, dataset: MakeDataset, size: tuple[int, int], turns: bool
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying = values(20, 30)
    (tmp_path / "images").mkdir()
    Image.fromarray(lying).save(tmp_path / "images/a.png", exif=exif)
    box = [[2, 2, 12, 2, 12, 12, 2, 12]]
    described = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": box}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(described))
    config = dataset("coco", tmp_path)
    image, labels = read_pair(list_pairs(config)[0], config)
    np.testing.assert_array_equal(image, np.rot90(lying, -1) if turns else lying)
    assert image.shape == labels.shape == size


def test_an_image_whose_labels_have_the_size_of_the_unturned_one_is_not_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = values(20, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)

    def read_with_labels(*size: int) -> reading.ReadImage:
        labels = reading.ReadLabels(np.zeros(size, np.uint32))
        return reading.open_image(tmp_path / "a.png", labels=labels)

    np.testing.assert_array_equal(read_with_labels(20, 30).pixels(), pixels)
    assert read_with_labels(20, 30).record.ignored_orientation
    assert read_with_labels(30, 20).pixels().shape == (30, 20)
    assert read_with_labels(9, 9).pixels().shape == (30, 20)


def test_an_orientation_of_tiff_is_refused_where_nothing_says_whether_it_is_meant(
    tmp_path: Path, dataset: MakeDataset
) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    pixels = discs(2, 20, 30).astype(np.uint8)
    config = dataset("folder", tmp_path)

    def write(orientation_of_labels: int, orientation: int, *cut: slice) -> None:
        for kind, tag in (("images", orientation), ("labels", orientation_of_labels)):
            tags = [(ORIENTATION, 3, 1, tag, True)]
            tifffile.imwrite(tmp_path / kind / "a.tif", pixels[cut], extratags=tags)

    def read() -> tuple[np.ndarray, np.ndarray]:
        return read_pair(list_pairs(config)[0], config)

    write(1, 3)
    with pytest.raises(ConfigError, match=r"images/a\.tif has the orientation 3 in its TIFF tag"):
        read()
    write(3, 3)
    for found in read():
        np.testing.assert_array_equal(found, pixels[::-1, ::-1])
    write(1, 6)  # the labels have the size of the image that is not turned
    for found in read():
        np.testing.assert_array_equal(found, pixels)
    write(1, 0)  # no orientation
    for found in read():
        np.testing.assert_array_equal(found, pixels)
    write(1, 6, slice(0, 20), slice(0, 20))
    with pytest.raises(ConfigError, match=r"has the orientation 6"):
        read()


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted_with_its_black(tmp_path: Path, suffix: str) -> None:
    rgb = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, axis=2).repeat(48, axis=0)
    inks = np.zeros((48, 64, 4), np.uint8)
    inks[..., 3] = 255 - rgb[..., 0]  # black ink alone
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(inks, "CMYK").save(path, quality=100)
    np.testing.assert_allclose(read_image(path).astype(int), rgb, atol=3)


def test_cmyk_of_16_bit_keeps_its_depth(tmp_path: Path) -> None:
    inks = np.zeros((4, 5, 4), np.uint16)
    inks[..., 3] = 65535 - 3000
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.full((4, 5, 3), 3000, np.uint16))


def test_ycbcr_and_lab_are_converted(tmp_path: Path) -> None:
    rgb = values(16, 16, 3)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    tifffile.imwrite(tmp_path / "a.tif", ycbcr, photometric="ycbcr", subsampling=(1, 1))
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").astype(int), rgb, atol=3)
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[:, :2, 0] = 255  # white beside black, both without colour
    tifffile.imwrite(tmp_path / "lab.tif", lab, photometric="cielab")
    expected = np.repeat(lab[..., :1], 3, axis=2)
    np.testing.assert_allclose(read_image(tmp_path / "lab.tif").astype(int), expected, atol=1)
    jpeg = np.repeat(np.repeat(rgb[::8, ::8], 8, axis=0), 8, axis=1)
    tifffile.imwrite(tmp_path / "jpeg.tif", jpeg, photometric="rgb", compression="jpeg")
    read = read_image(tmp_path / "jpeg.tif").astype(int)
    assert np.abs(read - jpeg).mean() < 12


@pytest.mark.parametrize("suffix", ["tif", "png", "gif", "bmp"])
def test_palettes_are_colours(tmp_path: Path, suffix: str) -> None:
    indices = values(12, 14)
    colours = np.stack([255 - np.arange(256), np.arange(256), np.full(256, 7)], axis=1).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, indices, photometric="palette", colormap=colours.T.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(indices)
        picture.putpalette(colours.ravel().tolist())
        picture.save(path)
    np.testing.assert_array_equal(read_image(path), colours[indices])
    if suffix != "gif":  # which drops and reorders colours when Pillow writes it
        np.testing.assert_array_equal(read_labels(path), indices)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_palette_of_greys_is_grey(tmp_path: Path, suffix: str) -> None:
    indices, path = values(12, 14), tmp_path / f"a.{suffix}"
    ramp = np.arange(256)
    if suffix == "tif":
        tifffile.imwrite(
            path, indices, photometric="palette", colormap=np.stack([ramp * 257] * 3).astype("u2")
        )
    else:
        picture = Image.fromarray(indices)
        picture.putpalette(np.stack([ramp] * 3, axis=1).astype(np.uint8).ravel().tolist())
        picture.save(path)
    np.testing.assert_array_equal(read_image(path), indices)


def test_a_palette_with_transparent_colours_is_rgb(tmp_path: Path) -> None:
    indices = values(12, 14, most=4)
    colours = values(4, 3)
    picture = Image.fromarray(indices)
    picture.putpalette(colours.ravel().tolist())
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255, 128, 255]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours[indices])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_with_an_opacity_is_grey(tmp_path: Path, dtype: str) -> None:
    pixels = values(20, 30, 2, most=4000 if dtype == "uint16" else 256, dtype=dtype)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric=1, planarconfig="contig", extrasamples=["unassalpha"]
    )
    for name in ("a.png", "a.tif"):
        read = reading.open_image(tmp_path / name)
        np.testing.assert_array_equal(read.pixels(), pixels[..., 0])
        assert read.record.used_alpha
        np.testing.assert_array_equal(read_labels(tmp_path / name), pixels[..., 0])


def test_white_that_is_zero_is_inverted_in_images_and_not_in_ids(tmp_path: Path) -> None:
    for pixels in (values(9, 8), values(9, 8, most=60000, dtype="uint16")):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
        most = np.iinfo(pixels.dtype).max
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), most - pixels)
        np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), pixels)


def test_other_colours_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "raw.tif", values(8, 8), photometric="cfa")
    assert "CFA" in refusal(read_image, tmp_path / "raw.tif")


# Channels


def fluorescence(path: Path, channels: int = 4, **options: object) -> np.ndarray:
    pixels = values(20, 30, channels, most=4000, dtype="uint16")
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return pixels


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_numbers_of_channels_are_refused_with_the_way_out(tmp_path: Path, channels: int) -> None:
    fluorescence(tmp_path / "a.tif", channels)
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(values(20, 30, 4)))
    assert "dataset.channels=[0,1]" in refusal(read_image, tmp_path / "a.jp2")
    assert "dataset.channels=[0,1]" in refusal(read_image, tmp_path / "a.tif")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = values(20, 30, channels)
    assert "dataset.channels=[0,1]" in refusal(read_image, tmp_path / "a.h5", "raw")


def test_an_opacity_is_one_only_where_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    refused = fluorescence(path, photometric="rgb", extrasamples=["unspecified"])
    assert "dataset.channels" in refusal(read_image, path)
    np.testing.assert_array_equal(read_image(path, None, ["r", 3]), with_zeros(refused[..., [0, 3]]))
    for kind in ("unassalpha", "assocalpha"):
        pixels = fluorescence(path, photometric="rgb", extrasamples=[kind])
        read = reading.open_image(path)
        np.testing.assert_array_equal(read.pixels(), pixels[..., :3])
        assert read.record.used_alpha
        np.testing.assert_array_equal(read_image(path, None, [3]), pixels[..., 3])
    opaque = values(20, 30, 4)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(tmp_path / "a.png")
    assert not reading.open_image(tmp_path / "a.png").record.used_alpha


def with_zeros(channels: np.ndarray) -> np.ndarray:
    return np.concatenate([channels, np.zeros_like(channels[..., :1])], axis=2)


def stored(folder: Path, pixels: np.ndarray) -> list[tuple[Path, str | None]]:
    """The channels of (H, W, channels) in every way in which programs store them."""
    first = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(folder / "last.tif", pixels, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(folder / "first.tif", first, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(folder / "pages.tif", first, photometric="minisblack")
    tifffile.imwrite(folder / "imagej.tif", first, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(folder / "a.ome.tif", first, photometric="minisblack", metadata={"axes": "CYX"})
    with h5py.File(folder / "a.h5", "w") as file:
        file["first"], file["last"] = first, pixels
    names = ("last.tif", "first.tif", "pages.tif", "imagej.tif", "a.ome.tif")
    return [*((folder / name, None) for name in names), (folder / "a.h5", "first"), (folder / "a.h5", "last")]


def test_one_to_three_channels_are_chosen_of_any_number_however_they_are_stored(tmp_path: Path) -> None:
    pixels = values(20, 30, 5, most=4000, dtype="uint16")
    for path, key in stored(tmp_path, pixels):
        np.testing.assert_array_equal(read_image(path, key, [2]), pixels[..., 2], path.name)
        np.testing.assert_array_equal(
            read_image(path, key, [0, 2]), with_zeros(pixels[..., [0, 2]]), path.name
        )
        np.testing.assert_array_equal(read_image(path, key, [4, 0, 1]), pixels[..., [4, 0, 1]], path.name)
        empty = reading.open_image(path, key, [1, None, 2])
        np.testing.assert_array_equal(empty.pixels()[..., [0, 2]], pixels[..., [1, 2]], path.name)
        assert not empty.pixels()[..., 1].any()
        assert (empty.record.channels, empty.record.in_file) == (3, 5)


def test_chosen_channels_are_stretched_each_by_itself_and_colours_together(tmp_path: Path) -> None:
    pixels = values(40, 40, 4, most=4000, dtype="uint16")
    pixels[..., 2] //= 40  # a dim stain
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    image = reading.open_image(tmp_path / "a.tif", None, [0, 2]).as_8bit(Normalization.auto)
    assert image[..., 0].max() == image[..., 1].max() == 255
    assert not image[..., 2].any()
    tifffile.imwrite(tmp_path / "rgb.tif", pixels[..., :3], photometric="rgb")
    plain, chosen = (
        reading.open_image(tmp_path / "rgb.tif", None, names).as_8bit(Normalization.auto)
        for names in (None, ["r", "g", "b"])
    )
    np.testing.assert_array_equal(plain, chosen)
    assert plain[..., 2].max() < 10


def test_a_channel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    fluorescence(tmp_path / "a.tif")
    Image.fromarray(values(8, 9)).save(tmp_path / "a.png")
    assert "dataset.channels=4, but" in refusal(read_image, tmp_path / "a.tif", None, [0, 4])
    assert "dataset.channels=r, but" in refusal(read_image, tmp_path / "a.tif", None, ["r"])
    assert "1 channel;" in refusal(read_image, tmp_path / "a.png", None, [1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", None, [0]), values(8, 9))


@pytest.mark.parametrize("photometric", ["rgb", None])
def test_rgb_in_planes_is_rgb(tmp_path: Path, photometric: str | None) -> None:
    pixels = values(3, 20, 30)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(pixels, 0, -1))
    four = values(4, 20, 30)
    tifffile.imwrite(
        tmp_path / "b.tif", four, photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), np.moveaxis(four[:3], 0, -1))


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_stacks_are_refused_whatever_is_chosen(tmp_path: Path, axes: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(3, 20, 30), imagej=True, metadata={"axes": axes})
    for channels in (None, [0]):
        assert f"axes {axes}" in refusal(read_image, tmp_path / "a.tif", None, channels)
    assert "shape (3, 20, 30)" in refusal(read_labels, tmp_path / "a.tif")


# Several pictures in a file


def test_a_file_of_several_that_ome_metadata_describes_is_its_own_plane(tmp_path: Path) -> None:
    planes = values(4, 20, 30)
    uuid = "urn:uuid:{}"
    data = "".join(
        f'<TiffData FirstT="{t}" IFD="0" PlaneCount="1"><UUID FileName="t{t}.ome.tif">{uuid.format(t)}</UUID>'
        "</TiffData>"
        for t in range(4)
    )
    for t in range(4):
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{uuid.format(t)}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
            'Type="uint8" SizeX="30" SizeY="20" SizeC="1" SizeZ="1" SizeT="4">'
            f'<Channel ID="Channel:0:0"/>{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"t{t}.ome.tif", planes[t], description=xml, metadata=None)
    assert tifffile.imread(tmp_path / "t2.ome.tif").shape == (4, 20, 30)  # as tifffile puts them together
    for t in range(4):
        np.testing.assert_array_equal(read_image(tmp_path / f"t{t}.ome.tif"), planes[t])
        np.testing.assert_array_equal(read_labels(tmp_path / f"t{t}.ome.tif"), planes[t])
    (tmp_path / "t1.ome.tif").unlink()
    np.testing.assert_array_equal(read_image(tmp_path / "t2.ome.tif"), planes[2])


def test_a_file_with_some_planes_of_a_larger_ome_series_has_these_as_channels(tmp_path: Path) -> None:
    planes = values(2, 20, 30)
    data = "".join(
        f'<TiffData FirstT="{t}" FirstC="{c}" IFD="{c}" PlaneCount="1"><UUID FileName="t{t}.ome.tif">'
        f"urn:uuid:{t}</UUID></TiffData>"
        for t in range(3)
        for c in range(2)
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="30" SizeY="20" SizeC="2" SizeZ="1" SizeT="3"><Channel ID="Channel:0:0"/>'
        f'<Channel ID="Channel:0:1"/>{data}</Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "t1.ome.tif", planes, description=xml, metadata=None, photometric=1)
    assert "dataset.channels" in refusal(read_image, tmp_path / "t1.ome.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "t1.ome.tif", None, [1]), planes[1])


def test_several_pictures_in_a_file_are_refused_with_their_number(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values(10, 15))
        file.write(values(20, 30))
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for _ in range(3):
            file.write(values(20, 30), metadata={"axes": "YX"})
    frames = [Image.fromarray(values(20, 30) + np.uint8(i)) for i in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for name, count in (("a.tif", "2 pictures"), ("a.ome.tif", "3 pictures"), ("a.gif", "2 frames")):
        assert count in refusal(read_image, tmp_path / name)
        assert count in refusal(read_labels, tmp_path / name)


def test_levels_of_a_pyramid_and_thumbnails_are_no_pictures(tmp_path: Path) -> None:
    pixels = values(64, 96)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif") as file:
        file.write(pixels, subifds=1, tile=(32, 32))
        file.write(pixels[::2, ::2], subfiletype=1, tile=(32, 32))
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as file:
        file.write(pixels)
        file.write(pixels[::8, ::8], subfiletype=1)
    for name in ("pyramid.ome.tif", "thumbnail.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


def test_the_format_is_what_the_content_says(tmp_path: Path) -> None:
    pixels = values(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    for source, name in (("a.tif", "really.png"), ("b.png", "really.tif")):
        (tmp_path / name).write_bytes((tmp_path / source).read_bytes())
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(read_image, path)


def test_postscript_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n")
    refusal(read_image, tmp_path / "a.eps")


def test_a_file_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(20, 30), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(60000)
    assert "damaged" in refusal(read_image, tmp_path / "a.tif")


# Labels


def lossy_files(folder: Path, labels: np.ndarray) -> list[Path]:
    picture = Image.fromarray(labels * np.uint8(40))
    picture.save(folder / "a.jpg")
    picture.convert("RGB").save(folder / "a.webp")
    picture.save(folder / "a.jp2", irreversible=True, quality_mode="rates", quality_layers=[20])
    (folder / "renamed.png").write_bytes((folder / "a.jpg").read_bytes())
    tifffile.imwrite(folder / "jpeg.tif", np.asarray(picture), compression="jpeg")
    (folder / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(np.asarray(picture), level=90))
    return [folder / name for name in ("a.jpg", "a.webp", "a.jp2", "renamed.png", "jpeg.tif", "a.jxl")]


def test_lossy_formats_are_no_label_images(tmp_path: Path) -> None:
    for path in lossy_files(tmp_path, discs().astype(np.uint8)):
        assert "compressed with loss" in refusal(read_labels, path)
        read_image(path)


def test_lossless_ones_of_the_same_formats_are(tmp_path: Path) -> None:
    labels = discs().astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.jp2", irreversible=False)
    tifffile.imwrite(tmp_path / "j2k.tif", labels, compression="jpeg2000")
    for name in ("a.jp2", "j2k.tif"):
        np.testing.assert_array_equal(read_labels(tmp_path / name), labels)
    Image.fromarray(np.stack([labels] * 3, axis=2)).save(tmp_path / "a.webp", lossless=True)
    assert "shape (60, 80, 3)" in refusal(read_labels, tmp_path / "a.webp")  # it has no grey


def test_colours_are_no_ids(tmp_path: Path) -> None:
    Image.fromarray(values(20, 30, 3)).save(tmp_path / "a.png")
    assert "not colours" in refusal(read_labels, tmp_path / "a.png")


@pytest.mark.parametrize("dtype", ["uint32", "uint64", "int64", "float64"])
def test_objects_are_numbered_by_the_ids_that_occur(tmp_path: Path, dataset: MakeDataset, dtype: str) -> None:
    labels = discs()
    far = 2**32 - 10 if dtype == "uint32" else 2**40
    huge = np.where(labels > 0, far + labels.astype(np.uint64), 0).astype(dtype)
    for kind, pixels in (("images", values(60, 80)), ("labels", huge)):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "a.tif", pixels)
    config = dataset("folder", tmp_path)
    _, read = read_pair(list_pairs(config)[0], config)
    assert read.dtype == np.uint32
    np.testing.assert_array_equal(read, labels)
    fact = index.inspect(list_pairs(config), config, tmp_path / "cache")["images/a"]
    assert (fact.n_objects, fact.smallest_object, fact.median_object, fact.n_split) == (6, 64, 64, 0)


def test_numbers_follow_the_order_of_the_ids() -> None:
    ids = np.array([[0, 7, 7], [300, 2, 0]])
    np.testing.assert_array_equal(numbered(ids), [[0, 2, 2], [3, 1, 0]])
    np.testing.assert_array_equal(numbered(ids + 2**40 * (ids > 0)), [[0, 2, 2], [3, 1, 0]])
    np.testing.assert_array_equal(numbered(np.array([[2**40, 5]])), [[2, 1]])
    assert numbered(np.zeros((2, 2), np.uint32)).max() == 0


def test_pieces_are_connected_pixels_of_one_id() -> None:
    ids = np.array([[9, 0, 9, 4], [0, 9, 0, 4], [0, 0, 0, 0], [9, 0, 4, 4]])
    np.testing.assert_array_equal(
        numbered_pieces(ids), [[1, 0, 1, 2], [0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 4, 4]]
    )
    np.testing.assert_array_equal(piece_counts(numbered(ids)), [2, 2])
    np.testing.assert_array_equal(piece_counts(numbered(ids * (ids == 4))), [2])
    assert piece_counts(np.zeros((3, 3), np.uint32)).size == 0


# Binary masks


def masks(folder: Path, kind: str, n_images: int = 4, whole: int = 0) -> None:
    """Masks of six squares, of one square in the last `whole` images."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i in range(n_images):
        Image.fromarray(values(60, 80)).save(folder / f"images/{i}.png")
        mask = discs(1 if i >= n_images - whole else 6) > 0
        if kind == "1 bit tif":
            tifffile.imwrite(folder / f"labels/{i}.tif", mask)
        else:
            picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
            picture.convert("1" if kind == "1 bit" else "L").save(folder / f"labels/{i}.png")


def checked(config: DatasetConfig, folder: Path) -> list[int]:
    facts = index.inspect(list_pairs(config), config, folder / "cache")
    index.check_images(config, facts, (32, 32))
    return [fact.n_objects for fact in facts.values()]


@pytest.mark.parametrize("kind", ["0 and 255", "1 bit", "1 bit tif"])
def test_binary_masks_are_refused_until_it_is_said_what_they_are(
    tmp_path: Path, dataset: MakeDataset, kind: str
) -> None:
    masks(tmp_path, kind)
    config = dataset("folder", tmp_path)
    with pytest.raises(ConfigError) as caught:
        checked(config, tmp_path)
    assert "labels of 4 of 4 images hold one id in several pieces: these look like binary masks" in str(
        caught.value
    )
    assert "dataset.labels_are=components" in str(caught.value)
    assert checked(dataset("folder", tmp_path, labels_are="instances"), tmp_path) == [1] * 4
    pieces = dataset("folder", tmp_path, labels_are="components")
    assert checked(pieces, tmp_path) == [6] * 4
    _, labels = read_pair(list_pairs(pieces)[0], pieces)
    np.testing.assert_array_equal(labels, discs())


def test_one_object_in_most_images_is_no_binary_mask(tmp_path: Path, dataset: MakeDataset) -> None:
    masks(tmp_path, "0 and 255", whole=3)
    assert checked(dataset("folder", tmp_path), tmp_path) == [1] * 4


def test_the_hash_of_a_folder_is_that_of_its_ids_before_they_are_numbered(
    tmp_path: Path, dataset: MakeDataset
) -> None:
    """Runs that are there keep their run_id."""
    labels = discs() * np.uint16(5)
    image = values(60, 80)
    for kind, pixels in (("images", image), ("labels", labels)):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "a.tif", pixels)
    config = dataset("folder", tmp_path)
    (fact,) = index.inspect(list_pairs(config), config, tmp_path / "cache").values()
    expected = hashlib.sha256(image.tobytes() + labels.astype(np.uint32).tobytes()).hexdigest()[:16]
    assert fact.content == expected


@pytest.mark.parametrize("suffix", [".tif", ".jxr"])
def test_a_picture_without_its_end_is_refused_where_a_decoder_makes_it_up(
    suffix: str, tmp_path: Path
) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, colours, photometric="rgb", compression="jpeg", tile=(32, 32), metadata=None)
    else:
        path.write_bytes(imagecodecs.jpegxr_encode(colours))
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="is cut off"):
        read_image(path)


def test_pages_that_follow_one_another_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    path = tmp_path / "circle.tif"
    image = np.arange(600, dtype=np.uint8).reshape(20, 30)
    tifffile.imwrite(path, image, metadata=None)
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[following : following + 4] = content[4:8]
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), image)
