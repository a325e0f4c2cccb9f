"""Pictures that are kept as their files' bytes and become arrays in batches: CIFAR-10."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.exceptions import DataError, InputError, MissingExtraError
from counterflow.lab.data.archives import archive_members
from counterflow.lab.data.checksums import json_array, verified
from counterflow.lab.data.locate import provide
from counterflow.lab.data.parquet import parquet_columns

__all__ = ["EncodedImages", "EncodedSplit", "cifar10"]

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """The pictures of one split.

    Args:
        files: What each is called by its publisher.
        labels: Shape (pictures,), int64: indices of the classes.
        encoded: Each picture's bytes.
        decode: Turns one picture's bytes into an array (height, width, 3), uint8.
    """

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    encoded: Sequence[bytes]
    decode: Callable[[bytes], NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: ArrayLike | slice | None = None) -> NDArray[np.uint8]:
        """Decode a batch.

        Args:
            indices: Which pictures: whole numbers, or a slice; all if not given (CIFAR-10: 150 MB).

        Returns:
            Shape (batch, height, width, 3), uint8.

        Raises:
            InputError: A picture that does not exist.
        """
        numbers = np.arange(len(self))
        try:
            chosen = (
                numbers if indices is None else numbers[indices if isinstance(indices, slice) else np.asarray(indices)]
            )
        except IndexError as error:
            raise InputError(f"indices cannot be used: {error}; there are {len(self)} pictures") from error
        images = np.empty((chosen.size, _SIDE, _SIDE, 3), np.uint8)
        for row, index in zip(images, chosen.reshape(-1), strict=True):
            row[...] = self.decode(self.encoded[int(index)])
        return images


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Labeled color pictures, decoded when they are asked for.

    Args:
        name: The name in the catalog.
        class_names: What the labels mean.
        train: The pictures for training.
        test: The pictures for testing.
    """

    name: str
    class_names: tuple[str, ...]
    train: EncodedSplit
    test: EncodedSplit

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of: the bytes, not the pixels, which differ a little by decoder."""
        arrays: dict[str, NDArray[Any]] = {"class_names": json_array(self.class_names)}
        for split, of in (("train", self.train), ("test", self.test)):
            arrays[f"{split}_labels"] = of.labels
            arrays[f"{split}_files"] = json_array(of.files)
            arrays[f"{split}_lengths"] = np.array([len(picture) for picture in of.encoded], np.int64)
            arrays[f"{split}_bytes"] = np.frombuffer(b"".join(of.encoded), np.uint8)
        return arrays


def cifar10() -> EncodedImages:
    """CIFAR-10: 60,000 color pictures of 32x32 pixels in ten classes, with the official split.

    It is read from ``cifar10/*.parquet`` (JPEG, which is lossy) or from its publisher's
    ``cifar-10-binary.tar.gz`` (exact, downloaded if neither is here: 170 MB). The publisher's Python version
    is a pickle, which can run code, and is never read.

    Returns:
        50,000 pictures for training and 10,000 for testing.

    Raises:
        DataNotFoundError: It is not on this machine and cannot be downloaded.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: pyarrow or Pillow is not installed, or pooch where it has to be downloaded.

    References:
        A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    found = provide("cifar10")
    read = {"jpeg": _read_jpeg, "binary": _read_binary}[found.form.format]
    return verified("cifar10", read(found.paths), found.form)


def _read_jpeg(paths: Sequence[Path]) -> EncodedImages:
    try:
        import PIL.Image  # noqa: F401  # said now rather than at the first batch
    except ImportError as error:
        raise MissingExtraError("lab", "the data set cifar10") from error
    splits = []
    for path in paths:
        columns = parquet_columns(path, "cifar10", ("image", "label", "file"))
        labels = np.array(columns["label"], np.int64)
        splits.append(EncodedSplit(tuple(columns["file"]), labels, columns["image"], _decode_jpeg))
    train, test = splits  # the catalog lists the files in this order
    return EncodedImages("cifar10", _CLASSES, train, test)


def _decode_jpeg(content: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _read_binary(paths: Sequence[Path]) -> EncodedImages:
    """Records of a label and 3 x 32 x 32 pixels, plane by plane."""
    (path,) = paths
    size = 1 + 3 * _SIDE * _SIDE
    parts = {}
    for name, content in archive_members(path, lambda name: name.suffix == ".bin"):
        if not content or len(content) % size:
            raise DataError(f"{path}: {name} has {len(content)} bytes, which are not records of {size}")
        parts[name.stem] = np.frombuffer(content, np.uint8).reshape(-1, size)
        if parts[name.stem][:, 0].max() >= len(_CLASSES):
            raise DataError(f"{path}: {name} has labels above {len(_CLASSES) - 1}")
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    if missing := [b for of in batches.values() for b in of if b not in parts]:
        raise DataError(f"{path} is not CIFAR-10's binary version: it holds no {missing[0]}.bin")
    splits = []
    for of in batches.values():
        files = tuple(f"{batch}.bin/{i}" for batch in of for i in range(len(parts[batch])))
        labels = np.concatenate([parts[batch][:, 0] for batch in of]).astype(np.int64)
        encoded = [record[1:].tobytes() for batch in of for record in parts[batch]]
        splits.append(EncodedSplit(files, labels, encoded, _decode_planes))
    return EncodedImages("cifar10", _CLASSES, *splits)


def _decode_planes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8).reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
