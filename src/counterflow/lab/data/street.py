"""Street scenes with a class for each pixel: CamVid, each split read when it is first asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import DataError, MissingExtraError
from counterflow.lab.data.archives import archive_members
from counterflow.lab.data.checksums import json_array
from counterflow.lab.data.locate import provide

__all__ = ["SegmentedImages", "SegmentedSplit", "camvid"]

_WIDTH, _HEIGHT = 160, 120
_STRAY = 0.01  # share of pixels whose color may be no class's; they are unlabeled
_Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class SegmentedSplit:
    """The pictures of one split and their masks, read when they are first asked for, and then kept.

    Args:
        names: The pictures' file names.
        read: Reads both.
    """

    names: tuple[str, ...]
    read: Callable[[], _Arrays]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _arrays(self) -> _Arrays:
        arrays = self.read()
        for array in arrays:
            array.flags.writeable = False
        return arrays

    @property
    def images(self) -> NDArray[np.uint8]:
        """Shape (pictures, height, width, 3)."""
        return self._arrays[0]

    @property
    def masks(self) -> NDArray[np.uint8]:
        """Shape (pictures, height, width): indices of the classes."""
        return self._arrays[1]


@dataclass(frozen=True, eq=False)
class SegmentedImages:
    """Pictures with a class for each pixel.

    Args:
        name: The name in the catalog.
        class_names: What the masks' values mean; the last one is no class.
        train: The pictures for training.
        val: The pictures for validation.
        test: The pictures for testing.
    """

    name: str
    class_names: tuple[str, ...]
    train: SegmentedSplit
    val: SegmentedSplit
    test: SegmentedSplit

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of; reads all splits."""
        arrays: dict[str, NDArray[Any]] = {"class_names": json_array(self.class_names)}
        for split, of in (("train", self.train), ("val", self.val), ("test", self.test)):
            arrays |= {f"{split}_names": json_array(of.names), f"{split}_images": of.images, f"{split}_masks": of.masks}
        return arrays


def camvid() -> SegmentedImages:
    """CamVid: 701 street scenes of 160x120 pixels, each pixel one of 11 classes or unlabeled.

    It is read from ``camvid/*.npz``, or from its publisher's two archives of PNG files, whose pictures are
    averaged down to the same size and whose 32 classes are joined to the same 11. The split is the usual one
    of 367, 101 and 233 pictures. The files are verified at once and a split's arrays are read when they are
    first asked for.

    Returns:
        The splits; masks have the value 11 where a pixel is unlabeled.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: The publisher's files are to be read, and Pillow is not installed.

    References:
        G. J. Brostow, J. Fauqueur, R. Cipolla, Semantic object classes in video: a high-definition ground
        truth database, Pattern Recognition Letters 30, 2009; the split and the 11 classes: V. Badrinarayanan,
        A. Kendall, R. Cipolla, SegNet, arXiv:1511.00561.
    """
    found = provide("camvid")
    read = {"npz": _npz_splits, "png archives": _png_splits}[found.form.format]
    return SegmentedImages("camvid", tuple(CLASSES), *read(found.paths))


def _npz_splits(paths: Sequence[Path]) -> list[SegmentedSplit]:
    splits = []
    for path in paths:  # the catalog lists them in the order train, val, test
        with np.load(path, allow_pickle=False) as archive:
            names = tuple(archive["names"].tolist())
        splits.append(SegmentedSplit(names, _npz_reader(path)))
    return splits


def _npz_reader(path: Path) -> Callable[[], _Arrays]:
    def read() -> _Arrays:
        with np.load(path, allow_pickle=False) as archive:
            return archive["images"], archive["masks"]

    return read


# the publisher's files

CLASSES: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "Sky": [(128, 128, 128)],
    "Building": [(128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)],
    "Pole": [(192, 192, 128), (0, 0, 64)],
    "Road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],
    "Pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],
    "Tree": [(128, 128, 0), (192, 192, 0)],
    "SignSymbol": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],
    "Fence": [(64, 64, 128)],
    "Car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],
    "Pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],
    "Bicyclist": [(0, 128, 192), (192, 0, 192)],
    "Unlabelled": [(0, 0, 0)],
}
"""The classes, and the colors of the publisher's classes that each joins."""


