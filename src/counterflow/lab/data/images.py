"""Labeled pictures: scikit-learn's digits, and MNIST as one npz file or as its publisher's IDX files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import DataError, MissingExtraError
from counterflow.lab.data.catalog import dataset
from counterflow.lab.data.checksums import verified
from counterflow.lab.data.locate import provide

__all__ = ["LabeledImages", "digits", "mnist", "read_idx"]

_IDX_BYTES = 0x08  # IDX's code for unsigned bytes, the only type that MNIST uses


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Pictures and their classes, split into a part for training and one for testing.

    Args:
        name: The name in the catalog.
        train_images: Shape (train, height, width), uint8.
        train_labels: Shape (train,), int64.
        test_images: Shape (test, height, width), uint8.
        test_labels: Shape (test,), int64.
        maximum: The pixel value of full ink; the others lie between 0 and it.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    maximum: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of."""
        return {
            "train_images": self.train_images,
            "train_labels": self.train_labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }


def digits() -> LabeledImages:
    """The handwritten digits that scikit-learn brings: 1,797 pictures of 8x8 pixels.

    They have no split of their own. They come in runs by writer, in which the digits follow a fixed order,
    so the split is drawn, once and for all: the last 360 of a permutation with seed 0 are for testing.

    Returns:
        1,437 pictures for training and 360 for testing, pixels from 0 to 16. The arrays are read-only.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ChecksumError: The installed scikit-learn brings other pictures.

    References:
        E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998.

    Example:
        >>> digits().train_images.shape
        (1437, 8, 8)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("lab", "the data set digits") from error
    bunch = load_digits()
    test = dataset("digits").splits["test"]
    order = np.random.default_rng(0).permutation(len(bunch.target))
    training, testing = order[:-test], order[-test:]
    images = bunch.images.astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    return verified(
        "digits",
        LabeledImages("digits", images[training], labels[training], images[testing], labels[testing], maximum=16),
        dataset("digits").forms[0],
    )


def mnist() -> LabeledImages:
    """MNIST: 70,000 handwritten digits of 28x28 pixels, in their original order and split.

    It is looked for as described in ``counterflow.lab.data.locate`` and downloaded (11.6 MB) if it is
    nowhere; ``mnist/mnist.npz`` and the publisher's four IDX files give the same arrays.

    Returns:
        60,000 pictures for training and 10,000 for testing, pixels from 0 to 255. The arrays are read-only.

    Raises:
        DataNotFoundError: It is not on this machine and cannot be downloaded.
        ChecksumError: A file is damaged.
        MissingExtraError: It has to be downloaded, and pooch is not installed.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document
        recognition, Proceedings of the IEEE 86(11), 1998.
    """
    found = provide("mnist")
    read = {"npz": _read_mnist_npz, "idx": _read_mnist_idx}[found.form.format]
    arrays = read(found.paths)
    data = LabeledImages(
        name="mnist",
        train_images=arrays["x_train"],
        train_labels=arrays["y_train"].astype(np.int64),
        test_images=arrays["x_test"],
        test_labels=arrays["y_test"].astype(np.int64),
        maximum=255,
    )
    return verified("mnist", data, found.form)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one file of the IDX format in which MNIST was published, packed by gzip.

    The format: two zero bytes, the type (8: unsigned bytes), the number of dimensions, each dimension as
    a big-endian 32-bit number, then the values, the last index changing fastest.

    Args:
        path: The file, such as ``train-images-idx3-ubyte.gz``.

    Returns:
        The array, of the shape that the file states.

    Raises:
        DataError: The file cannot be read, or it is not a complete IDX file of unsigned bytes.
    """
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a gzip file: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _IDX_BYTES)):
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4].hex() or '?'}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is not a complete IDX file: it ends within its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is not a complete IDX file: it has {len(content) - start} values, "
            f"and its shape {shape} needs {math.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_mnist_npz(paths: Sequence[Path]) -> Mapping[str, NDArray[np.uint8]]:
    with np.load(paths[0], allow_pickle=False) as archive:
        return {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}


def _read_mnist_idx(paths: Sequence[Path]) -> Mapping[str, NDArray[np.uint8]]:
    keys = ("x_train", "y_train", "x_test", "y_test")  # the catalog lists the files in this order
    return {key: read_idx(path) for key, path in zip(keys, paths, strict=True)}
