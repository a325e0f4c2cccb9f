from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from counterflow.exceptions import ChecksumError, DataError, MissingExtraError
from counterflow.lab import data
from counterflow.lab.data import images

if TYPE_CHECKING:
    from .conftest import Machine, SmallMnist


def _idx(array: NDArray[np.uint8]) -> bytes:
    header = [0, 0, 8, array.ndim, *(byte for n in array.shape for byte in n.to_bytes(4, "big"))]
    return bytes(header) + array.tobytes()


# digits


def test_digits() -> None:
    digits = data.digits()
    assert digits.train_images.shape == (1437, 8, 8)
    assert digits.test_images.shape == (360, 8, 8)
    assert digits.train_labels.shape == (1437,)
    assert digits.test_labels.shape == (360,)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_labels.dtype == np.int64
    assert digits.train_images.max() == digits.maximum == 16
    # No class is rare in either part.
    assert np.bincount(digits.train_labels).min() > 120
    assert np.bincount(digits.test_labels).min() > 25


def test_digits_split_is_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    digits = data.digits()
    together = np.concatenate([digits.train_images, digits.test_images]).reshape(1797, -1)
    original = load_digits().images.reshape(1797, -1)
    np.testing.assert_array_equal(together[np.lexsort(together.T)], original[np.lexsort(original.T)])


def test_digits_are_the_same_each_time() -> None:
    assert data.arrays_sha256(data.digits().arrays()) == data.checksum("digits")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'counterflow\[lab\]'"):
        data.digits()
    assert data.find("digits") is None


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    bunch.target[0] = 9
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    with pytest.raises(ChecksumError, match="digits is not the one in the catalog"):
        data.digits()


# MNIST


def _assert_small(mnist: data.LabeledImages, small: SmallMnist) -> None:
    np.testing.assert_array_equal(mnist.train_images, small.arrays["x_train"])
    np.testing.assert_array_equal(mnist.train_labels, small.arrays["y_train"])
    np.testing.assert_array_equal(mnist.test_images, small.arrays["x_test"])
    np.testing.assert_array_equal(mnist.test_labels, small.arrays["y_test"])
    assert mnist.train_labels.dtype == np.int64
    assert not any(array.flags.writeable for array in mnist.arrays().values())


def test_mnist_from_npz(machine: Machine, small_mnist: SmallMnist) -> None:
    small_mnist.put(machine.shared, "mnist/mnist.npz")
    _assert_small(data.mnist(), small_mnist)


def test_mnist_from_the_publishers_files(machine: Machine, small_mnist: SmallMnist) -> None:
    small_mnist.put(machine.shared, *(path for path in small_mnist.files if path.endswith(".gz")))
    found = data.find("mnist")
    assert found is not None
    assert found.form.format == "idx"
    _assert_small(data.mnist(), small_mnist)


def test_both_forms_have_one_checksum(small_mnist: SmallMnist) -> None:
    npz, idx = small_mnist.entry.forms
    assert data.checksum("mnist") == npz.sha256 == idx.sha256


@pytest.mark.data
def test_real_mnist(real_mnist: data.LabeledImages) -> None:
    assert real_mnist.train_images.shape == (60_000, 28, 28)
    assert real_mnist.test_images.shape == (10_000, 28, 28)
    # Known of MNIST: its first labels, and how often each digit occurs.
    assert real_mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert real_mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(real_mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert data.arrays_sha256(real_mnist.arrays()) == data.checksum("mnist")


@pytest.mark.data
def test_real_mnist_is_what_the_publisher_released(real_mnist: data.LabeledImages) -> None:
    """Written back to the publisher's format, it has the checksums known of the unpacked files."""
    unpacked = {
        "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
    for name, array in real_mnist.arrays().items():
        assert hashlib.sha256(_idx(array.astype(np.uint8))).hexdigest() == unpacked[name]


# the converter


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 3, 2), (0, 28, 28)])
def test_read_idx(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "some-idx-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(array)))
    np.testing.assert_array_equal(data.read_idx(path), array, strict=True)


_GOOD = _idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(_GOOD[:-1]), r"has 11 values, and its shape \(3, 4\) needs 12"),
        (gzip.compress(_GOOD + b"x"), r"has 13 values, and its shape \(3, 4\) needs 12"),
        (gzip.compress(_GOOD[:9]), "ends within its header"),
        (gzip.compress(b""), "not an IDX file of unsigned bytes"),
        (
            gzip.compress(b"\0\0\x0d" + _GOOD[3:]),
            "not an IDX file of unsigned bytes: it begins with 00000d02",
        ),
        (gzip.compress(_GOOD)[:-9], "cannot be read as a gzip file"),
        (_GOOD, "cannot be read as a gzip file"),
        (None, "cannot be read as a gzip file"),
    ],
    ids=["short", "long", "header", "empty", "floats", "cut", "unpacked", "absent"],
)
def test_read_idx_refuses(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.read_idx(path)
    assert "\n" not in str(caught.value)
    assert "bad.gz" in str(caught.value)


def test_converted_content_is_verified(
    machine: Machine, small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that got the order of the files wrong would be noticed."""
    small_mnist.put(machine.shared, *(path for path in small_mnist.files if path.endswith(".gz")))
    monkeypatch.setattr(images, "read_idx", lambda path: data.read_idx(path)[::-1])
    with pytest.raises(ChecksumError, match="mnist is not the one in the catalog"):
        data.mnist()