def camvid_split(name: str) -> str:
    """The split to which a picture belongs, by its film and its place in it.

    Example:
        >>> [camvid_split(n) for n in ("0001TP_008520.png", "0001TP_008550.png", "0016E5_07959.png")]
        ['train', 'test', 'val']
    """
    film, _, number = name.removesuffix(".png").partition("_")
    place = int(number.lstrip("f"))
    if film == "Seq05VD" or (film == "0001TP" and place > 8520):
        return "test"
    return "val" if film == "0016E5" and 7959 <= place <= 8159 else "train"


def _png_splits(paths: Sequence[Path]) -> list[SegmentedSplit]:
    try:
        import PIL.Image  # noqa: F401  # said now rather than when a split is asked for
    except ImportError as error:
        raise MissingExtraError("lab", "the data set camvid") from error
    stills, labels = paths
    names = sorted(name.name for name in _listed(stills, ""))
    labeled = {name.name.replace("_L.png", ".png") for name in _listed(labels, "_L")}
    if not names or not labeled.issuperset(names):
        lost = f"{labels} holds no labels of {min(set(names) - labeled)}" if names else f"{stills} holds no pictures"
        raise DataError(f"{stills} and {labels.name} are not CamVid's archives: {lost}")
    splits = []
    for split in ("train", "val", "test"):
        chosen = tuple(name for name in names if camvid_split(name) == split)
        splits.append(SegmentedSplit(chosen, _png_reader(stills, labels, chosen)))
    return splits


def _listed(path: Path, suffix: str) -> list[PurePosixPath]:
    """The pictures in an archive, whose contents are not read."""
    found = []

    def note(name: PurePosixPath) -> bool:
        film, _, rest = name.stem.removesuffix(suffix).partition("_")
        if name.suffix == ".png" and name.stem.endswith(suffix) and film and rest.lstrip("f").isdigit():
            found.append(name)
        return False

    for _ in archive_members(path, note):
        pass
    return found


def _png_reader(stills: Path, labels: Path, names: tuple[str, ...]) -> Callable[[], _Arrays]:
    def read() -> _Arrays:
        places = {name: index for index, name in enumerate(names)}
        images = np.zeros((len(names), _HEIGHT, _WIDTH, 3), np.uint8)
        masks = np.zeros((len(names), _HEIGHT, _WIDTH), np.uint8)
        for name, content in archive_members(stills, lambda name: name.name in places):
            images[places[name.name]] = _shrunk(content, f"{stills}: {name}", average=True)
        for name, content in archive_members(labels, lambda name: name.name.replace("_L.png", ".png") in places):
            colors = _shrunk(content, f"{labels}: {name}", average=False)
            masks[places[name.name.replace("_L.png", ".png")]] = _classes(colors, f"{labels}: {name}")
        return images, masks

    return read


def _shrunk(content: bytes, called: str, *, average: bool) -> NDArray[np.uint8]:
    from PIL import Image

    how = Image.Resampling.BOX if average else Image.Resampling.NEAREST
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB").resize((_WIDTH, _HEIGHT), how))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{called} cannot be read as a picture: {error}") from error


def _classes(colors: NDArray[np.uint8], called: str) -> NDArray[np.uint8]:
    codes = colors.astype(np.int64) @ np.array([65536, 256, 1])
    mask = np.full(codes.shape, 255, np.uint8)
    for number, joined in enumerate(CLASSES.values()):
        for red, green, blue in joined:
            mask[codes == (red << 16) + (green << 8) + blue] = number
    unknown = mask == 255
    if unknown.mean() > _STRAY:
        color = tuple(colors[unknown][0].tolist())
        raise DataError(f"{called} is not one of CamVid's labels: it has the color {color}")
    mask[unknown] = len(CLASSES) - 1
    return mask
