"""The path from a server to arrays, against a server on this machine; nothing else is asked."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pooch
import pytest

from counterflow.exceptions import ChecksumError, DataError, DataNotFoundError, MissingExtraError
from counterflow.lab import data
from counterflow.lab.data import download

if TYPE_CHECKING:
    from .conftest import Machine, Server, SmallMnist

Downloadable = Callable[..., data.DataSet]


def _serve(small: SmallMnist, server: Server) -> None:
    for path, content in small.files.items():
        if path.endswith(".gz"):
            (server.folder / Path(path).name).write_bytes(content)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_download(machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable) -> None:
    _serve(small_mnist, server)
    downloadable(server.url)
    mnist = data.mnist()
    np.testing.assert_array_equal(mnist.train_images, small_mnist.arrays["x_train"])
    np.testing.assert_array_equal(mnist.test_labels, small_mnist.arrays["y_test"])
    assert len(server.asked) == 4
    found = data.find("mnist")
    assert found is not None
    assert found.place.label == "cache"
    # The four files and nothing else; a second use asks nobody.
    assert _files(machine.cache) == sorted(path.name for path in found.paths)
    assert _files(machine.shared) == []
    data.mnist()
    assert len(server.asked) == 4


def test_only_what_is_missing_is_downloaded(
    machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable
) -> None:
    _serve(small_mnist, server)
    downloadable(server.url)
    small_mnist.put(machine.cache, "mnist/train-images-idx3-ubyte.gz", "mnist/t10k-images-idx3-ubyte.gz")
    data.mnist()
    assert server.asked == ["/train-labels-idx1-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("action", ["find", "checksum", "search_order"])
def test_asking_downloads_nothing(
    machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable, action: str
) -> None:
    _serve(small_mnist, server)
    downloadable(server.url)
    getattr(data, action)(*([] if action == "search_order" else ["mnist"]))
    assert server.asked == []
    assert not machine.cache.exists()


def test_a_wrong_checksum_is_refused_and_nothing_left(
    machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable
) -> None:
    _serve(small_mnist, server)
    (server.folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>sign in to this network</html>")
    entry = downloadable(server.url)
    with pytest.raises(ChecksumError) as caught:
        data.mnist()
    line = str(caught.value)
    assert "\n" not in line
    assert f"{server.url}train-images-idx3-ubyte.gz" in line
    assert entry.forms[1].files[0].sha256[:12] in line
    assert data.file_sha256(server.folder / "train-images-idx3-ubyte.gz")[:12] in line
    assert _files(machine.cache) == []
    # It succeeds as soon as the right file is there.
    _serve(small_mnist, server)
    assert len(data.mnist().train_labels) == 6


def test_a_second_mirror_is_tried(
    machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable
) -> None:
    _serve(small_mnist, server)
    downloadable(server.url + "gone/", server.url)
    assert len(data.mnist().train_labels) == 6
    assert len(server.asked) == 8


def test_a_server_without_the_file(
    machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable
) -> None:
    downloadable(server.url)
    with pytest.raises(DataNotFoundError, match=r"\(127\.0\.0\.1:\d+ answers 404\)"):
        data.mnist()
    assert _files(machine.cache) == []


def test_nobody_there(machine: Machine, small_mnist: SmallMnist, downloadable: Downloadable) -> None:
    with socket.socket() as unused:  # bound, but not listening: a connection is refused
        unused.bind(("127.0.0.1", 0))
        downloadable(f"http://127.0.0.1:{unused.getsockname()[1]}/")
        start = time.monotonic()
        with pytest.raises(DataNotFoundError) as caught:
            data.mnist()
    assert time.monotonic() - start < 5
    line = str(caught.value)
    assert "\n" not in line
    assert "cannot be reached" in line
    assert "put mnist/mnist.npz into a folder and name that folder in COUNTERFLOW_DATA" in line
    assert _files(machine.cache) == []


def test_a_server_that_never_answers(
    machine: Machine, small_mnist: SmallMnist, downloadable: Downloadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(download.TIMEOUT) <= 30
    monkeypatch.setattr(download, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        downloadable(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        start = time.monotonic()
        with pytest.raises(DataNotFoundError, match="does not answer in time"):
            data.mnist()
        assert time.monotonic() - start < 12  # the usual wait is 15
    assert _files(machine.cache) == []


def test_a_connection_that_breaks(machine: Machine, small_mnist: SmallMnist, downloadable: Downloadable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_half() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

        thread = threading.Thread(target=answer_half)
        thread.start()
        downloadable(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        with pytest.raises(DataNotFoundError, match="breaks off"):
            data.mnist()
        thread.join()
    assert _files(machine.cache) == []


def test_a_cache_that_cannot_be_written(
    machine: Machine, small_mnist: SmallMnist, server: Server, downloadable: Downloadable
) -> None:
    _serve(small_mnist, server)
    downloadable(server.url)
    machine.cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"the cache .* cannot be written") as caught:
        data.mnist()
    assert "\n" not in str(caught.value)


def test_without_pooch(
    machine: Machine, small_mnist: SmallMnist, downloadable: Downloadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloadable("http://127.0.0.1:9/")
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"downloading the data set mnist needs .*counterflow\[lab\]"):
        data.mnist()


def test_pooch_says_nothing_and_is_left_as_it_was(
    machine: Machine,
    small_mnist: SmallMnist,
    server: Server,
    downloadable: Downloadable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _serve(small_mnist, server)
    downloadable(server.url)
    pooch.get_logger().setLevel(logging.INFO)
    with caplog.at_level(logging.INFO):
        data.mnist()
    assert not [record for record in caplog.records if "Downloading" in record.getMessage()]
    assert pooch.get_logger().level == logging.INFO
